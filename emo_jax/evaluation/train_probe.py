"""Trains the measuring network (`emo_jax.evaluation.probe`) on rendered frames.

    python -m emo_jax.evaluation.train_probe --data data/synthetic --output probe.safetensors --steps 4000

Frames come from the split "train" with the data pipeline's crops. They are blurred, resampled, and changed in noise and
colour, so that the network also reads the softer pictures of a decoder. Accuracy is reported on the split "validation".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_jax.data.records import open_records
from emo_jax.evaluation import probe
from emo_jax.evaluation.identity import discriminants, nearest
from emo_jax.media.mp4 import decode_video
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render
from emo_jax.synthetic.world import POSE_LIMITS

RUN, TAKEN = 16, 8
"""Number of frames decoded from a keyframe on, and how many of them are used."""
POOL = 4096
"""Number of frames from which batches are drawn."""
PEOPLE, VIEWS = 500, 8
"""Number of people, and of views of each, from which the identity directions are learned."""
STRANGERS = 3 << 22
"""First seed of the people on whom they are tested, far from the records' seeds."""
IMPORTANCE = {"mouth": 2.0, "rotation": 2.0, "place": 1.0}
"""Weight of each quantity in the loss."""


def true_measures(record, at: np.ndarray, windows: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Returns the true measures (F, TARGETS) of F cropped frames.

    Args:
        record: a record of the rendered world.
        at: frame indices (F,).
        windows: top and left edge of each crop, (F, 2).
        flip: whether each crop is mirrored, (F,).
    """
    boxes = record["boxes"][at] - np.tile(windows[:, ::-1], 2)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    place = np.concatenate([centre, size], 1) / probe.SIZE
    place[:, 0] = np.where(flip, 1 - place[:, 0], place[:, 0])
    rotation = record["rotation"][at] * np.where(flip[:, None], [-1, 1, -1], 1)
    return np.concatenate([record["mouth"][at], rotation, place], 1).astype(np.float32)


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Degrades a frame as a decoder may: blur, lost detail, noise, changed brightness, contrast and colour."""
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.3:
        small = round(image.shape[0] * rng.uniform(0.45, 1))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        kind = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
        image = cv2.resize(image, (probe.SIZE, probe.SIZE), interpolation=kind)
    out = image.astype(np.float32)
    if rng.random() < 0.4:
        coarse = rng.normal(0, rng.uniform(1, 7), (*rng.choice([16, 32, 64, 128], 2), 3)).astype(np.float32)
        out += cv2.resize(coarse, (probe.SIZE, probe.SIZE))
    if rng.random() < 0.6:
        out = (out - 128) * rng.uniform(0.94, 1.06) + 128 + rng.normal(0, 4) + rng.normal(0, 2.5, 3).astype(np.float32)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)


class Frames:
    """A pool of frames with their true measures. Before each batch some are replaced from random records."""

    def __init__(self, source, seed: int, size: int = POOL):
        self.source, self.rng = source, np.random.default_rng(seed)
        self.rows = [row for _ in range(size // TAKEN) for row in self._read()]

    def _read(self):
        record = self.source[self.rng.integers(len(self.source))]
        first = int(self.rng.integers((len(record["boxes"]) - 1) // RUN + 1)) * RUN
        count = min(RUN, len(record["boxes"]) - first)
        frames = decode_video(record["video"], first, count)
        return [(frames[i], record, first + i) for i in self.rng.permutation(count)[:TAKEN]]

    def batch(self, size: int, runs: int = 2):
        """Returns degraded frames uint8 (size, 128, 128, 3) and their true measures (size, TARGETS)."""
        for row in (row for _ in range(runs) for row in self._read()):
            self.rows[self.rng.integers(len(self.rows))] = row
        pairs = [view(self.rng, *self.rows[i], degraded=True) for i in self.rng.integers(len(self.rows), size=size)]
        return tuple(np.stack(column) for column in zip(*pairs, strict=True))


def view(rng, frame, record, at: int, degraded: bool):
    """Returns one random crop of a frame and its true measures; `degraded` also mirrors half of them."""
    top, left = (int(rng.integers(length - probe.SIZE + 1)) for length in frame.shape[:2])
    image = frame[top : top + probe.SIZE, left : left + probe.SIZE]
    flip = degraded and bool(rng.random() < 0.5)
    truth = true_measures(record, np.array([at]), np.array([[top, left]]), np.array([flip]))[0]
    image = np.ascontiguousarray(image[:, ::-1] if flip else image)
    return (degrade(rng, image) if degraded else image), truth


def views_of(source, positions, per_record: int, seed: int, degraded: bool):
    """Returns `per_record` views of every record, spread over time: frames (R, V, ...) and measures (R, V, TARGETS)."""
    frames, truths = [], []
    for position in positions:
        rng, record = np.random.default_rng([seed, int(position)]), source[position]
        total = len(record["boxes"])
        at = np.linspace(0, total - 1, per_record).round().astype(int)
        pairs = [view(rng, decode_video(record["video"], int(i), 1)[0], record, int(i), degraded) for i in at]
        images, truth = zip(*pairs, strict=True)
        frames.append(np.stack(images))
        truths.append(np.stack(truth))
    return np.stack(frames), np.stack(truths)


def disguised_views(seeds, count: int, size: int = 160) -> np.ndarray:
    """Renders each person `count` times with different clothes, background and pose, uint8 (P, count, 128, 128, 3).

    Identity is thus learned and tested on faces, not on what surrounds them.
    """
    people = []
    for seed in seeds:
        rng, person = np.random.default_rng([int(seed), 9]), Identity.sample(seed)
        views = []
        for _ in range(count):
            other = Identity.sample(int(rng.integers(1 << 40, 1 << 41)))
            names = ("background", "background_colours", "clothes", "clothes_colours")
            disguised = dataclasses.replace(person, **{name: getattr(other, name) for name in names})
            yaw, pitch, roll = rng.uniform(-0.9, 0.9, 3) * POSE_LIMITS
            blink, opening = float(rng.random() < 0.1), max(rng.uniform(-0.5, 1), 0)
            (shift_x, shift_y), brow = rng.uniform(-0.01, 0.01, 2), rng.random()
            gaze_x, gaze_y = rng.uniform(-1, 1, 2)
            state = State(yaw, pitch, roll, shift_x, shift_y, blink, brow, gaze_x, gaze_y, opening, rng.random())
            top, left = rng.integers(size - probe.SIZE + 1, size=2)
            image = render(disguised, state, size)[top : top + probe.SIZE, left : left + probe.SIZE]
            views.append(degrade(rng, np.ascontiguousarray(image)))
        people.append(np.stack(views))
    return np.stack(people)


def make_step(steps: int, learning_rate: float):
    """Returns the optimizer and the jitted step(weights, state, average, frames, truth)."""
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, min(100, steps // 2), steps, learning_rate * 0.01)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))

    def loss_fn(weights, frames, truth):
        error = probe.Probe().apply({"params": weights}, probe.to_input(frames)) - truth
        parts = {name: optax.huber_loss(part).mean() for name, part in probe.split(error).items()}
        return sum(IMPORTANCE[name] * part for name, part in parts.items()), parts

    @jax.jit
    def step(weights, state, average, frames, truth):
        (_, parts), gradient = jax.value_and_grad(loss_fn, has_aux=True)(weights, frames, truth)
        updates, state = optimiser.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        average = jax.tree.map(lambda a, w: 0.99 * a + 0.01 * w, average, weights)
        return weights, state, average, parts

    return optimiser, step


def train(data: str, output: str, steps: int, *, init: str | None = None, batch: int = 64, seed: int = 0) -> dict:
    """Trains the measuring network and returns its accuracies.

    Args:
        data: directory of records of the rendered world.
        output: safetensors file to write, also every 250 steps.
        steps: number of steps.
        init: file of weights to start from.
        batch: batch size.
        seed: seed of the batches.
    """
    source = open_records(data, "train")
    pool = Frames(source, seed)
    if init is None:
        sample = np.concatenate([pool.batch(256, 0)[1] for _ in range(8)])
        statistics = {"mean": sample.mean(0), "scale": np.maximum(sample.std(0), 1e-3)}
        params = probe.fresh_params(seed) | statistics
    else:
        params = dict(probe.load_probe(init))
    weights = params["weights"]
    optimiser, step = make_step(steps, 2e-3)
    state, average, started = optimiser.init(weights), weights, time.monotonic()
    for done in range(1, steps + 1):
        frames, truth = pool.batch(batch)
        truth = (truth - params["mean"]) / params["scale"]
        weights, state, average, parts = step(weights, state, average, frames, jnp.asarray(truth))
        if done % 50 == 0 or done == steps:
            line = ", ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
            print(f"step {done}/{steps}: {line}; {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if done % 250 == 0 or done == steps:
            probe.save_probe(output, params | {"weights": average})
    params["weights"] = average
    views = disguised_views(range(PEOPLE), VIEWS)
    params["identity"] = discriminants(probe.measure(params, views)["thumbnail"], probe.IDENTITY)
    probe.save_probe(output, params)
    return accuracy(probe.load_probe(output), open_records(data, "validation"))


def accuracy(params: dict, source, per_record: int = 12, degraded: bool = False) -> dict:
    """Returns how well frames of other people are measured.

    Returns:
        opening_r and width_r: Pearson r; yaw, pitch and roll: mean absolute error in degrees; centre and size: mean
        absolute error in pixels; identity: fraction of views whose nearest first view is of the same person;
        identity_disguised: the same for 64 people whose clothes and background change from view to view.
    """
    frames, truth = views_of(source, np.arange(len(source)), per_record, 2, degraded)
    found, true = probe.measure(params, frames), probe.split(truth)
    error = np.abs(found["rotation"] - true["rotation"]).mean((0, 1))
    disguised = probe.measure(params, disguised_views(range(STRANGERS, STRANGERS + 64), 6))
    return {
        "opening_r": _correlation(found["opening"], true["mouth"][..., 0]),
        "width_r": _correlation(found["width"], true["mouth"][..., 1]),
        **{f"{name}_degrees": float(value) for name, value in zip(("yaw", "pitch", "roll"), error, strict=True)},
        "centre_pixels": float(probe.SIZE * np.abs(found["centre"] - true["place"][..., :2]).mean()),
        "size_pixels": float(probe.SIZE * np.abs(found["size"] - true["place"][..., 2:]).mean()),
        "identity": _retrieved(found["identity"]),
        "identity_disguised": _retrieved(disguised["identity"]),
    }


def _retrieved(identity) -> float:
    """Returns the fraction of later views (P, V, K) that are nearest to the first view of the same person."""
    return float((nearest(identity[:, 1:], identity[:, 0]) == np.arange(len(identity))[:, None]).mean())


def _correlation(a, b) -> float:
    a, b = np.ravel(a), np.ravel(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def main(argv=None) -> None:
    """Runs `python -m emo_jax.evaluation.train_probe`."""
    parser = argparse.ArgumentParser("train_probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="directory of emo prepare synthetic")
    parser.add_argument("--output", required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--init", metavar="FILE", help="start from these weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print(json.dumps(train(args.data, args.output, args.steps, init=args.init, seed=args.seed), indent=1))


if __name__ == "__main__":
    main()

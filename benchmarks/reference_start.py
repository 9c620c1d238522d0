"""Compares the initial values of reference-attention that `emo convert` offers (model.init.reference), on miniatures.

    JAX_PLATFORMS=cpu python -m benchmarks.reference_start --vae runs/vae

Stable Diffusion is replaced by a small UNet that is trained here to denoise drawn people from a prompt: one token per
attribute of the person. Its weights are converted with each choice, and stage `image` is trained from each with equal
batches and noise. The loss on people who are not trained on says how good the start is. "reference" is the relative
reduction of that loss by the right reference instead of that of another person: what reference-attention contributes.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from emo_jax.configs import tiny
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from emo_jax.diffusion import schedule as diffusion
from emo_jax.models.conditions import Conditions
from emo_jax.models.emo import build
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.world import Track, face_box, render
from emo_jax.tables import format_table
from emo_jax.training.losses import denoising_loss
from emo_jax.training.stages import get_stage
from emo_jax.weights import names
from emo_jax.weights.assemble import assemble
from emo_jax.weights.store import load_model

STARTS = ("self", "attn1", "zero")
VIEWS, BATCH, SIZE = 6, 8, 128
HELD_OUT = 16
"""People of the measured loss."""
OPTIMIZER = optax.adam(optax.linear_schedule(0.0, 4e-4, 30))
"""Of the students."""


def main() -> None:
    """Trains the stand-in and all students, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", required=True, help="run of emo train --config tiny:vae, or its exported weights")
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    config = student_config()
    emo = build(config)
    latents, masks, prompts = encode_people(args.vae, args.people)
    print(f"{args.people} people, {VIEWS} views each, latents {latents.shape[2:]}", flush=True)
    teacher = train_teacher(emo, latents, prompts, args.teacher_steps)
    rows = []
    for seed in range(args.seeds):
        for start in STARTS:
            found = train_student(start, teacher, latents, masks, args.steps, seed)
            rows += [[start, str(seed), str(step), *(f"{value:.4f}" for value in values)] for step, values in found]
            print(format_table(rows[-len(found) :]), flush=True)
    print(format_table(rows, ("start", "seed", "step", "loss", "other reference", "reference"), "<>>>>>"))


def student_config(start: str = "self") -> ConfigDict:
    """Returns the config of stage `image` of a miniature; reference-attention has no positions, as in base.py."""
    config = tiny.get_config("image")
    config.model.unet.update(channels=(48, 96), heads=4, groups=8)
    config.model.update(audio_attention=False, temporal_modules=False, speed_layers=False, reference_positions=False)
    config.model.init.reference = start
    return config


def encode_people(vae: str, people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns latents (people, views, h, w, c), masks (people, views, H, W, 1) and prompts (people, tokens, size)."""
    emo, params = load_model(vae)
    encode = jax.jit(functools.partial(emo.encode, params))
    latents, masks, prompts = [], [], []
    for seed in range(people):
        identity, rng = Identity.sample(seed), np.random.default_rng([seed, 9])
        track = Track.sample(rng, 25 * VIEWS, 25.0, None, 0.0)
        states = [track.state(25 * view, rng.uniform(0, 1, 2)) for view in range(VIEWS)]
        latents.append(np.asarray(encode(jnp.asarray(np.stack([render(identity, s, SIZE) for s in states])[:, None]))))
        masks.append(np.stack([_mask(face_box(identity, state, SIZE)) for state in states]))
        prompts.append(np.concatenate([np.eye(len(identity.appearance)), np.diag(identity.appearance)], axis=1))
    return np.stack(latents)[:, :, 0], np.stack(masks), np.float32(prompts)


def _mask(box: np.ndarray) -> np.ndarray:
    mask, (x0, y0, x1, y1) = np.zeros((SIZE, SIZE, 1), np.uint8), np.clip(box, 0, SIZE).astype(int)
    mask[y0:y1, x0:x1] = 1
    return mask


def train_teacher(emo: Any, latents: np.ndarray, prompts: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Returns the weights of a UNet with attention to prompts, trained to denoise: the stand-in of Stable Diffusion."""
    schedule, net, rng = diffusion.make_schedule(emo.config.diffusion), emo.backbone, np.random.default_rng(0)
    layers = list(jax.eval_shape(emo.reference_features, emo.abstract_params(), jnp.zeros((1, 1, *latents.shape[2:]))))

    def conditions(prompt: Any) -> Conditions:
        return Conditions(reference=dict.fromkeys(layers, prompt[:, None, :, None]), temporal=False)

    def loss(params: Any, x0: Any, prompt: Any, key: Any) -> Any:
        times, draws = jax.random.split(key)
        t = jax.random.randint(times, (len(x0),), 0, schedule.train_steps)
        noise = jax.random.normal(draws, x0.shape)
        found = net.apply({"params": params}, diffusion.add_noise(schedule, x0, noise, t), t, conditions(prompt))[0]
        error = (found - diffusion.target(schedule, schedule.prediction, x0, noise, t)) ** 2
        weight = diffusion.loss_weight(schedule, t, schedule.prediction, schedule.min_snr_gamma)
        return (weight * error.mean((1, 2, 3, 4))).mean()

    first = jnp.asarray(latents[:2, :1]), jnp.zeros(2, jnp.int32), conditions(jnp.asarray(prompts[:2]))
    params = net.init(jax.random.key(0), *first)["params"]
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1.5e-3, 50, steps))
    step = _step(loss, optimizer)
    state, losses, started = optimizer.init(params), [], time.monotonic()
    for number in range(steps):
        who = rng.integers(HELD_OUT, len(latents), BATCH)
        x0 = latents[who, rng.integers(VIEWS, size=BATCH)][:, None]
        params, state, value = step(params, state, x0, prompts[who], jax.random.key(number))
        losses.append(float(value))
        if number % 50 == 49:
            print(f"teacher {number + 1}: {np.mean(losses[-50:]):.4f}, {time.monotonic() - started:.0f} s", flush=True)
    flat = flatten_dict(params, sep="/")
    kept = {path: np.asarray(a) for path, a in flat.items() if "/norm_reference/" not in path}
    return dict(names.from_path(path, a) for path, a in kept.items())


def train_student(
    start: str, teacher: dict[str, np.ndarray], latents: np.ndarray, masks: np.ndarray, steps: int, seed: int
) -> list[tuple[int, tuple[float, ...]]]:
    """Trains stage `image` from a converted teacher; returns (step, measured losses) at several steps."""
    config = student_config(start)
    emo, rng = build(config), np.random.default_rng([seed, 1])
    flat, _ = assemble(emo, {"unet": ("teacher", teacher)}, jax.random.key(seed))
    vae = {path: a for path, a in flat.items() if path.startswith("vae/")}
    params = {path: jnp.asarray(a, jnp.float32) for path, a in flat.items() if path not in vae}
    step, state, found = _programs()[0], OPTIMIZER.init(params), []
    for number in range(steps + 1):
        if number in (0, steps // 4, steps // 2, steps):
            own, other = _measure(params, latents, masks)
            found.append((number, (own, other, 1 - own / other)))
        who, views = rng.integers(HELD_OUT, len(latents), BATCH), rng.permuted(_choices(BATCH), axis=1)[:, :2]
        batch = _batch(latents, masks, who, views[:, 0], who, views[:, 1])
        params, state, _ = step(params, state, batch, jax.random.key(seed * 10**6 + number))
    return found


@functools.cache
def _programs() -> tuple[Any, Any]:
    """Returns a training step of stage `image`, and its loss without dropped references; all starts share them."""
    config = student_config()
    emo, stage = build(config), get_stage("image")
    schedule = diffusion.make_schedule(config.diffusion)
    config.train.update(drop_reference=0.1)

    def loss(params: Any, batch: Any, key: Any, train: Any) -> Any:
        return denoising_loss(emo, schedule, stage, train, unflatten_dict(params, sep="/"), batch, key)[0]

    measured = config.train.copy_and_resolve_references()
    measured.update(drop_reference=0.0, drop_both=0.0)
    step = _step(functools.partial(loss, train=config.train), OPTIMIZER)
    return step, jax.jit(functools.partial(loss, train=measured))


def _measure(params: Any, latents: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Returns the loss on held-out people with their own references, and with those of other people."""
    results = []
    for shift in (0, 1):
        values = []
        for number in range(12):
            views = np.random.default_rng([number, 2]).permuted(_choices(BATCH), axis=1)
            who = np.arange(BATCH) + number % 2 * (HELD_OUT - BATCH)
            batch = _batch(latents, masks, who, views[:, 0], (who + shift) % HELD_OUT, views[:, 1])
            values.append(float(_programs()[1](params, batch, jax.random.key(number))))
        results.append(float(np.mean(values)))
    return results[0], results[1]


def _step(loss: Any, optimizer: Any) -> Any:
    def step(params: Any, state: Any, *inputs: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, *inputs)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step)


def _choices(count: int) -> np.ndarray:
    return np.tile(np.arange(VIEWS), (count, 1))


def _batch(latents: np.ndarray, masks: np.ndarray, who: Any, view: Any, other: Any, reference: Any) -> dict[str, Any]:
    """Returns a batch of stage `image`: frames `view` of people `who`, references of people `other`."""
    frames = latents[who, view][:, None]
    return dict(
        frames=frames, motion=frames[:, :0], reference=latents[other, reference], mask=masks[who, view],
        has_motion=np.zeros(len(frames), bool), speed=np.zeros((len(frames), 1), np.float32),
    )  # fmt: skip


if __name__ == "__main__":
    main()

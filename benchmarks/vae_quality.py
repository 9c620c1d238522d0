"""Measures how well autoencoders reconstruct pictures that they were not trained on.

    python -m benchmarks.vae_quality RUN_OR_WEIGHTS... --records data/people-0 --pictures FOLDER

Prints one row for each of the weights: the step, the PSNR on held-out records (one frame of each) and on the pictures
of a folder, cut to squares of 256x256 pixels, and the seams: how much larger the gradient is between latents than
elsewhere, relative to the original's (1: no seams). A VAE of flow makes the middle frame of a record from its first
frame; of a picture, it repeats the picture. `copy dB` is the PSNR of the first frame itself. The weights of a run are
those of its newest checkpoint; `--csv` appends the rows to a file, which becomes the curve of a run over its steps.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from emo_jax.data.motion_fields import Points, motion_field, named_points
from emo_jax.data.records import open_records
from emo_jax.media.images import load_image
from emo_jax.media.mp4 import decode_video
from emo_jax.models.emo import build, to_float
from emo_jax.models.frame_latents import decode_frames, encode_clips
from emo_jax.weights.store import read_flat

SIZE = 256
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


Pairs = list[tuple[np.ndarray, np.ndarray, Points | None, Points | None]]
"""Reference image and frame (SIZE, SIZE, 3) uint8, and the landmarks of the frame and of the reference image."""


def held_out_frames(directory: str, split: str, count: int) -> Pairs:
    """Returns the first and the middle frames of the first records of a split."""
    source = open_records(directory, split)
    pairs = []
    for record in (source[k] for k in range(min(count, len(source)))):
        middle = len(record["boxes"]) // 2
        reference, frame = (decode_video(record["video"], k, 1)[0] for k in (0, middle))
        points = named_points(record["landmarks"])
        height, width = frame.shape[:2]
        if points is not None:
            points = (points - [(width - min(height, width)) // 2, 0]) * SIZE / min(height, width)
        known, moved = (None, None) if points is None else points[[0, middle]]
        pairs.append((square(reference), square(frame), moved, known))
    return pairs


def square(image: np.ndarray) -> np.ndarray:
    """Returns the upper middle square of a picture, (SIZE, SIZE, 3) uint8."""
    height, width = image.shape[:2]
    side = min(height, width)
    left = (width - side) // 2
    return cv2.resize(image[:side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def psnr(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the peak signal-to-noise ratio (N,) in dB of pictures (N, H, W, 3) in [-1, 1]."""
    return -10 * np.log10(((made - true) ** 2).mean((1, 2, 3)) / 4 + 1e-12)


def seams(made: np.ndarray, true: np.ndarray, factor: int) -> float:
    """Returns the mean gradient across the grid of latents by that elsewhere, relative to the same of the originals."""

    def ratio(images: np.ndarray) -> float:
        steps = [np.abs(np.diff(images, axis=axis)).mean((0, 3)) for axis in (1, 2)]
        profiles = [steps[0].mean(1), steps[1].mean(0)]
        on = np.concatenate([profile[factor - 1 :: factor] for profile in profiles])
        off = np.concatenate([np.delete(p, np.arange(factor - 1, len(p), factor)) for p in profiles])
        return on.mean() / off.mean()

    return ratio(made) / ratio(true)


def newest_step(name: str) -> int | None:
    """Returns the step of a run's newest checkpoint; None for exported weights."""
    folder = pathlib.Path(name) / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=None)


def measure(name: str, sets: dict[str, Pairs]) -> list[str]:
    """Returns the row of weights: the step, and of each set the PSNR of frames and of copies, and the seams."""
    step = newest_step(name)
    config, flat = read_flat(name)
    emo = build(config)
    params = unflatten_dict({path: jnp.asarray(a, jnp.float32) for path, a in flat.items()}, sep="/")
    cell = emo.vae.config.flow_cell

    @jax.jit
    def decoded(references: jax.Array, frames: jax.Array, field: np.ndarray | None) -> jax.Array:
        _, latents = encode_clips(emo, params, references, frames, field)
        return decode_frames(emo, params, latents[:, 1:], references)[:, 0]

    row = [name, "" if step is None else str(step)]
    for pairs in sets.values():
        made = []
        for reference, frame, moved, known in pairs:
            field = motion_field(frame, reference, cell, moved, known)[None, None] if cell else None
            made.append(decoded(jnp.asarray(reference[None]), jnp.asarray(frame[None, None]), field)[0])
        copies, true, result = (np.asarray(to_float(np.stack(a))) for a in (*list(zip(*pairs, strict=True))[:2], made))
        values = psnr(result, true)
        row += [f"{values.mean():.2f}", f"{values.min():.2f}", f"{psnr(copies, true).mean():.2f}"]
        row.append(f"{seams(result, true, emo.vae.config.factor):.3f}")
    return row


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="runs of emo train, folders of weights, or presets")
    parser.add_argument("--records", help="directory of records")
    parser.add_argument("--split", default="validation", help="split of the records (default validation)")
    parser.add_argument("--count", type=int, default=32, help="number of records (default 32)")
    parser.add_argument("--pictures", type=pathlib.Path, help="folder of pictures")
    parser.add_argument("--csv", type=pathlib.Path, help="file to append the rows to")
    args = parser.parse_args()
    sets = {}
    try:
        if args.records:
            sets["records"] = held_out_frames(args.records, args.split, args.count)
        if args.pictures:
            paths = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() in SUFFIXES)
            pictures = [square(load_image(path)) for path in paths]
            sets["pictures"] = [(picture, picture, None, None) for picture in pictures]
        if not sets:
            parser.error("give --records, --pictures, or both")
        columns = "dB", "least dB", "copy dB", "seams"
        header = ["weights", "step", *(f"{name} {column}" for name in sets for column in columns)]
        print("\t".join(header))
        for name in args.weights:
            row = measure(name, sets)
            print("\t".join(row), flush=True)
            if args.csv:
                new = not args.csv.exists()
                with args.csv.open("a", newline="") as stream:
                    csv.writer(stream).writerows([header, row] if new else [row])
    except (ValueError, OSError) as error:
        print(f"vae_quality.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Voices with the lips that speak them, without pictures: a person takes a quarter of a second instead of ten.

    python -m emo_jax.synthetic.people.lips --people 3000 -o data/small/lips.npz

`emo_jax.training.lip_pretraining` reads them beside rendered records: what a voice does to a mouth takes more voices to
learn than can be rendered.
"""

from __future__ import annotations

import argparse
import functools

import numpy as np

from emo_jax.files import atomic_write
from emo_jax.media.audio import quantise
from emo_jax.progress import Progress
from emo_jax.synthetic.people.geometry import Head
from emo_jax.synthetic.people.identity import Person
from emo_jax.synthetic.people.voices import check_voices
from emo_jax.synthetic.people.world import mouth_of, perform
from emo_jax.synthetic.world import SPLIT_SEEDS
from emo_jax.workers import map_in_order

VALIDATION = 64
"""People of the split validation."""


def lips_of(seed: int, seconds: float, fps: float = 25.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the voice (samples,) int16 at 16 kHz and the mouth (frames, 2) of a seed's person, as a record has them.

    Args:
        seed: as of `people.world.make_record`.
        seconds: length.
        fps: frames per second.
    """
    head, done = Head(Person.sample(seed)), perform(seed, seconds, fps)
    mouth = [mouth_of(head, head.deform(pose.weights)) for pose in done.poses]
    return quantise(done.sound), np.clip(mouth, 0, 1).astype(np.float32)


def main(arguments: list[str] | None = None) -> None:
    """Writes `sound` (people, samples), `mouth` (people, frames, 2) and `validation` (people,) to a .npz file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, help="the .npz file")
    parser.add_argument("--people", type=int, default=3000, help="number of people (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a voice (default %(default)s)")
    parser.add_argument("--seed", type=int, default=900, help="random seed (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="number of processes (default %(default)s)")
    args = parser.parse_args(arguments)
    check_voices()
    first, found = 2 * args.seed * SPLIT_SEEDS, []  # as `prepare_synthetic`, so that equal seeds are equal people
    speak = functools.partial(lips_of, seconds=args.seconds)
    with Progress(args.people, "voices", "person") as progress:
        for voice in map_in_order(speak, range(first, first + args.people), args.workers):
            found.append(voice)
            progress.add()
    sound, mouth = (np.stack(rows) for rows in zip(*found, strict=True))
    with atomic_write(args.output) as partial, open(partial, "wb") as file:
        np.savez(file, sound=sound, mouth=mouth, validation=np.arange(args.people) < min(VALIDATION, args.people // 10))


if __name__ == "__main__":
    main()

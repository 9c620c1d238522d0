"""`emo prepare synthetic --world people`: data sets of rendered people, of drawn ones, or of both."""

from __future__ import annotations

import functools
import pathlib
import pickle

import numpy as np

from emo_jax.data.records import Record
from emo_jax.files import atomic_write
from emo_jax.synthetic import world as drawn
from emo_jax.synthetic.people import world as people
from emo_jax.synthetic.people.assets import load_heads
from emo_jax.synthetic.people.drawn import make_drawn_record
from emo_jax.synthetic.people.renderer import check_renderer
from emo_jax.synthetic.people.voices import check_voices

WORLDS = ("people", "mix")
DRAWN_SHARE = 0.15  # of the mix


def prepare_world(
    output: str,
    world: str = "people",
    *,
    seconds: float = 5.0,
    size: int = 256,
    fps: float = 25.0,
    head_motion: float = 1.0,
    **options,
) -> None:
    """Writes the splits train and validation of a world to `output`. Equal arguments give equal records.

    Records of people take seconds each. They are kept beside `output` until all are there, so a run that was killed
    goes on where it stopped.

    Args:
        output: the directory to write; it must not exist yet.
        world: one of `WORLDS`.
        seconds: length of a record.
        size: side of the frames in pixels.
        fps: frames per second.
        head_motion: factor of the heads' motion, see `emo_jax.synthetic.world.Track.sample`.
        **options: of `emo_jax.synthetic.world.prepare_synthetic`.

    Raises:
        ValueError: if an argument makes no sense, or OpenGL, the data of the heads or the voices are missing.
    """
    if world not in WORLDS:
        raise ValueError(f"--world is {world}; choose one of {', '.join(WORLDS)}")
    for name in ("follow", "babble"):
        if options.get(name):
            raise ValueError(f"--{name} is an option of --world drawn; leave it out")
    check_tools()
    target = pathlib.Path(output).absolute()
    parts = target.with_name(f".{target.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    made = dict(seconds=seconds, size=size, fps=fps)
    make = functools.partial(make_kept_record, folder=str(parts), world=world, head_motion=head_motion, **made)
    drawn.prepare_synthetic(output, **made, head_motion=head_motion, make=make, **options)
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()


def check_tools() -> None:
    """Raises ValueError if OpenGL, the data of the heads or the voices are missing."""
    load_heads()
    check_renderer()
    check_voices()


def make_kept_record(
    seed: int, *, folder: str, world: str, seconds: float, size: int, fps: float, head_motion: float = 1.0
) -> Record:
    """Returns the record of a seed, which is kept in `folder` for a later run with the same arguments."""
    path = pathlib.Path(folder) / f"{world}-{seed}-{seconds:g}-{size}-{fps:g}-{head_motion:g}.pickle"
    if path.is_file():
        return pickle.loads(path.read_bytes())
    record = make_world_record(seed, world, seconds=seconds, size=size, fps=fps, head_motion=head_motion)
    with atomic_write(path) as partial:
        partial.write_bytes(pickle.dumps(record))
    return record


def make_world_record(seed: int, world: str, **options) -> Record:
    """Returns the record of a seed in a world; in the mix, `DRAWN_SHARE` of the people are drawn.

    `options` are those of `people.world.make_record`.
    """
    if world == "mix" and np.random.default_rng([seed, 30]).random() < DRAWN_SHARE:
        return make_drawn_record(seed, **options)
    return people.make_record(seed, **options)

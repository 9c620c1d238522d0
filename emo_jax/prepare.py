"""`emo prepare`: write records (TFDS datasets of ArrayRecord files) to train on."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections.abc import Iterable, Iterator

from emo_jax.data.records import Record, write_records
from emo_jax.data.synthetic import make_record
from emo_jax.progress import Progress

_SPLIT_SEEDS = 1 << 24  # records of one split; validation's people and voices come from seeds that training never uses


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb `prepare` to the command line."""
    parser = subparsers.add_parser("prepare", help="write records to train on", description=__doc__)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    synthetic = sources.add_parser("synthetic", help="draw people who talk: an endless world with known truth")
    synthetic.add_argument("--output", required=True, help="directory to write; must not exist yet")
    synthetic.add_argument("--records", type=int, default=800, help="people in the split train (default %(default)s)")
    synthetic.add_argument(
        "--held-out", type=int, default=32, help="other people, in the split validation (default %(default)s)"
    )
    synthetic.add_argument("--seconds", type=float, default=5.0, help="length of a record (default %(default)s)")
    synthetic.add_argument(
        "--size", type=int, default=160, help="side of the frames in pixels, even (default %(default)s)"
    )
    synthetic.add_argument("--fps", type=float, default=25.0, help="frames per second (default %(default)s)")
    synthetic.add_argument("--seed", type=int, default=0, help="other seeds give other people (default %(default)s)")
    synthetic.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes; their number changes no record (default %(default)s)",
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> None:
    """Run `emo prepare SOURCE`. Raises ValueError on arguments that make no sense."""
    if args.source != "synthetic":
        raise ValueError(f"source {args.source!r} is unknown; choose synthetic")
    prepare_synthetic(
        args.output,
        records=args.records,
        held_out=args.held_out,
        seconds=args.seconds,
        size=args.size,
        fps=args.fps,
        seed=args.seed,
        workers=args.workers,
    )


def prepare_synthetic(
    output: str,
    *,
    records: int = 800,
    held_out: int = 32,
    seconds: float = 5.0,
    size: int = 160,
    fps: float = 25.0,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Write the splits train and validation of the procedural world to `output`. Equal arguments give equal records."""
    for name, value, least in (
        ("--records", records, 1),
        ("--held-out", held_out, 1),
        ("--workers", workers, 1),
        ("--seed", seed, 0),
    ):
        if value < least or value >= _SPLIT_SEEDS:
            raise ValueError(f"{name} is {value}; give a whole number from {least} to {_SPLIT_SEEDS - 1}")
    if size % 2 or size < 16:
        raise ValueError(f"--size is {size}; video needs an even side of at least 16 pixels")
    if not seconds * fps >= 2:
        raise ValueError(f"--seconds {seconds} at --fps {fps} is less than two frames; make the records longer")
    make = functools.partial(make_record, seconds=seconds, size=size, fps=fps)
    first = 2 * seed * _SPLIT_SEEDS

    def split(name: str, start: int, count: int) -> Iterator[Record]:
        return report(ordered(make, range(start, start + count), workers), count, name)

    write_records(
        output,
        {
            "train": lambda: split("train", first, records),
            "validation": lambda: split("validation", first + _SPLIT_SEEDS, held_out),
        },
        progress=False,
    )


def ordered(make, seeds: Iterable[int], workers: int) -> Iterator[Record]:
    """make(seed) for each seed, in order, in `workers` fresh processes (in this one if 1)."""
    if workers == 1:
        yield from map(make, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(make, seeds, chunksize=1)


def report(items: Iterable[Record], count: int, name: str) -> Iterator[Record]:
    """Passes the records on and tells the progress."""
    with Progress(count, name, "record", every=10) as progress:
        for item in items:
            yield item
            progress.add()

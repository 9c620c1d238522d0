"""Trains and evaluates every point of a sweep, one after the other, and compares them.

A sweep file names a config and the stages that each point trains, and yields the points: names and overrides. Without
stages, each point evaluates --checkpoint with the sampling that its overrides set. The same command continues an
interrupted sweep. It writes OUTPUT/sweep.csv and sweep.png, and prints the table. --config.key=value applies to every
stage of every point.

Example:
  emo sweep reference_attention --init-from runs/vae -o runs/reference --config.train.steps=1000 --dry-run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emo_jax.cli.arguments import add_output, add_verb
from emo_jax.weights.presets import DEFAULT


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `sweep` to the command line."""
    parser = add_verb(subparsers, "sweep", __doc__)
    parser.add_argument("file", help="a sweep file, or the name of one of configs/sweeps")
    add_output(parser, "folder of the points; an existing one is continued", required=True)
    parser.add_argument("--init-from", default="", help="run or weights that each point's first stage starts from")
    parser.add_argument("--checkpoint", default=DEFAULT, help="weights to evaluate if the sweep trains nothing")
    parser.add_argument("--points", nargs="+", metavar="NAME", help="some of the points (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the points and exit")
    parser.add_argument("--table", action="store_true", help="compare the points finished so far and exit")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and exit")
    parser.set_defaults(main=main, takes_more=True)


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Runs `emo sweep`; returns the exit status."""
    from emo_jax.evaluation.sweep import compare, format_plans, load_sweep, plan, run_points, select_points

    unknown = [text for text in rest if not (text.startswith("--config.") and "=" in text)]
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}; overrides are written --config.key=value")
    sweep, output = load_sweep(args.file), Path(args.output)
    names = select_points(sweep, args.points)
    if args.list:
        print("\n".join(names))
        return 0
    if args.table:
        if not output.is_dir():
            raise ValueError(f"--output {output} is no folder of points; give the folder of a sweep that has run")
        print(compare(sweep, output))
        return 0
    plans = {name: plan(sweep, name, output / name, args.init_from, args.checkpoint, rest) for name in names}
    if args.dry_run:
        print(format_plans(plans, output))
        return 0
    return run_points(sweep, output, plans)

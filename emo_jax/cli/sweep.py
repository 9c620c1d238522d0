"""`emo sweep`: trains and evaluates every point of a sweep, one after the other, and compares them.

emo sweep configs/sweeps/reference_attention.py --output runs/reference --init-from runs/vae \\
    --config.data.directory=data/synthetic --config.train.steps=1000

A sweep file names a config and the stages that each point trains, and yields the points: names and overrides. Without
stages each point evaluates --checkpoint with the sampling fields that it overrides. When the command is given again,
finished points are skipped and interrupted ones resume. It writes OUTPUT/sweep.csv and sweep.png, and prints a table.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from emo_jax.evaluation.sweep import FINISHED, _chosen, _claim, _run_point, compare, load_sweep, plan


def add_parser(subparsers) -> None:
    """Adds the verb `sweep` to the command line."""
    parser = subparsers.add_parser(
        "sweep",
        help="train and evaluate variants, and compare them",
        description=__doc__,
        epilog="also takes --config.key=value, for every stage of every point",
    )
    parser.add_argument("file", help="one of configs/sweeps/")
    parser.add_argument("--output", required=True, help="folder of the points; one that is there already goes on")
    parser.add_argument("--init-from", default="", help="run or weights that each point's first stage starts from")
    parser.add_argument("--checkpoint", default="tiny", help="weights of a sweep that trains none")
    parser.add_argument("--points", nargs="+", metavar="NAME", help="some of the points (default: all)")
    parser.add_argument("--list", action="store_true", help="print the points' names, run none")
    parser.add_argument("--table", action="store_true", help="compare the points finished so far, run none")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.set_defaults(main=main, takes_config="overrides")


def main(args, common: list[str]) -> int:
    """Runs `emo sweep`; returns the exit status: that of the points that failed, 1 if theirs differ."""
    sweep, output = load_sweep(args.file), Path(args.output)
    names = _chosen(sweep, args.points)
    if args.list:
        print("\n".join(names))
        return 0
    if args.table:
        if not output.is_dir():
            raise ValueError(f"--output {output} is no folder of points")
        print(compare(sweep, output))
        return 0
    plans = {name: plan(sweep, name, output / name, args, common) for name in names}
    if args.dry_run:
        for name, steps in plans.items():
            print(f"# {name}{', finished' if (output / name / FINISHED).exists() else ''}")
            print("\n".join(shlex.join(["emo", *command]) for command, _ in steps))
        return 0
    failed = {}
    for count, (name, steps) in enumerate(plans.items(), 1):
        _claim(output / name, sweep, steps)
        status = _run_point(output / name, f"point {count}/{len(plans)} {name}", steps)
        if status in (130, 143):  # told to end, as this command is
            return status
        if status:
            failed[name] = status
    print(compare(sweep, output))
    if not failed:
        return 0
    print(f"emo sweep: failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    statuses = set(failed.values())
    return statuses.pop() if len(statuses) == 1 else 1

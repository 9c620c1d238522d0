r"""Computes whether a program fits the chips of a TPU slice, and how fast it can run there, without the slice.

Compiles the training step of the config's stage, or with --program denoise one guided denoising step of emo generate,
with the compiler of those chips (extra: tpu). --composed compiles each kind of block once and adds up what they need:
minutes instead of 20 minutes and 20 GB of memory at full size, but less exact. --no-compile prints what follows from
shapes alone. Compiled programs are cached. The exit status is 1 if the program does not fit.

With --program generate, says whether many videos are made faster with a device for each, or with several devices for
each, whose guidance passes and frames they share.

The config is given by --config NAME_OR_FILE[:STAGE] and --config.key=value.

Example:
  emo plan --config base:video --topology v5e:4x4 --config.train.mesh.fsdp=16 --config.train.mesh.data=1 \
      --config.train.batch_size=16
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_output, add_verb


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `plan` to the command line."""
    parser = add_verb(subparsers, "plan", __doc__)
    parser.add_argument(
        "--topology", required=True, help="v4, v5e, v5p or v6e and its shape, such as v5p:4x4x4; cpu:N; gpu:N"
    )
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N",
        help="number of TPU slices joined by the data center's network, as train.mesh.dcn_data has them (default: 1)",
    )  # fmt: skip
    programs = ("step", "denoise", "generate")
    parser.add_argument("--program", choices=programs, default="step", help="what to plan (default: %(default)s)")
    parser.add_argument("--videos", type=int, metavar="N", help="number of videos of --program generate (default: 1)")
    parser.add_argument("--seconds", type=float, help="length of each of these videos (default: 10)")
    parser.add_argument("--composed", action="store_true", help="compile each kind of block once and add up")
    parser.add_argument("--no-compile", action="store_true", help="print only what follows from shapes")
    add_output(parser, "JSON file to write as well")
    parser.set_defaults(main=main, takes_more=True)


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Runs `emo plan`; returns the exit status."""
    from emo_jax import config
    from emo_jax.planning.plan import run_plan

    if args.program == "generate":
        from emo_jax.planning.video_groups import run_video_plan

        if args.slices > 1 or args.composed:
            raise ValueError("--program generate plans for one slice, without --composed; leave these options out")
        videos, seconds = 1 if args.videos is None else args.videos, 10.0 if args.seconds is None else args.seconds
        return run_video_plan(
            config.parse(rest or ["--config=base:speed"]),
            args.topology,
            videos=videos,
            seconds=seconds,
            compile=not args.no_compile,
            output=args.output,
        )
    if args.videos is not None or args.seconds is not None:
        raise ValueError(f"--videos and --seconds are for --program generate; --program is {args.program}")
    return run_plan(
        config.parse(rest),
        args.topology,
        args.slices,
        program=args.program,
        composed=args.composed,
        compile=not args.no_compile,
        output=args.output,
    )

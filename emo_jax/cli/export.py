"""Writes the averaged weights of a training run as config.json and model.safetensors, for use and sharing.

Example:
  emo export --workdir runs/speed -o weights
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_output, add_verb
from emo_jax.weights.export import DTYPES, export


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `export` to the command line."""
    parser = add_verb(subparsers, "export", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run of emo train")
    add_output(parser, "folder to write; an earlier export in it is replaced", required=True)
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="type of the numbers (default: %(default)s)")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> None:
    """Runs `emo export`."""
    size = export(args.workdir, args.output, args.dtype)
    print(f"{args.output}: {size / 1e6:.1f} MB, {args.dtype}")

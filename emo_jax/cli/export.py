"""Writes weights to a folder for use and sharing: of a training run, the averaged weights of its newest checkpoint.

--step best takes the checkpoint with the lowest validation loss. Of a run with LoRA, --lora separate writes only what
was trained; --lora FOLDER adds such a folder to other weights.

--to emo writes config.json and model.safetensors. --to diffusers writes model_index.json and a folder per component,
with the names and layouts of diffusers and transformers. EmoPipeline and --checkpoint read both, from the hub as well.

Example:
  emo export --workdir runs/speed -o weights
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_output, add_verb
from emo_jax.weights.export import DTYPES, FORMATS, export


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `export` to the command line."""
    parser = add_verb(subparsers, "export", __doc__)
    parser.add_argument(
        "--workdir", "--checkpoint", dest="weights", metavar="DIR", required=True,
        help="run of emo train, folder of weights, or preset",
    )  # fmt: skip
    add_output(parser, "folder to write; an earlier export in it is replaced", required=True)
    parser.add_argument("--to", choices=FORMATS, default="emo", help="format to write (default: %(default)s)")
    types = "type of the numbers; int8: of large kernels (default: %(default)s)"
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help=types)
    parser.add_argument("--step", default="", help="of a run: a step, or best (default: the newest checkpoint)")
    parser.add_argument(
        "--lora", default="merged", metavar="HOW",
        help="merged, separate, or the folder of a separate export to add (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> None:
    """Runs `emo export`."""
    size = export(args.weights, args.output, args.dtype, args.to, args.step, args.lora)
    print(f"{args.output}: {size / 1e6:.1f} MB, {args.dtype}")

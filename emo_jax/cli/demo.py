"""Makes a talking video of the bundled portrait and voice, and a strip of its frames as a picture beside it.

Fields of the model's `sampling` config are set by --sampling.field=value, for example --sampling.steps=8.

Example:
  emo demo -o out/demo.mp4
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_output, add_verb, add_weights, sampling_fields, weights


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `demo` to the command line."""
    parser = add_verb(subparsers, "demo", __doc__)
    add_output(parser, "mp4 file to write (default: %(default)s)", default="out/demo.mp4")
    add_weights(parser)
    parser.set_defaults(main=main, takes_more=True)


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Runs `emo demo`."""
    from emo_jax.generation.commands import generate_demo

    generate_demo(args.output, weights(args), seed=args.seed, sampling=sampling_fields(rest))

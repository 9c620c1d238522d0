"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from typing import Any

from emo_jax import config as config_lib
from emo_jax.weights.presets import DEFAULT


def add_verb(
    subparsers: argparse._SubParsersAction, name: str, doc: str | None, **options: Any
) -> argparse.ArgumentParser:
    """Adds the parser of a verb.

    Args:
        subparsers: where to add it.
        name: the verb.
        doc: the docstring of the verb's module, which `--help` prints as it is; it ends with an example.
        **options: further arguments of `add_parser`.
    """
    return subparsers.add_parser(name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def add_output(parser: argparse.ArgumentParser, help: str, **options: Any) -> None:
    """Adds -o, --output and its older name --out."""
    parser.add_argument("-o", "--output", "--out", metavar="PATH", help=help, **options)


def add_weights(parser: argparse.ArgumentParser, seed: bool = True) -> None:
    """Adds --preset and --checkpoint, and unless `seed` is False --seed."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", help=f"bundled weights to use (default: {DEFAULT})")
    model.add_argument(
        "--checkpoint", metavar="DIR", help="folder of emo export, run of emo train, or id of a model on the hub"
    )
    if seed:
        parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")


def weights(args: argparse.Namespace) -> str:
    """Returns the preset or folder that the arguments of `add_weights` name."""
    return args.checkpoint or args.preset or DEFAULT


def sampling_fields(rest: list[str], **aliases: Any) -> dict[str, Any]:
    """Returns the fields of `sampling` that the command line sets.

    Args:
        rest: arguments such as "--sampling.steps=8".
        **aliases: values of options that are short for a field, such as --steps; None if not given.

    Raises:
        ValueError: an argument of another form, or a field that is set twice.
    """
    fields = config_lib.parse_fields(rest, "sampling")
    given = {name: value for name, value in aliases.items() if value is not None}
    twice = sorted(set(fields) & set(given))
    if twice:
        raise ValueError(
            f"--{twice[0].replace('_', '-')} and --sampling.{twice[0]} set the same field; give one of them"
        )
    return fields | given

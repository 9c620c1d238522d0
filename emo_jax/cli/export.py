"""`emo export`: the averaged weights of a training run as config.json and model.safetensors, for use and sharing."""

from __future__ import annotations

from emo_jax.weights.export import DTYPES, export


def add_parser(subparsers) -> None:
    """Adds the verb `export` to the command line."""
    parser = subparsers.add_parser("export", help="write a run's averaged weights", description=__doc__)
    parser.add_argument("--workdir", required=True, help="run of emo train")
    parser.add_argument("--output", required=True, help="folder to write; an earlier export is replaced")
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of the file (default %(default)s)")
    parser.set_defaults(main=main)


def main(args) -> None:
    """Runs `emo export`."""
    size = export(args.workdir, args.output, args.dtype)
    print(f"{args.output}: {size / 1e6:.1f} MB, {args.dtype}")

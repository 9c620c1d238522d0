"""The `emo` command: every verb is a subcommand."""

import argparse
import importlib
import sys

VERBS = ("generate", "train", "prepare", "evaluate", "export", "demo")


def main(argv=None):
    """Runs `emo VERB ...`; returns the exit status: 0, or 2 with one line on stderr after bad input."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser("emo", description="A portrait and a voice make a talking video (EMO, in JAX).")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS if not argv or argv[0] not in VERBS else argv[:1]:
        importlib.import_module(f"emo_jax.{verb}").add_parser(subparsers)
    args, rest = parser.parse_known_args(argv)
    try:
        if getattr(args, "takes_config", False):
            from emo_jax import config

            args.main(args, config.parse(rest))
        elif rest:
            raise ValueError(f"unknown argument {rest[0]!r}; emo {args.verb} --help lists those there are")
        else:
            args.main(args)
    except ValueError as error:
        print(f"emo {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"emo {args.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

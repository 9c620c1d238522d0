"""Runs the command line: `python -m emo_jax.cli` is `emo`."""

import sys

from emo_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

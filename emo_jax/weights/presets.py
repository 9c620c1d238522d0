"""The weights that come with the package. Imports nothing heavy, so that the command line can name them."""

import pathlib

DEFAULT = "small"
"""The preset that the command line and `EmoPipeline` use; one of BUNDLED."""
BUNDLED = {name: pathlib.Path(__file__).parent / name for name in ("small",)}
"""Presets {name: folder}. `launch/NAME_weights.sh` trains the weights of a preset."""

"""Sphinx configuration: `make docs` builds docs/ into out/docs, with every warning an error."""

import contextlib
import io
import os
from pathlib import Path

from sphinx.application import Sphinx

os.environ["COLUMNS"] = "100"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import emo_jax  # noqa: E402
from emo_jax.cli import main as cli  # noqa: E402

project = "emo_jax"
author = "the emo_jax authors"
version = release = emo_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "emo_jax"
html_static_path: list[str] = []
copybutton_exclude = ".linenos, .gp"

myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # type annotations of other packages, for which no inventory is at hand

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # otherwise the fields of a NamedTuple are described twice


def write_cli_page(app: Sphinx) -> None:
    """Writes docs/api/cli.md: the output of `emo --help` and of each verb's `--help`."""
    sections = ["# Command line\n\nThe output of `--help`, for each verb. `emo prepare` has sub-verbs.\n"]
    for words in [[], *([verb] for verb in cli.VERBS), *(["prepare", source] for source in PREPARE)]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
        name = " ".join(["emo", *words])
        sections.append(f"## {name}\n\n```text\n{text.getvalue().strip()}\n```\n")
    path, text = Path(app.srcdir) / "api" / "cli.md", "\n".join(sections)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


PREPARE = ("videos", "images", "synthetic", "latents", "inspect", "stats")


def setup(app: Sphinx) -> None:
    """Registers the page of the command line, which is generated before the sources are read."""
    app.connect("builder-inited", write_cli_page)

"""The scripts in benchmarks/, which are run by hand, import only names that exist."""

import ast
import importlib

import pytest

from tests.docs.pages import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_names_that_a_script_imports_exist(script):
    imports = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    checked = 0
    for node in imports:
        if node.module.split(".")[0] != "emo_jax" and node.module not in ("tests.runs", "tests.small"):
            continue
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")
            checked += 1
    assert checked or script.stem == "parity_full_size"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_shows_its_command(script):
    assert f"-m benchmarks.{script.stem}" in ast.get_docstring(ast.parse(script.read_text()))

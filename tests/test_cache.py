"""Compiled programs are kept for the next run."""

import os
import subprocess
import sys

import pytest

from tests.runs import python_path

PROGRAM = """
from emo_jax.cache import keep_programs
import jax
jax.jit(lambda x: x + 1)(1.0)
keep_programs()
jax.jit(lambda x: x + 2)(1.0)
print(jax.config.jax_compilation_cache_dir)
"""


def run(**environment):
    unset = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    always = dict(JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONPATH=python_path())
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    return subprocess.run(command, env=unset | always | environment, check=True, text=True, capture_output=True)


@pytest.mark.parametrize("place", ["own", "given", "nowhere"])
def test_programs_are_kept_in_the_cache_or_where_jax_was_told(tmp_path, place):
    own, given = tmp_path / "own", tmp_path / "given"
    if place == "nowhere":
        own.write_text("a file")
    done = run(EMO_CACHE=str(own), **({"JAX_COMPILATION_CACHE_DIR": str(given)} if place == "given" else {}))
    assert not done.stderr
    expected = {"own": str(own / "programs"), "given": str(given), "nowhere": "None"}[place]
    assert done.stdout.strip() == expected
    assert place == "nowhere" or any("-cache" in name for name in os.listdir(expected))

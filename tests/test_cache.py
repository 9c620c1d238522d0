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
    return run_program(PROGRAM, **environment)


def run_program(program, **environment):
    unset = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    always = dict(JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONPATH=python_path())
    command = [sys.executable, "-W", "error", "-c", program]
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


SLOW = """
import sys, time
import jax
from jax._src import compiler
from emo_jax.cache import watch_compilation
compile_module = compiler.backend_compile_and_load
def slow(*args, **kwargs):
    time.sleep(3 * (not fast))
    return compile_module(*args, **kwargs)
compiler.backend_compile_and_load = slow
for fast in (True, False, False):
    with watch_compilation(lambda: print("compiling"), after=1.0):
        jax.jit(lambda x: x + 1)(1.0)
        jax.clear_caches()
        jax.jit(lambda x: x + 1)(1.0)
    print("done")
"""


def test_long_compilations_are_announced_once_and_programs_from_the_cache_are_not(tmp_path):
    uncached = run_program(SLOW, JAX_ENABLE_COMPILATION_CACHE="false")
    assert uncached.stdout.split() == ["done", "compiling", "done", "compiling", "done"]
    cached = run_program(SLOW, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert cached.stdout.split() == ["done", "done", "done"]

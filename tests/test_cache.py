"""The cache of compiled programs."""

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


def run_program(program, without=(), **environment):
    unset = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", *without)}
    always = dict(JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONPATH=python_path())
    if "JAX_COMPILATION_CACHE_DIR" not in environment:  # the machine's sitecustomize may set it
        program = f"import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)\n{program}"
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, env=unset | always | environment, check=True, text=True, capture_output=True)


@pytest.mark.parametrize("place", ["own", "given", "nowhere"])
def test_programs_are_cached_where_jax_or_the_user_says(tmp_path, place):
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


def test_user_without_a_home_directory_has_no_cache():
    """As in a container that runs under an id without an entry in the user database."""
    code = (
        "import pathlib, pwd\n"
        "def missing(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = missing\n"
        "from emo_jax import cache\n"
        "cache.keep_programs()\n"
        "import jax\n"
        "print(cache.folder().exists(), jax.config.jax_compilation_cache_dir)"
    )
    done = run_program(code, without=("HOME", "EMO_CACHE"))
    assert done.stdout.split() == ["False", "None"] and not done.stderr


def test_damaged_cache_entry_is_compiled_again_without_a_warning(tmp_path):
    first = run(EMO_CACHE=str(tmp_path))
    entries = list((tmp_path / "programs").glob("*-cache"))
    for path in entries:
        path.write_bytes(path.read_bytes()[:100])
    again = run(EMO_CACHE=str(tmp_path))
    assert entries and again.stdout == first.stdout and not again.stderr

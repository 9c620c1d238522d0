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


@pytest.mark.slow
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


SHARED = """
import os, sys
from emo_jax import cache
cache.MAX_BYTES = int(sys.argv[1])
if cache.MAX_BYTES >= 0:
    cache.keep_programs()
import jax
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    jax.jit(lambda x: x + number)(1.0)
    jax.clear_caches()
"""


def start_sharing(folder, size, first, last):
    """Starts a process that compiles programs `first` to `last`; a size of -1 is JAX without a limit of the cache."""
    programs = folder / "programs"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= dict(JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", PYTHONPATH=python_path())
    environment |= dict(EMO_CACHE=str(folder))
    change = f"os.environ['JAX_COMPILATION_CACHE_DIR'] = {str(programs)!r}" if size < 0 else ""
    change = change or "os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)"  # the machine's sitecustomize may set it
    command = [sys.executable, "-c", f"import os; {change}\n{SHARED}", *map(str, (size, first, last))]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def stored(folder):
    return {path.name for path in (folder / "programs").glob("*-cache")}


def test_entries_of_a_process_without_a_size_limit_do_not_stop_the_cache(tmp_path):
    """Such a process writes no times of last use, which eviction reads."""
    other = start_sharing(tmp_path, -1, 0, 2)
    assert other.communicate()[1] == "" and other.returncode == 0
    theirs = stored(tmp_path)
    assert theirs and not list((tmp_path / "programs").glob("*-atime"))
    ours = start_sharing(tmp_path, 2**31, 2, 4)
    assert ours.communicate()[1] == "" and ours.returncode == 0
    assert stored(tmp_path) > theirs  # both programs were kept
    assert len(list((tmp_path / "programs").glob("*-atime"))) == len(stored(tmp_path))


def test_entries_that_appear_later_without_a_time_print_no_warning(tmp_path):
    added = "(cache.folder() / 'programs' / 'x-cache').write_bytes(b'1')\n"
    program = SHARED.replace("import jax\n", f"{added}import jax\n")
    done = run_program(f"import sys; sys.argv = ['', '2000', '0', '3']\n{program}", EMO_CACHE=str(tmp_path))
    assert done.stderr == "" and stored(tmp_path) == {"x-cache"}  # JAX could not write, and the programs ran
    again = start_sharing(tmp_path, 2**31, 0, 2)
    assert again.communicate()[1] == "" and len(stored(tmp_path)) > 1


def test_two_processes_that_evict_each_other_print_no_warning(tmp_path):
    processes = [start_sharing(tmp_path, 3000, 0, 30), start_sharing(tmp_path, 3000, 20, 50)]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    size = sum((tmp_path / "programs" / name).stat().st_size for name in stored(tmp_path))
    assert 0 < size <= 3000

"""The user's cache: compiled programs, plans, and a face model that the user has put there."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

MAX_BYTES = 2**31
"""Size limit of the compilation cache; the least recently used entries are evicted."""


def folder() -> pathlib.Path:
    """Returns the folder of the cache, which need not exist: $EMO_CACHE, or ~/.cache/emo_jax.

    A user without a home directory, as in some containers, has no cache: the folder then is one that cannot be created.
    """
    if os.environ.get("EMO_CACHE"):
        return pathlib.Path(os.environ["EMO_CACHE"])
    try:
        return pathlib.Path.home() / ".cache" / "emo_jax"
    except RuntimeError:  # neither $HOME nor an entry in the user database
        return pathlib.Path(os.devnull) / "emo_jax"


def keep_programs() -> None:
    """Makes JAX keep compiled programs in `folder()`/programs for the next run.

    A folder that JAX_COMPILATION_CACHE_DIR names is kept. Nothing is kept if the folder cannot be written.
    """
    import jax

    # A damaged entry, or one that another process evicts meanwhile, only means that the program is compiled again.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    path = folder() / "programs"
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(path, os.W_OK):
        _add_missing_times(path)
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        jax.config.update("jax_compilation_cache_dir", str(path))


def entry(key: str) -> pathlib.Path | None:
    """Returns the file of an entry of this package in JAX's compilation cache, or None if nothing is kept.

    Entries are evicted together with JAX's. Their names follow from the key, the package's sources and the versions of
    JAX, wherever the package is installed.
    """
    import jax

    place = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if place is None or not os.access(place, os.W_OK):
        return None
    return pathlib.Path(place) / f"emo-{hashlib.sha256(f'{_sources()} {key}'.encode()).hexdigest()}-cache"


def note_use(path: pathlib.Path) -> None:
    """Writes the time of use of an entry as JAX does, by which entries are evicted."""
    used = path.with_name(f"{path.name.removesuffix('-cache')}-atime")
    with contextlib.suppress(OSError):
        used.write_bytes(time.time_ns().to_bytes(8, "little"))


@functools.cache
def _sources() -> str:
    """Returns a digest of the package's code, and of the versions of the packages that trace it."""
    root, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for name in ("jax", "jaxlib", "flax", "numpy"):
        digest.update(f"{name} {importlib.metadata.version(name)} ".encode())
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _add_missing_times(path: pathlib.Path) -> None:
    """Writes the time of last use of entries that have none, without which JAX would not write to the cache any more.

    Such entries are left by a process that was killed, and by programs that use the folder without a size limit.
    """
    for entry in path.glob("*-cache"):
        used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
        with contextlib.suppress(OSError):  # another process evicts the entry
            if not used.exists():
                used.write_bytes(time.time_ns().to_bytes(8, "little"))


@contextlib.contextmanager
def watch_compilation(notify: Callable[[], None], after: float = 1.0) -> Iterator[None]:
    """Calls `notify` in the block, once, when XLA compiles a program for longer than a read from the cache would take.

    Args:
        notify: called from another thread.
        after: shortest time in seconds before the call.
    """
    import jax

    timer: threading.Timer | None = None
    notified = threading.Event()

    def fire() -> None:
        if not notified.is_set():
            notified.set()
            notify()

    def stop(event: str = _CACHE_HIT, **tags: Any) -> None:
        if event == _CACHE_HIT and timer is not None:
            timer.cancel()

    def lowered_or_compiled(event: str, duration_secs: float, **tags: Any) -> None:
        nonlocal timer
        if event in (_LOWERED, _COMPILED):
            stop()
        if event == _LOWERED:  # the compilation follows
            # A read takes up to twice as long as lowering, on busy machines too; a compilation takes 30 times as long.
            timer = threading.Timer(max(after, 4 * duration_secs), fire)
            timer.daemon = True
            timer.start()

    jax.monitoring.register_event_listener(stop)
    jax.monitoring.register_event_duration_secs_listener(lowered_or_compiled)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(stop)
        jax.monitoring.unregister_event_duration_listener(lowered_or_compiled)
        stop()


_LOWERED, _COMPILED = "/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"

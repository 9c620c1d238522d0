"""What the package keeps for its user from run to run: compiled programs, plans, a face model that was put there."""

import os
import pathlib

MAX_BYTES = 2**31
"""Of compiled programs; those that were not used for longest go first."""


def folder() -> pathlib.Path:
    """$EMO_CACHE, else ~/.cache/emo_jax; it need not exist."""
    return pathlib.Path(os.environ.get("EMO_CACHE") or pathlib.Path.home() / ".cache" / "emo_jax")


def keep_programs() -> None:
    """Has JAX keep what it compiles in `folder()`/programs, so that the next run need not.

    A place that JAX_COMPILATION_CACHE_DIR names stays; where the folder cannot be written, nothing is kept.
    """
    import jax

    path = folder() / "programs"
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(path, os.W_OK):
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        jax.config.update("jax_compilation_cache_dir", str(path))

"""`emo export`: the averaged weights of a training run as config.json and model.safetensors, for use and sharing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from emo_jax.files import whole_folder

DTYPES = ("float16", "float32")
_FILES = {"config.json", "model.safetensors"}


def export(workdir: str | os.PathLike, output: str | os.PathLike, dtype: str = "float16") -> int:
    """Writes the newest checkpoint's averaged weights to the folder `output`; returns the bytes written.

    The folder appears whole or not at all; one that holds an earlier export, and nothing else, is replaced.

    Raises:
        ValueError: no run, a folder that holds other things or cannot be written, or weights that `dtype` cannot hold.
    """
    output = Path(os.path.abspath(output))
    _check_output(output)
    from emo_jax.weights.runs import load_run
    from emo_jax.weights.store import save_weights

    config, flat = load_run(workdir)
    _check_range(flat, dtype)
    try:
        with whole_folder(output) as partial:
            save_weights(partial, config, flat, np.dtype(dtype).type)
            size = sum(file.stat().st_size for file in partial.iterdir())
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error.strerror}); choose another folder") from error
    return size


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; give a folder")
    other = sorted(set(os.listdir(output)) - _FILES) if output.is_dir() else []
    if other:
        raise ValueError(f"{output} holds other files ({other[0]}); give a new folder or that of an earlier export")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error.strerror}); choose another folder") from error


def _check_range(flat, dtype: str) -> None:
    limit = float(np.finfo(dtype).max)
    for path, array in flat.items():
        peak = float(np.abs(np.asarray(array, np.float32)).max(initial=0.0))
        if not peak <= limit:  # NaN too
            raise ValueError(f"{path} holds {peak:g}, which {dtype} cannot hold; train again or use --dtype float32")

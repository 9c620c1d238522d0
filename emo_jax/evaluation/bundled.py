"""Reads the weights of the measuring networks that ship with the package."""

from __future__ import annotations

import os
import pathlib

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file


def read_bundled(path: str | os.PathLike, script: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors file.

    Args:
        path: the file.
        script: name of the module of `emo_jax.evaluation` that makes it.

    Raises:
        ValueError: the file does not exist or is damaged.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{path} does not exist: train it with `python -m emo_jax.evaluation.{script}`")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error

"""Writes weights to a folder for use and sharing: config.json and model.safetensors, or diffusers' layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.files import atomic_folder
from emo_jax.models.int8 import quantised
from emo_jax.weights import diffusers_folder

DTYPES = ("float16", "float32", "int8")
FORMATS = ("emo", "diffusers")
_FILES = {"config.json", "model.safetensors"}


def export(
    weights: str | os.PathLike,
    output: str | os.PathLike,
    dtype: str = "float16",
    format: str = "emo",
    step: str = "",
    lora: str = "merged",
) -> int:
    """Writes weights to a folder, of a training run the averaged weights of a checkpoint.

    The folder appears complete or not at all. It may replace an earlier export, but nothing else.

    Args:
        weights: a training run, a folder of weights, or a preset.
        output: the folder to write.
        dtype: one of DTYPES; int8 has large kernels in 8 bits (`models.int8`) and the rest in float16.
        format: one of FORMATS.
        step: of a training run, the checkpoint: its step, "best" for the lowest validation loss, or "" for the newest.
        lora: "merged", "separate" for what a run with LoRA has trained, without the weights that it started from, or
            the folder of a separate export that is added to `weights`.

    Returns:
        The number of bytes written.

    Raises:
        ValueError: no such weights, a folder that holds other files or cannot be written, or numbers that `dtype`
            cannot represent.
    """
    output = Path(os.path.abspath(output))
    _check_output(output)
    from emo_jax.weights.store import read_flat, save_weights

    config, flat = _read(weights, step, lora) if step or lora != "merged" else read_flat(weights)
    rest = "float16" if dtype == "int8" else dtype  # the dtype of the tensors that are not quantised
    _check_range(flat, rest)
    if lora == "separate" and format != "emo":
        raise ValueError(f"--lora separate has no format {format!r}; expected emo, or --lora merged")
    if dtype == "int8" and format != "emo":
        raise ValueError(f"--dtype int8 has no format {format!r}; expected emo, or another type")
    flat = quantised(flat) if dtype == "int8" else flat
    save = diffusers_folder.save if format == "diffusers" else save_weights
    try:
        with atomic_folder(output) as partial:
            save(partial, config, flat, np.dtype(rest).type)
            return sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error.strerror}); choose another folder") from error


def _read(weights: str | os.PathLike, step: str, lora: str) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint of a run, or adapters apart, or adds adapters to weights; see `export`."""
    from emo_jax.models.lora import is_adapter, merge
    from emo_jax.weights.runs import best_step, load_run
    from emo_jax.weights.store import read_flat

    if step and step != "best" and not step.isdecimal():
        raise ValueError(f"--step is {step!r}; expected the step of a checkpoint, or best")
    if lora not in ("merged", "separate"):
        if step:
            raise ValueError("--step is given with --lora FOLDER; expected one of them: export the run first")
        config, flat = read_flat(weights)
        return config, merge(flat | read_flat(lora)[1], precise=True)
    number = best_step(weights) if step == "best" else int(step) if step else None
    config, flat = load_run(weights, number, merged=lora == "merged")
    if lora == "separate" and not any(map(is_adapter, flat)):
        raise ValueError(f"{weights} was trained without LoRA; leave --lora separate out")
    return config, flat


def _check_output(output: Path) -> None:
    """Raises ValueError unless the folder can be created, or holds an earlier export and nothing else."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; give a folder")
    other = sorted(set(os.listdir(output)) - _FILES - diffusers_folder.NAMES) if output.is_dir() else []
    if other:
        raise ValueError(f"{output} holds other files ({other[0]}); give a new folder or that of an earlier export")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error.strerror}); choose another folder") from error


def _check_range(flat: dict[str, Any], dtype: str) -> None:
    limit = float(np.finfo(dtype).max)
    for path, array in flat.items():
        peak = float(np.abs(np.asarray(array, np.float32)).max(initial=0.0))
        if not peak <= limit:  # also true for NaN
            raise ValueError(f"{path} holds {peak:g}, which {dtype} cannot represent; train again or use float32")

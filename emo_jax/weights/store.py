"""Weights of a preset, a folder, a training run or the hub, as named params and as a model that is ready to run."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from emo_jax import cache, schema
from emo_jax import config as config_lib
from emo_jax.files import atomic_write, write_text
from emo_jax.models import int8
from emo_jax.models.config_schema import config_from_fields, config_schema
from emo_jax.models.parts import part_of
from emo_jax.weights import diffusers_folder, hub
from emo_jax.weights.files import load_tensors, save_tensors
from emo_jax.weights.presets import BUNDLED

if TYPE_CHECKING:
    from emo_jax.models.emo import EMO

_CONFIG, _TENSORS = "config.json", "model.safetensors"

Flat = dict[str, Any]
"""Parameters {path: array}; a path is, for example, backbone/conv_in/kernel."""
Name = str | os.PathLike
"""A preset, a folder of `emo export`, a run of `emo train`, or the hub id owner/name of an exported model."""


def save_weights(directory: Name, config: ConfigDict, flat: Flat, dtype: type = np.float16) -> None:
    """Writes config.json and model.safetensors to a folder. No file is left half-written.

    Args:
        directory: the folder; it is created.
        config: the config of the networks.
        flat: the params.
        dtype: the type of the stored numbers, apart from kernels in 8 bits.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    types = {path: None if int8.kernel_of(path, flat) else dtype for path in flat}
    tensors = {path: np.asarray(a, types[path], order="C") for path, a in flat.items()}
    write_text(directory / _CONFIG, config_lib.to_json(config) + "\n")
    with atomic_write(directory / _TENSORS) as partial:
        save_tensors(partial, tensors)
        shutil.copymode(directory / _CONFIG, partial)  # safetensors makes files that only their owner can read


def load_weights(name: Name) -> tuple[ConfigDict, dict[str, jax.Array]]:
    """Reads weights as float32. Raises ValueError as `read_flat` does.

    Returns:
        (config, {path: array}).
    """
    config, flat = read_flat(name)
    return config, {path: jnp.asarray(a, jnp.float32) for path, a in flat.items()}


def read_flat(name: Name) -> tuple[ConfigDict, Flat]:
    """Reads weights as numpy arrays, in the type that they are stored in; kernels in 8 bits as float32.

    Args:
        name: a preset, a folder of weights (ours or in diffusers' layout), a training run, or a hub id.

    Returns:
        (config, {path: array}).

    Raises:
        ValueError: an unknown preset, a folder without weights, damaged files, a run without a readable checkpoint, or
            a hub that cannot be reached.
    """
    config, flat = _read_stored(name)
    return config, int8.dequantised_flat(flat)


def _read_stored(name: Name) -> tuple[ConfigDict, Flat]:
    folder = _locate(name)
    if folder is None:
        from emo_jax.weights.runs import load_run

        return load_run(name)
    if diffusers_folder.is_diffusers_folder(folder):
        return diffusers_folder.load(folder)
    flat = load_tensors(folder / _TENSORS)
    return _load_config(folder), flat


def read_config(name: Name) -> ConfigDict:
    """Reads the config of weights without their numbers. Raises ValueError as `read_flat` does."""
    folder = _locate(name)
    if folder is None:
        from emo_jax.weights.runs import load_run_config

        return load_run_config(name)
    return (
        diffusers_folder.load_config(folder) if diffusers_folder.is_diffusers_folder(folder) else _load_config(folder)
    )


def _locate(name: Name) -> pathlib.Path | None:
    """Returns the folder of weights, downloaded if it is on the hub; None for a training run."""
    text = os.fspath(name)
    folder = BUNDLED.get(text, pathlib.Path(text))
    if "://" in text or (folder / "checkpoints").is_dir():  # A bucket holds runs only.
        return None
    if text in BUNDLED and not (folder / _TENSORS).is_file():
        raise ValueError(
            f"preset {text!r} has no weights in this installation; OUTPUT={folder} make {text}-weights trains them, or "
            "give a folder of weights"
        )
    if not folder.exists() and hub.is_hub_id(text):
        folder = hub.download_model(text)
    if diffusers_folder.is_diffusers_folder(folder) or all((folder / file).is_file() for file in (_CONFIG, _TENSORS)):
        return folder
    raise ValueError(
        f"{text!r} is neither a preset ({', '.join(BUNDLED)}), nor a folder with {_CONFIG} and {_TENSORS} or "
        f"{diffusers_folder.INDEX}, nor a run of emo train"
    )


def _load_config(folder: pathlib.Path) -> ConfigDict:
    return config_from_fields(schema.read_json(folder / _CONFIG, config_schema())).lock()


def adopt(emo: EMO, flat: Flat, trained: Collection[str], key: jax.Array, origin: str) -> tuple[Flat, list[str]]:
    """Fills a model with the params that fit, and initialises the others.

    Args:
        emo: the networks.
        flat: the params to take over.
        trained: names of parts (`models.parts.PARTS`) that `flat` must hold completely.
        key: the key of the initialised params.
        origin: where `flat` comes from, for messages.

    Returns:
        (params {path: array}, paths of the initialised ones).

    Raises:
        ValueError: a parameter of the `trained` parts is missing or has another shape.
    """
    shapes = _shapes(emo)
    fresh = [path for path, shape in shapes.items() if path not in flat or flat[path].shape != shape]
    needed = [path for path in fresh if part_of(path) in trained]
    # The mode of reference-attention, whose parameters belong to the Backbone, may differ between stages.
    needed = [path for path in needed if not re.search(r"/(attn2|norm2|norm_reference)/", path)]
    if needed:
        path, more = needed[0], len(needed) - 1
        reason = f"has shape {flat[path].shape}; expected {shapes[path]}" if path in flat else "is missing"
        raise ValueError(f"{origin}: the weights are of another config: {path} {reason} (and {more} more)")
    return {p: emo.init_param(p, shape, key) if p in fresh else flat[p] for p, shape in shapes.items()}, fresh


def load_model(name: Name, image_size: tuple[int, int] | None = None) -> tuple[EMO, dict[str, Any]]:
    """Loads networks and their params, in the precision that the networks compute in.

    Args:
        name: see `read_flat`.
        image_size: (height, width) of the frames in place of the config's. Prints a warning if they differ.

    Returns:
        (networks, params tree).

    Raises:
        ValueError: see `read_flat`; also the config of another version, a size that the networks cannot halve, or a
            preset with a size other than the trained one.
    """
    from emo_jax.models.emo import build

    config, flat = _read_stored(name)
    if image_size is not None:
        check_trained_size(name, tuple(image_size), tuple(config.clip.image_size))
        config.clip.image_size = tuple(image_size)
    try:
        emo = build(config)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{name}: its config does not fit this version of emo_jax ({error})") from error
    for path, array in flat.items():  # One at a time: at full size, two copies of all may not fit in memory.
        floats = config.model.dtype if array.ndim else jnp.float32
        flat[path] = jnp.asarray(array, array.dtype if int8.kernel_of(path, flat) else floats)
    return emo, nest(emo, flat, str(name))


def check_trained_size(name: object, size: tuple[int, ...], trained: tuple[int, ...]) -> None:
    """Raises for a preset, and warns for other weights, if the size of the frames is not the trained one."""
    if size == trained:
        return
    wanted, usual = (f"{width}x{height}" for height, width in (size, trained))
    if str(name) in BUNDLED:
        raise ValueError(f"size is {wanted}; expected {usual}: preset {str(name)!r} makes no other frames")
    print(f"warning: size is {wanted}, but {name} was trained at {usual}; faces may be distorted", file=sys.stderr)


def nest(emo: EMO, flat: Flat, origin: object, only: re.Pattern[str] | None = None) -> dict[str, Any]:
    """Returns flat params as a tree, checked against the networks.

    Args:
        emo: the networks.
        flat: the params.
        origin: where they come from, for messages.
        only: pattern of the paths to take; None: all.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    shapes, found = _shapes(emo), int8.logical_shapes(flat)
    if only is not None:
        shapes, found, flat = ({p: a for p, a in tree.items() if only.match(p)} for tree in (shapes, found, flat))
    wrong = [f"{p} is missing" for p in shapes if p not in found]
    wrong += [f"{p} is unknown" for p in found if p not in shapes]
    common = {p: (found[p], shape) for p, shape in shapes.items() if p in found}
    wrong += [f"{p} has shape {shape}; expected {want}" for p, (shape, want) in common.items() if shape != want]
    if wrong:
        raise ValueError(f"{origin}: the weights are of another config: {wrong[0]} (and {len(wrong) - 1} more)")
    return unflatten_dict(flat, sep="/")


def _shapes(emo: EMO) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the networks' params; they are kept in the cache, because tracing takes seconds."""
    fields = type(emo).__name__, emo.config.model.to_json_best_effort(), emo.config.clip.to_json_best_effort()
    path = cache.entry(f"shapes {fields}")
    if path is not None:
        with contextlib.suppress(OSError, ValueError):  # missing or damaged
            kept = json.loads(path.read_text())
            cache.note_use(path)
            return {name: tuple(shape) for name, shape in kept.items()}
    flat_leaves: dict[str, Any] = dict(flatten_dict(emo.abstract_params(), sep="/"))
    shapes = {name: leaf.shape for name, leaf in flat_leaves.items()}
    if path is not None:
        with contextlib.suppress(OSError):
            write_text(path, json.dumps(shapes))
            cache.note_use(path)
    return shapes

"""Weights in a folder: config.json and model.safetensors, in half precision for what ships."""

import os
import pathlib
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emo_jax import config as config_lib
from emo_jax.files import whole, write_text
from emo_jax.models.parts import part_of

BUNDLED = {"tiny": pathlib.Path(__file__).parent / "tiny"}
"""Presets whose weights are in the package."""


def save_weights(directory, config, flat, dtype=np.float16):
    """Writes {path: array} and its config to a folder; the files appear whole or not at all."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {path: np.asarray(a, dtype, order="C") for path, a in flat.items()}
    write_text(directory / "config.json", config_lib.to_json(config) + "\n")
    with whole(directory / "model.safetensors") as partial:
        save_file(tensors, partial)
        shutil.copymode(directory / "config.json", partial)  # safetensors lets its owner alone read it


def load_weights(name_or_directory):
    """The config and flat float32 weights {path: array} of a preset, of such a folder, or of a training run.

    Raises ValueError as `read_flat` does.
    """
    config, flat = read_flat(name_or_directory)
    return config, {path: jnp.asarray(a, jnp.float32) for path, a in flat.items()}


def read_flat(name_or_directory):
    """The same as numpy arrays, in the precision that they are stored in.

    Raises:
        ValueError: an unknown preset, a folder without weights, or a run without a checkpoint that can be read.
    """
    directory = BUNDLED.get(str(name_or_directory), pathlib.Path(name_or_directory))
    if "://" in str(name_or_directory) or (directory / "checkpoints").is_dir():  # in a bucket: a run, or nothing
        from emo_jax.weights.runs import load_run

        return load_run(name_or_directory)
    if str(name_or_directory) in BUNDLED and not (directory / "model.safetensors").is_file():
        raise ValueError(
            f"preset {str(name_or_directory)!r} has no weights in this installation; OUTPUT={directory} make "
            "tiny-weights trains them, or give a folder of weights"
        )
    if not (directory / "model.safetensors").is_file() or not (directory / "config.json").is_file():
        raise ValueError(
            f"{str(name_or_directory)!r} is neither a preset ({', '.join(BUNDLED)}) nor a folder with "
            "config.json and model.safetensors, nor a run of emo train"
        )
    try:
        flat = load_file(directory / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{directory / 'model.safetensors'} is damaged ({error}); copy it again") from error
    try:
        config = config_lib.from_json((directory / "config.json").read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / 'config.json'} is damaged ({error}); copy it again") from error
    return config, flat


def read_config(name_or_directory: str | os.PathLike) -> ConfigDict:
    """Returns the config of weights that `read_flat` reads, without reading their numbers.

    Raises:
        ValueError: no such weights.
    """
    from emo_jax.weights.runs import load_run_config

    directory = BUNDLED.get(str(name_or_directory), pathlib.Path(name_or_directory))
    if (directory / "config.json").is_file():
        return config_lib.from_json((directory / "config.json").read_text())
    return load_run_config(name_or_directory)


def adopt(emo, found, trained, key, origin):
    """The flat params {path: array} of a model: those of `found` that fit, and fresh ones in the place of the others.

    Args:
        trained: parts (training.stages.PARTS) that must all be in `found`. key: of the fresh ones.

    Returns:
        (flat, the paths that start fresh).

    Raises:
        ValueError: a parameter of those parts is missing or of another shape.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(emo.abstract_params(), sep="/").items()}
    fresh = [path for path, shape in shapes.items() if path not in found or found[path].shape != shape]
    needed = [path for path in fresh if part_of(path) in trained]
    # Reference-attention belongs to the Backbone, but a model may differ in its mode from the one before.
    needed = [path for path in needed if not re.search(r"/(attn2|norm2|norm_reference)/", path)]
    if needed:
        first, more = needed[0], len(needed) - 1
        told = f"has shape {found[first].shape}, expected {shapes[first]}" if first in found else "is missing"
        raise ValueError(f"{origin}: the weights are of another config: {first} {told} (and {more} more)")
    return {p: emo.fresh(p, shape, key) if p in fresh else found[p] for p, shape in shapes.items()}, fresh


def load_model(name_or_directory, image_size=None):
    """(networks, params) of weights such as `load_weights` reads, in the precision that the networks compute in.

    Args:
        image_size: (height, width) of the frames in place of the config's, with a warning if it is another one.

    Raises:
        ValueError: no such weights, of another version's config, a size that the networks cannot halve, or a size other
            than the trained one for a preset.
    """
    from emo_jax.models.emo import build

    config, flat = read_flat(name_or_directory)
    if image_size is not None:
        _check_size(name_or_directory, tuple(image_size), tuple(config.clip.image_size))
        config.clip.image_size = tuple(image_size)
    try:
        emo = build(config)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{name_or_directory}: its config is not one of this version ({error})") from error
    for path, array in flat.items():  # one by one: at full size the two precisions together may not fit
        flat[path] = jnp.asarray(array, config.model.dtype if array.ndim else jnp.float32)
    return emo, nest(emo, flat, name_or_directory)


def _check_size(name: object, size: tuple[int, int], trained: tuple[int, int]) -> None:
    """Refuses a size other than the trained one for bundled weights, and warns about it for others."""
    if size == trained:
        return
    wanted, usual = (f"{width}x{height}" for height, width in (size, trained))
    if str(name) in BUNDLED:
        raise ValueError(f"size is {wanted}; expected {usual}: preset {str(name)!r} makes no other frames")
    print(f"warning: size is {wanted}, but {name} was trained at {usual}; faces may be distorted", file=sys.stderr)


def nest(emo, flat, origin, only=None):
    """The params tree of flat weights, checked against the networks.

    Args:
        only: compiled pattern of the paths that are wanted; None: all.

    Raises:
        ValueError: a missing, unknown or differently shaped parameter: the weights are of another config.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(emo.abstract_params(), sep="/").items()}
    if only is not None:
        shapes, flat = ({p: a for p, a in tree.items() if only.match(p)} for tree in (shapes, flat))
    wrong = [f"{p} is missing" for p in shapes if p not in flat]
    wrong += [f"{p} is unknown" for p in flat if p not in shapes]
    common = {p: (flat[p].shape, shape) for p, shape in shapes.items() if p in flat}
    wrong += [f"{p} has shape {found}, expected {shape}" for p, (found, shape) in common.items() if found != shape]
    if wrong:
        raise ValueError(f"{origin}: the weights are of another config: {wrong[0]} (and {len(wrong) - 1} more)")
    return unflatten_dict(flat, sep="/")

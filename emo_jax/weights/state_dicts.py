"""Strict conversion of the state dicts of audio encoders from torch's names and layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from emo_jax.models.hearing import Encoder, smallest_input

Flat = dict[str, np.ndarray]


def convert(
    encoder: Encoder,
    tensors: Mapping[str, np.ndarray],
    reason: Callable[[str], str | None],
    to_path: Callable[[str, np.ndarray], tuple[str, np.ndarray]],
    network: str,
) -> tuple[Flat, dict[str, str]]:
    """Converts a state dict to the flat params of an encoder, which it must fill exactly.

    Args:
        encoder: the Flax module.
        tensors: the state dict {name: array}.
        reason: name of a tensor -> why it is not used; None if it is.
        to_path: (name, array) -> the path and the array in our layout; an unknown tensor gets an unknown path.
        network: name of the network in messages.

    Returns:
        ({path: array}, {name: reason} of the tensors that are not used).

    Raises:
        ValueError: an unknown tensor, a missing one, one of another shape, or two for the same path.
    """
    shapes, flat, unused = shapes_of(encoder), {}, {}
    for name, array in tensors.items():
        why = reason(name)
        if why is not None:
            unused[name] = why
            continue
        path, value = to_path(name, np.asarray(array))
        if path not in shapes:
            raise ValueError(f"tensor {name} has no place in {network} (another architecture or size?)")
        if value.shape != shapes[path]:
            raise ValueError(f"tensor {name} has shape {np.shape(array)}, but {path} has shape {shapes[path]}")
        if path in flat:
            raise ValueError(f"tensor {name} exists twice, under two names")
        flat[path] = value
    missing = sorted(set(shapes) - set(flat))
    if missing:
        raise ValueError(f"no tensor for {missing[0]} (and {len(missing) - 1} more)")
    return flat, unused


def from_torch(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts the name and layout of a linear, convolutional or norm layer's tensor to those of Flax."""
    *module, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
    return "/".join([*module, leaf]), array.T  # (out, in, k) -> (k, in, out), (out, in) -> (in, out)


def shapes_of(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of the params of an encoder."""
    module: Any = encoder
    abstract = jax.eval_shape(module.init, jax.random.key(0), smallest_input(encoder))["params"]
    leaves: dict[str, Any] = dict(flatten_dict(abstract, sep="/"))
    return {path: leaf.shape for path, leaf in leaves.items()}

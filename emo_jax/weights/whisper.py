"""Conversion of Whisper's encoder from OpenAI's and transformers' files, and to the latter: strict and exact."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from emo_jax import schema
from emo_jax.models.hearing import smallest_input
from emo_jax.models.whisper import WhisperConfig, WhisperEncoder
from emo_jax.weights.files import find_weights, read_tensors, save_tensors
from emo_jax.weights.wav2vec2 import import_transformers

UNUSED = {r"decoder\.": "the decoder, which writes text", r"proj_out\.": "the decoder's output"}
"""{start of a tensor's name: why no hidden state of the encoder depends on it}."""

_OPENAI = (
    (r"^positional_embedding$", "embed_positions.weight"), (r"^ln_post\.", "layer_norm."), (r"^blocks\.", "layers."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."), (r"\.attn\.query\.", ".self_attn.q_proj."),
    (r"\.attn\.key\.", ".self_attn.k_proj."), (r"\.attn\.value\.", ".self_attn.v_proj."),
    (r"\.attn\.out\.", ".self_attn.out_proj."), (r"\.mlp_ln\.", ".final_layer_norm."), (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
)  # fmt: skip
"""(pattern of OpenAI's names, transformers' name) of the encoder's tensors."""


def load_whisper(path: pathlib.Path, config: WhisperConfig) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the encoder of a Whisper.

    Args:
        path: OpenAI's file (tiny.pt), or a folder in transformers' format.
        config: the expected sizes.

    Returns:
        ({path: array} in the file's type, {name: reason} of the tensors that are not used).

    Raises:
        ValueError: missing or damaged files, another network, or one of other sizes.
    """
    file = find_weights(path) if path.is_dir() else path
    if path.is_dir():
        _check_sizes(path / "config.json", config)
    try:
        return from_transformers(config, {to_transformers_name(n): a for n, a in read_tensors(file).items()})
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{file}: {error}") from error


def save_whisper(folder: pathlib.Path, fields: ConfigDict, params: dict[str, Any], dtype: type) -> None:
    """Writes the encoder in transformers' format, with the configs of the network and its feature extractor.

    Args:
        folder: the folder to write.
        fields: the fields `model.audio.whisper`.
        params: flat params {path: array}.
        dtype: the type of the stored numbers.
    """
    transformers = import_transformers()
    transformers.WhisperConfig(**fields.to_dict(), architectures=["WhisperModel"]).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=fields.num_mel_bins).save_pretrained(folder)
    tensors = to_transformers({path: np.asarray(array, dtype) for path, array in params.items()})
    save_tensors(folder / "model.safetensors", tensors)


def from_transformers(
    config: WhisperConfig, tensors: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Converts the tensors of transformers' WhisperModel to the flat params of its encoder.

    Args:
        config: the sizes.
        tensors: {name: array}; names may begin with `model.`.

    Returns:
        ({path: array}, {name: reason} of the tensors that are not used).

    Raises:
        ValueError: an unknown tensor, a missing one, or one of another shape.
    """
    shapes, flat, unused = _shapes(config), {}, {}
    for name, array in tensors.items():
        short = name.removeprefix("model.")
        reason = next((why for start, why in UNUSED.items() if re.match(start, short)), None)
        if reason is not None:
            unused[name] = reason
            continue
        path, value = _to_path(short.removeprefix("encoder."), array)
        if not short.startswith("encoder.") or path not in shapes:
            raise ValueError(f"tensor {name} has no place in Whisper's encoder (another network or size?)")
        if value.shape != shapes[path]:
            raise ValueError(f"tensor {name} has shape {array.shape}, but {path} has shape {shapes[path]}")
        flat[path] = value
    missing = sorted(set(shapes) - set(flat))
    if missing:
        raise ValueError(f"no tensor for {missing[0]} (and {len(missing) - 1} more)")
    return flat, unused


def to_transformers(flat: dict[str, Any]) -> dict[str, np.ndarray]:
    """Converts flat params to the tensors of transformers' WhisperModel: the inverse of `from_transformers`."""
    return dict(_to_name(path, np.asarray(array)) for path, array in flat.items())


def to_transformers_name(name: str) -> str:
    """Returns transformers' name of a tensor of OpenAI's files; others are returned unchanged."""
    if not name.startswith("encoder."):
        return name
    name = name.removeprefix("encoder.")
    for pattern, replacement in _OPENAI:
        name = re.sub(pattern, replacement, name)
    return f"encoder.{name}"


def _to_path(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if name == "embed_positions.weight":
        return "embed_positions", array
    *module, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
    return "/".join([*module, leaf]), array.T  # (out, in, k) -> (k, in, out), (out, in) -> (in, out)


def _to_name(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if path == "embed_positions":
        return "encoder.embed_positions.weight", np.ascontiguousarray(array)
    *module, leaf = re.sub(r"_(\d+)(?=/)", r".\1", path).split("/")
    name = ".".join(["encoder", *module, "bias" if leaf == "bias" else "weight"])
    return name, np.ascontiguousarray(array.T)


def _check_sizes(file: pathlib.Path, config: WhisperConfig) -> None:
    """Raises ValueError unless a transformers config has the expected sizes."""
    if not file.is_file():
        raise ValueError(f"{file.parent} has no config.json; expected a folder in transformers' format")
    fields = schema.read_json(file, schema.fields({}, {}, extra=True))
    if fields.get("model_type", "whisper") != "whisper":
        raise ValueError(f"{file} has model_type {fields['model_type']!r}; expected 'whisper'")
    for field in dataclasses.fields(config):
        expected = getattr(config, field.name)
        if field.name != "dtype" and fields.get(field.name, expected) != expected:
            raise ValueError(
                f"{file} has {field.name} {fields[field.name]!r}; set model.audio.whisper.{field.name}, now {expected}"
            )


def _shapes(config: WhisperConfig) -> dict[str, tuple[int, ...]]:
    module: Any = WhisperEncoder(config)
    abstract = jax.eval_shape(module.init, jax.random.key(0), smallest_input(module))["params"]
    flat_leaves: dict[str, Any] = dict(flatten_dict(abstract, sep="/"))
    return {path: leaf.shape for path, leaf in flat_leaves.items()}

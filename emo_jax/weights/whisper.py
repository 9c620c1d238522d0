"""Conversion of Whisper's encoder from OpenAI's and transformers' files, and to the latter: strict and exact."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from emo_jax import schema
from emo_jax.models.whisper import WhisperConfig, WhisperEncoder
from emo_jax.weights import state_dicts
from emo_jax.weights.files import find_weights, name_file, read_tensors, save_tensors
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
    with name_file(file):
        return from_transformers(config, {to_transformers_name(n): a for n, a in read_tensors(file).items()})


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
    return state_dicts.convert(
        WhisperEncoder(config),
        tensors,
        lambda name: next((why for start, why in UNUSED.items() if re.match(rf"(model\.)?{start}", name)), None),
        _to_path,
        "Whisper's encoder",
    )


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
    name = name.removeprefix("model.")
    if not name.startswith("encoder."):
        return "", array
    if name == "encoder.embed_positions.weight":
        return "embed_positions", array
    return state_dicts.from_torch(name.removeprefix("encoder."), array)


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

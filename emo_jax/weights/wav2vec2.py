"""Conversion of wav2vec 2.0 between transformers' folders and our params: strict, and exact in both directions."""

import dataclasses
import os
import pathlib
import re
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from emo_jax import schema
from emo_jax.models.config_schema import wav2vec2_schema
from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from emo_jax.weights import state_dicts
from emo_jax.weights.files import find_weights, read_tensors, save_tensors

UNUSED = (
    (r"masked_spec_embed$", "replaces masked steps in training"),
    (r"(quantizer|project_q|project_hid)\.", "head of pretraining"),
    (r"lm_head\.", "head for letters (CTC)"),
    (r"(classifier|projector)\.", "classification head"),
    (r"adapter\.", "comes after the last hidden state"),
)
"""Tensors of transformers' checkpoints that no hidden state depends on, and why."""

_FIXED = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "model_type": "wav2vec2", "adapter_attn_dim": None}
_WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def load_wav2vec2(
    directory: str | os.PathLike,
) -> tuple[Wav2Vec2Config, dict[str, np.ndarray], dict[str, str]]:
    """Reads the wav2vec 2.0 of a folder in transformers' format: config.json and model.safetensors or a .bin.

    Returns:
        (config, {path: array} in the file's type, {name: reason} of the tensors that are not used).

    Raises:
        ValueError: missing or damaged files, another architecture, or tensors that do not fit config.json.
    """
    folder = pathlib.Path(directory)
    fields = _read_json(folder / "config.json")
    if (folder / "preprocessor_config.json").is_file():
        extractor = _read_json(folder / "preprocessor_config.json", {"do_normalize": schema.boolean()})
        fields["do_normalize"] = extractor.get("do_normalize", True)  # the default of transformers
    try:
        config = from_transformers_config(fields)
        return config, *from_transformers(config, read_tensors(find_weights(folder)))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def save_wav2vec2(folder: pathlib.Path, config: ConfigDict, params: dict[str, Any], dtype: type) -> None:
    """Writes a wav2vec 2.0 in transformers' format, with the config of its feature extractor.

    Args:
        folder: the folder to write.
        config: the fields `model.audio.wav2vec2`.
        params: flat params {path: array}.
        dtype: the type of the stored numbers.
    """
    transformers, fields = import_transformers(), config.to_dict()
    normalize = fields.pop("do_normalize")
    transformers.Wav2Vec2Config(**fields, architectures=["Wav2Vec2Model"]).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=normalize).save_pretrained(folder)
    tensors = to_transformers({path: np.asarray(array, dtype) for path, array in params.items()})
    save_tensors(folder / "model.safetensors", tensors)


def from_transformers_config(fields: dict[str, Any]) -> Wav2Vec2Config:
    """Returns the config for the fields of a transformers config; missing fields have transformers' defaults.

    Raises:
        ValueError: an architecture that is not implemented here.
    """
    for name, known in _FIXED.items():
        if fields.get(name, known) != known:
            raise ValueError(f"{name} is {fields[name]!r} in config.json; expected {known!r}")
    try:
        all_fields = import_transformers().Wav2Vec2Config.from_dict(fields).to_dict()
    except Exception as error:  # transformers raises ValueError, TypeError and errors of huggingface_hub
        raise ValueError(f"config.json: {' '.join(str(error).split())[:300]}") from error
    names = {field.name for field in dataclasses.fields(Wav2Vec2Config)} - {"dtype"}
    values: dict[str, Any] = {name: value for name, value in (all_fields | fields).items() if name in names}
    try:
        wav2vec2_schema()({"do_normalize": True} | values, "")
    except ValueError as error:
        raise ValueError(f"config.json: {error}") from error
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return Wav2Vec2Config(**values)


def from_transformers(
    config: Wav2Vec2Config, tensors: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Converts a state dict to flat params.

    Names may begin with `wav2vec2.`, and weight norm may be spelt weight_g or parametrizations.weight.original0.

    Args:
        config: the config of the networks.
        tensors: the state dict {name: array}.

    Returns:
        ({path: array}, {name: reason} of the tensors that are not used).

    Raises:
        ValueError: an unknown tensor, a missing one, or one of another shape.
    """
    return state_dicts.convert(
        Wav2Vec2(config),
        tensors,
        lambda name: next((why for start, why in UNUSED if re.match(rf"(wav2vec2\.)?{start}", name)), None),
        _to_path,
        "this wav2vec 2.0",
    )


def to_transformers(flat: dict[str, Any], prefix: str = "", parametrized: bool = True) -> dict[str, np.ndarray]:
    """Converts flat params to a state dict: the inverse of `from_transformers`, bit for bit.

    Args:
        flat: the params {path: array}.
        prefix: "wav2vec2." for the checkpoints of models with a head.
        parametrized: whether to use torch's newer names of weight norm.
    """
    return {prefix + name: array for name, array in (_to_name(path, a, parametrized) for path, a in flat.items())}


def _to_path(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    name = name.removeprefix("wav2vec2.")
    for newer, older in _WEIGHT_NORM.items():
        name = name.replace(newer, older)
    return state_dicts.from_torch(name, array)


def _to_name(path: str, array: Any, parametrized: bool) -> tuple[str, np.ndarray]:
    *module, leaf = re.sub(r"_(\d+)(?=/)", r".\1", path).split("/")
    weight_norm = {older: newer for newer, older in _WEIGHT_NORM.items()} if parametrized else {}
    leaf = {"scale": "weight", "kernel": "weight", **weight_norm}.get(leaf, leaf)
    return ".".join([*module, leaf]), np.ascontiguousarray(np.asarray(array).T)


def _read_json(path: pathlib.Path, fields: dict[str, schema.Schema] | None = None) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; expected a folder in transformers' format")
    return schema.read_json(path, schema.fields({}, fields, extra=True))


def import_transformers() -> ModuleType:
    """Imports transformers, which takes seconds, without its note that torch is missing."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers

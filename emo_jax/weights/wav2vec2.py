"""wav2vec 2.0 weights between transformers' folders and ours: a strict, mechanical renaming, exact both ways."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from emo_jax.weights.files import find_weights, read_tensors

UNUSED = (
    (r"masked_spec_embed$", "stands for masked steps in training"),
    (r"(quantizer|project_q|project_hid)\.", "a head of pretraining"),
    (r"lm_head\.", "a head for letters (CTC)"),
    (r"(classifier|projector)\.", "a head that classifies"),
    (r"adapter\.", "lies behind the last hidden state"),
)
"""Tensors of transformers' checkpoints that no hidden state depends on, and why."""

_FIXED = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "model_type": "wav2vec2", "adapter_attn_dim": None}
_WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def load_wav2vec2(directory):
    """The wav2vec 2.0 of a folder in transformers' format: config.json and model.safetensors, or pytorch_model.bin.

    Returns:
        (config, {path: array in the file's precision}, {name: reason} of the tensors that are not used).

    Raises:
        ValueError: missing or damaged files, another architecture, or weights that are not those of config.json.
    """
    directory = pathlib.Path(directory)
    fields = _json(directory / "config.json")
    if (directory / "preprocessor_config.json").is_file():
        fields["do_normalize"] = _json(directory / "preprocessor_config.json").get("do_normalize", True)
    try:
        config = from_json(fields)
        return config, *from_transformers(config, read_tensors(find_weights(directory)))
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def from_json(fields):
    """The Wav2Vec2Config of a transformers config, as a dict; what is missing there is base's.

    Raises:
        ValueError: an architecture that is not here.
    """
    for name, known in _FIXED.items():
        if fields.get(name, known) != known:
            raise ValueError(f"{name} is {fields[name]!r} in config.json; this version knows {known!r} alone")
    names = {field.name for field in dataclasses.fields(Wav2Vec2Config)} - {"dtype"}
    return Wav2Vec2Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k in names})


def from_transformers(config, tensors):
    """Our flat params {path: array} of a state dict {name: array}, and {name: reason} of what is not used.

    Names may begin with `wav2vec2.`, and weight norm be spelt weight_g or parametrizations.weight.original0.

    Raises:
        ValueError: a tensor that nothing takes, a parameter that nothing fills, or one of another shape.
    """
    shapes, flat, unused = _shapes(config), {}, {}
    for name, array in tensors.items():
        reason = next((why for start, why in UNUSED if re.match(rf"(wav2vec2\.)?{start}", name)), None)
        if reason is not None:
            unused[name] = reason
            continue
        path, value = _ours(name, np.asarray(array))
        if path not in shapes:
            raise ValueError(f"tensor {name} has no place in this wav2vec 2.0 (another architecture or size?)")
        if value.shape != shapes[path]:
            raise ValueError(f"tensor {name} has shape {np.shape(array)}, but {path} is {shapes[path]}")
        if path in flat:
            raise ValueError(f"tensor {name} is there twice, under two spellings")
        flat[path] = value
    missing = sorted(set(shapes) - set(flat))
    if missing:
        raise ValueError(f"no tensor fills {missing[0]} (and {len(missing) - 1} more)")
    return flat, unused


def to_transformers(flat, prefix="", parametrized=True):
    """The state dict {name: array} of flat params: the inverse of `from_transformers`, bit for bit.

    Args:
        prefix: "wav2vec2." for the checkpoints of heads. parametrized: torch's newer spelling of weight norm.
    """
    return {prefix + name: array for name, array in (_theirs(path, a, parametrized) for path, a in flat.items())}


def _ours(name, array):
    name = name.removeprefix("wav2vec2.")
    for theirs, ours in _WEIGHT_NORM.items():
        name = name.replace(theirs, ours)
    *module, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
    return "/".join([*module, leaf]), array.T  # (out, in, k) -> (k, in, out), (out, in) -> (in, out)


def _theirs(path, array, parametrized):
    *module, leaf = re.sub(r"_(\d+)(?=/)", r".\1", path).split("/")
    spellings = {ours: theirs for theirs, ours in _WEIGHT_NORM.items()} if parametrized else {}
    leaf = {"scale": "weight", "kernel": "weight", **spellings}.get(leaf, leaf)
    return ".".join([*module, leaf]), np.ascontiguousarray(np.asarray(array).T)


def _shapes(config):
    abstract = jax.eval_shape(Wav2Vec2(config).init, jax.random.key(0), jnp.zeros((1, config.field)))["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(abstract, sep="/").items()}


def _json(path):
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path.parent} has no {path.name}; expected a folder in transformers' format") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error

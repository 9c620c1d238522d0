"""Types and ranges of all fields of a config, checked before any network is built: errors name the field."""

from __future__ import annotations

import functools
import json
from typing import Any

from ml_collections import ConfigDict

from emo_jax import schema

_WIDTH = (1, 2**16)
_LEVELS = (1, 16)
_INTEGERS = {
    "model": _WIDTH,
    "model.audio.layers": (0, 512),
    "model.audio.wav2vec2.conv_kernel": (1, 64),
    "model.audio.wav2vec2.conv_stride": (1, 16),
    "model.audio.wav2vec2.num_hidden_layers": (1, 512),
    "model.face_embedding.tokens": (0, 2**12),
    "model.temporal_positions": (0, 2**16),
    "model.unet.layers": _LEVELS,
    "model.vae.layers": _LEVELS,
    "model.vae.patch": (1, 64),
    "model.vae.flow_channels": (0, 2**10),
    "model.vae.mouth_channels": (0, 64),
    "clip": (1, 2**12),
    "clip.audio_window": (0, 2**12),
    "clip.flow_cell": (0, 32),
    "clip.image_size": (8, 2**14),
    "clip.motion_frames": (0, 2**12),
    "diffusion.train_steps": (2, 10**5),
    "sampling": (1, 10**5),
    "sampling.overlap": (0, 2**12),
    "sampling.shift": (0, 2**12),
    "": (-1, 2**53),
}
"""Bounds of integers by field or group of fields; the longest match decides."""
_NUMBERS = {
    "clip.audio_context": (0, 600),
    "clip.face": (0, 100),
    "clip.fps": (0.01, 1000),
    "model.audio.wav2vec2.layer_norm_eps": (1e-20, 1),
    "model.speed.radii": (1e-6, 1e6),
    "": (-1e9, 1e9),
}
"""Bounds of numbers, likewise."""
_LENGTHS = {
    "clip.image_size": (2, 2),
    "clip.face.centre": (2, 2),
    "clip.face.growth": (4, 4),
    "data.crop_scale": (2, 2),
    "train.distill.reference_scale": (2, 2),
    "train.distill.audio_scale": (2, 2),
    "data.buckets": (0, 64),
    "data.sources": (0, 2**12),
    "sampling.guidance_interval": (2, 2),
    "train.also": (0, 64),
    "train.only": (0, 64),
    "train.evaluators": (0, 64),
    "train.lora.parts": (0, 64),
    "model": (1, 512),
    "model.unet": _LEVELS,
    "model.vae": _LEVELS,
    "model.locator_channels": _LEVELS,
    "": (0, 2**12),
}
"""Bounds of the lengths of lists, likewise."""
_ITEMS = {
    "train.also": schema.text(),
    "train.only": schema.text(),
    "train.evaluators": schema.array(schema.either(schema.number(0, 1e9), schema.text()), 2),
    "train.lora.parts": schema.text(),
    "data.buckets": schema.array(schema.integer(8, 2**14), (2, 2)),
    "data.sources": schema.array(schema.either(schema.number(0, 1e9), schema.text()), 3),
}
"""Schemas of the items of lists that are empty in configs/base.py."""
_NEW = (
    "model.speed_positions", "model.temporal_positions", "model.audio_branches", "model.temporal_levels",
    "model.locator", "model.locator_inputs", "model.face_embedding", "model.audio.timing", "model.audio.whisper",
    "model.audio.projected", "model.audio.gain", "clip.audio_context",
    "clip.first_motion", "sampling.guidance_rescale", "sampling.guidance_interval", "sampling.hold_colors",
    "sampling.stride", "sampling.bank_tiling", "sampling.reencode_motion", "sampling.pose_weight",
    "sampling.face_weight", "sampling.lip_weight", "sampling.strategy", "sampling.overlap",
    "sampling.shift", "model.image_inputs", "model.guidance_inputs",
    "sampling.deep_interval", "sampling.portrait_return", "model.vae.flow_channels", "model.vae.mouth_channels",
    "clip.flow_cell",
)  # fmt: skip
"""Fields that weights of earlier versions lack; they then have their earlier meaning."""
_GROUPS = ("model", "clip")
"""The fields that every config of weights has. Others change from version to version, and have defaults."""


@functools.cache
def config_schema() -> schema.Schema:
    """Returns the schema of a full config. Its types are those of configs/base.py."""
    groups = {name: _schema(value, name) for name, value in _base().items()}
    required = {name: groups.pop(name) for name in (*_GROUPS, "diffusion", "sampling")}
    return schema.fields(required, groups, extra=True)


@functools.cache
def wav2vec2_schema() -> schema.Schema:
    """Returns the schema of the fields of `model.audio.wav2vec2`; others are accepted."""
    return _schema(_base()["model"]["audio"]["wav2vec2"], "model.audio.wav2vec2")


def config_from_fields(fields: Any, name: str = "") -> ConfigDict:
    """Returns the config of a JSON value.

    Args:
        fields: the JSON value.
        name: name of the config in its file, for messages.

    Raises:
        ValueError: a field that networks need is missing, or a field has another type or is out of range.
    """
    config_schema()(fields, name)
    try:
        return ConfigDict(fields)
    except (KeyError, TypeError, AttributeError) as error:  # fields with the names of ConfigDict's methods
        raise ValueError(f"{name or 'the content'} is no config ({' '.join(str(error).split())})") from error


def check_fields(config: ConfigDict) -> None:
    """Checks types and ranges of the fields that networks depend on, `model` and `clip`.

    Raises:
        ValueError: a field is missing, has another type or is out of range.
    """
    for name in _GROUPS:
        group = ConfigDict(config)[name]
        _group_schema(name)(json.loads(group.to_json_best_effort()), name)


@functools.cache
def _group_schema(name: str) -> schema.Schema:
    return _schema(_base()[name], name)


@functools.cache
def _base() -> dict[str, Any]:
    from emo_jax.configs import base  # pyright: ignore[reportMissingImports]  # a folder of setup.cfg's package_dir

    return json.loads(base.get_config().to_json_best_effort())


def _schema(value: Any, name: str) -> schema.Schema:
    """Returns the schema of a field from its value in configs/base.py."""
    if name == "model.unet.remat":
        return schema.either(schema.boolean(), schema.text())  # older weights: booleans
    if isinstance(value, dict):
        found = {key: _schema(item, f"{name}.{key}") for key, item in value.items()}
        top = name.partition(".")[0]
        required = {key for key in found if top in (*_GROUPS, "diffusion", "sampling") and f"{name}.{key}" not in _NEW}
        return schema.fields(
            {key: found[key] for key in found if key in required},
            {key: found[key] for key in found if key not in required},
            extra=True,
        )
    if isinstance(value, list):
        item = _ITEMS[name] if name in _ITEMS else _schema(value[0], name)
        return schema.array(item, _bounds(_LENGTHS, name))
    if isinstance(value, bool):
        return schema.boolean()
    if isinstance(value, str):
        return schema.text("(?s:.*)", "a string")
    return (
        schema.integer(*_bounds(_INTEGERS, name)) if isinstance(value, int) else schema.number(*_bounds(_NUMBERS, name))
    )


def _bounds(table: dict[str, tuple[Any, Any]], name: str) -> tuple[Any, Any]:
    matches = [key for key in table if not key or f"{name}.".startswith(f"{key}.")]
    return table[max(matches, key=len)]

"""The guided Backbone: which conditions each pass of guidance gets, and the options of guidance in a config."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emo_jax.diffusion.guidance import PASSES, guidance_mode, guide
from emo_jax.distributed.mesh import make_mesh
from emo_jax.generation.options import SAMPLING_OPTIONS
from emo_jax.models.conditions import Conditions, mask_conditions
from emo_jax.models.emo import EMO
from emo_jax.models.unet import DEEP

Params: TypeAlias = Mapping[str, Any]
Scales: TypeAlias = tuple[Any, Any]
"""(reference_scale, audio_scale)."""


def mode_of(model: ConfigDict, scales: Scales) -> str:
    """Returns the guidance mode of two scales, a key of `PASSES`: of networks with scales as inputs always the same.

    Args:
        model: the config's `model`.
        scales: the guidance scales.
    """
    return "inputs" if model.get("guidance_inputs", False) else guidance_mode(*scales)


def tiles_bank(sampling: ConfigDict, mode: str) -> bool:
    """Returns whether conditions are encoded for the halves of guidance as hallo does (`EMO.conditions(tiled=...)`)."""
    return bool(sampling.get("bank_tiling", False)) and len(PASSES[mode]) > 1


def guidance_options(sampling: ConfigDict, train_steps: int) -> dict[str, Any]:
    """Returns the arguments `rescale` and `interval` of `diffusion.guidance.guide`.

    Args:
        sampling: the config's `sampling`.
        train_steps: training timesteps T; `guidance_interval` is in shares of T, from clean (0) to noise (1).
    """
    options = ConfigDict({**SAMPLING_OPTIONS, **sampling})
    low, high = options.guidance_interval
    interval = None if (low, high) == (0, 1) else (math.ceil(low * train_steps), math.ceil(high * train_steps) - 1)
    return dict(rescale=float(options.guidance_rescale), interval=interval)


def guided_denoiser(
    emo: EMO,
    params: Params,
    conditions: Conditions,
    mode: str,
    scales: Scales,
    reuses_deep: bool = False,
    **options: Any,
) -> Callable:
    """Returns the guided Backbone: (x (B, f, h, w, c), t (B,)) -> prediction (B, f, h, w, c).

    Args:
        emo: the networks.
        params: their parameters.
        conditions: the conditions of the B samples.
        mode: the guidance mode, a key of `PASSES`.
        scales: the guidance scales, which may be traced.
        reuses_deep: whether it returns (prediction, features of the deep levels), and takes the features of an earlier
            step as its third argument, with which it computes the first level alone.
        **options: `rescale` and `interval`, see `diffusion.guidance.guide`.
    """
    passes = len(PASSES[mode])
    given = _given_conditions(emo, conditions, mode)
    tiled = _tile(dataclasses.replace(conditions, **dict.fromkeys(given)), passes)

    predict: Callable = functools.partial(_predict_with_deep, emo) if reuses_deep else emo.denoise

    def denoise(x: Any, t: Any, reference_on: Any, audio_on: Any, *deep: Any) -> Any:
        leaves = jax.tree.leaves(conditions)
        if mode == "inputs":
            pairs = [jnp.broadcast_to(jnp.ravel(jnp.asarray(scale, jnp.float32)), len(x)) for scale in scales]
            return predict(params, x, t, dataclasses.replace(conditions, scales=jnp.stack(pairs, axis=-1)), *deep)
        is_one_pass = passes == 1 or bool(leaves) and len(x) == len(leaves[0])
        if is_one_pass:
            return predict(params, x, t, mask_conditions(conditions, reference_on, audio_on), *deep)
        rows = dataclasses.replace(mask_conditions(tiled, reference_on, audio_on), **given)
        return predict(params, x, t, rows, *deep)

    return guide(denoise, mode, *scales, **options)


def _predict_with_deep(
    emo: EMO, params: Params, x: Any, t: Any, conditions: Conditions, deep: Any = None
) -> tuple[Any, Any]:
    prediction, features = emo.backbone_outputs(params, x, t, conditions, deep)
    return prediction, features[DEEP]


def _tile(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda a: jnp.tile(a, (times,) + (1,) * (a.ndim - 1)), tree)


def _given_conditions(emo: EMO, conditions: Conditions, mode: str) -> dict[str, Any]:
    """Returns the conditions of those guidance passes alone that have them; the Backbone knows the others' results.

    On a mesh that splits the passes, there are none: the devices of the last pass would not be faster.
    """
    mesh, model = jax.sharding.get_abstract_mesh(), emo.config.model
    if not mesh.empty and mesh.shape["data"] * mesh.shape["fsdp"] > 1:
        return {}
    reference_passes, audio_passes = (sum(flags) for flags in zip(*PASSES[mode], strict=True))
    given = {"audio": _tile(conditions.audio, audio_passes)}
    equal_tokens = model.reference_attention == "cross" and not model.reference_positions
    if equal_tokens or model.reference_attention == "shared":
        given["reference"] = _tile(conditions.reference, reference_passes)
        given["reference_on"] = _tile(conditions.reference_on, reference_passes)
    return given


def mesh_for(mode: str, frames: int, devices: Sequence[Any] | None = None, batch: int = 1) -> Mesh | None:
    """Returns the mesh on which a batch of videos is generated, or None for a single device.

    The videos of a batch, or the guidance passes of one video, are split over the data axis and the frames of a clip
    over the frame axis, on as many devices as divide both evenly. Further devices stay idle.

    Args:
        mode: the guidance mode, a key of `PASSES`.
        frames: frames per clip.
        devices: devices to use; None for the local ones.
        batch: number of videos.
    """
    devices = jax.local_devices() if devices is None else devices
    rows = len(PASSES[mode]) if batch == 1 else batch
    shapes = [(d, f) for d in range(1, rows + 1) for f in range(1, frames + 1) if not rows % d and not frames % f]
    data, frame = max((math.prod(s), *s) for s in shapes if math.prod(s) <= len(devices))[1:]
    used = devices[: data * frame]
    return make_mesh(data=data, frame=frame, devices=used) if len(used) > 1 else None

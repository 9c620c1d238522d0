"""Placement of activations on the mesh, by one table of rules for a few named places in the networks."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

from emo_jax.arrays import AnyArray
from emo_jax.distributed.parameters import splits_parameters

PLACES = {
    "spatial": (1, 2),
    "temporal": (2,),
    "shared": (),
}
"""For each named place, the axes of an activation (batch, frames, height, width, channels) that the mesh axis `frame`
may split; the first axis whose size it divides is split.

spatial: layers that work frame by frame; they split frames, or rows if the frames do not divide (ReferenceNet's few).
temporal: layers that work place by place; they split rows. shared: what all frames attend to; it is not split.
"""


def constrain(x: Float[AnyArray, "batch ..."], place: str) -> Float[AnyArray, "batch ..."]:
    """Constrains the sharding of an activation (batch, frames, height, width, channels) by a row of PLACES.

    Returns the activation unchanged if there is no mesh, or if it has another rank.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.ndim != 5:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, place))


def activation_spec(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], place: str) -> PartitionSpec:
    """Returns the PartitionSpec of an activation at a place; if its rank is not 5, only samples are split."""
    axes: list[Any] = [_sample_axes(mesh, shape[0])] + [None] * (len(shape) - 1)
    if len(shape) == 5:
        split = next((axis for axis in PLACES[place] if shape[axis] % mesh.shape["frame"] == 0), None)
        if split is not None:
            axes[split] = "frame"
    return PartitionSpec(*axes)


def gathered_rows(x: Float[AnyArray, "batch ..."]) -> Float[AnyArray, "batch ..."]:
    """Gathers one vector per sample or frame over the mesh axis `fsdp`; unchanged if parameters are not split.

    A layer between two of these calls computes the gradient of each device's part of its kernel on that device, from
    the rows of all devices, and sums nothing over `fsdp`. With so few rows, XLA for TPU would sum the full gradient.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splits_parameters():
        return x
    samples = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(samples, *rest))


def per_device(
    attention: Callable,
    query: Float[AnyArray, "batch *frames queries heads features"],
    key: Float[AnyArray, "batch *frames keys heads features"],
    value: Float[AnyArray, "batch *frames keys heads features"],
) -> Float[Array, "batch *frames queries heads features"]:
    """Computes attention(query, key, value) on each device for the samples, frames and heads that it holds.

    The compiler cannot partition kernels and loops, and would gather their arguments on every device. If arrays have
    no axis of frames, the mesh axis `frame` splits the queries.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or query.ndim not in (4, 5):
        return attention(query, key, value)
    samples = _sample_axes(mesh, query.shape[0])
    heads = "tensor" if query.shape[-2] % mesh.shape["tensor"] == 0 else None
    split = next((i for i in range(1, query.ndim - 2) if query.shape[i] % mesh.shape["frame"] == 0), None)
    q_axes = [samples, *("frame" if i == split else None for i in range(1, query.ndim - 2)), heads, None]
    splits_queries = split == query.ndim - 3  # each query still needs all keys
    k_axes = [None if splits_queries and axis == "frame" else axis for axis in q_axes]
    q_spec, k_spec = PartitionSpec(*q_axes), PartitionSpec(*k_axes)
    mapped = jax.shard_map(attention, in_specs=(q_spec, k_spec, k_spec), out_specs=q_spec, check_vma=False)
    return mapped(query, key, value)


def per_frame(function: Callable, x: AnyArray, *params: AnyArray) -> Array:
    """Computes ``function(x, *params)`` on each device for the frames that it holds.

    For functions of (batch, frames, height, width, channels) that fold batch and frames into one axis: folded before
    they are split, no device would hold a contiguous part, and the compiler would gather all frames.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["frame"] == 1 or x.ndim != 5 or x.shape[1] % mesh.shape["frame"]:
        return function(x, *params)
    frames, replicated = PartitionSpec(None, "frame"), PartitionSpec()
    in_specs = (frames, *(replicated for _ in params))
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=frames, axis_names={"frame"}, check_vma=False)
    return mapped(x, *params)


def _sample_axes(mesh: Mesh | AbstractMesh, size: int) -> tuple[str, str] | None:
    return ("data", "fsdp") if size % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None

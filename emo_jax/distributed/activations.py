"""Mesh, placement of parameters and batches, and of activations at a few named places: one table of rules for each."""

import jax
from jax.sharding import PartitionSpec

from emo_jax.distributed.parameters import splits_parameters

PLACES = {
    "spatial": (1, 2),
    "temporal": (2,),
    "shared": (),
}
"""Which axis of an activation (B, F, H, W, C) the frame axis splits, the first that it divides, at each named place.

spatial: a layer that works frame by frame; frames, or rows where frames do not divide (ReferenceNet's few).
temporal: a layer that works place by place; rows. shared: what all frames look at; whole.
"""


def constrain(x, place):
    """x (B, F, H, W, C) split over the mesh as PLACES says; without a mesh, or of another rank, as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.ndim != 5:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, place))


def activation_spec(mesh, shape, place):
    """The PartitionSpec at a place of an activation (B, F, H, W, C); of another rank, split by samples alone."""
    axes = [_samples(mesh, shape[0])] + [None] * (len(shape) - 1)
    if len(shape) == 5:
        split = next((axis for axis in PLACES[place] if shape[axis] % mesh.shape["frame"] == 0), None)
        if split is not None:
            axes[split] = "frame"
    return PartitionSpec(*axes)


def gathered_rows(x):
    """x (B, ..., C), a vector for each sample or frame, whole over fsdp; without a mesh as it is.

    A layer between two of these makes each device's part of its kernel's gradient there, and nothing is summed over
    fsdp, for which a device computes it of all these rows. Of so few XLA for TPU would sum the whole gradient.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splits_parameters():
        return x
    samples = "data" if x.shape[0] % mesh.shape["data"] == 0 else None
    kept = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(samples, *kept))


def per_device(attention, query, key, value):
    """attention(query, key, value), each device on its own samples, frames (or places, or queries) and heads.

    The compiler cannot look into kernels and loops, and would gather what they are given. Arguments as the attention's:
    (B, F, S, heads, D), or (B, S, heads, D) where the frames are part of S.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or query.ndim not in (4, 5):
        return attention(query, key, value)
    samples = _samples(mesh, query.shape[0])
    heads = "tensor" if query.shape[-2] % mesh.shape["tensor"] == 0 else None
    split = next((i for i in range(1, query.ndim - 2) if query.shape[i] % mesh.shape["frame"] == 0), None)
    q_axes = [samples, *("frame" if i == split else None for i in range(1, query.ndim - 2)), heads, None]
    shared = split == query.ndim - 3  # queries are split; each sees all keys
    k_axes = [None if shared and axis == "frame" else axis for axis in q_axes]
    q_spec, k_spec = PartitionSpec(*q_axes), PartitionSpec(*k_axes)
    mapped = jax.shard_map(attention, in_specs=(q_spec, k_spec, k_spec), out_specs=q_spec, check_vma=False)
    return mapped(query, key, value)


def per_frame(function, x, *params):
    """function(x, *params) of x (B, F, H, W, C) that folds B and F into one axis, each device on its own frames.

    Were the whole of B and F folded, no device would hold a part of it: the compiler would gather all frames.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["frame"] == 1 or x.ndim != 5 or x.shape[1] % mesh.shape["frame"]:
        return function(x, *params)
    frames, whole = PartitionSpec(None, "frame"), PartitionSpec()
    mapped = jax.shard_map(
        function, in_specs=(frames, *(whole for _ in params)), out_specs=frames, axis_names={"frame"}, check_vma=False
    )
    return mapped(x, *params)


def _samples(mesh, size):
    return ("data", "fsdp") if size % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else None

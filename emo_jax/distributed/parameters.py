"""Placement of one parameter on the mesh, and the gather that brings it back when its layer runs."""

import functools
import math
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array

from emo_jax.arrays import AnyArray
from emo_jax.ops.attention import LANES, platform

SMALL = 2**10
"""Number of elements below which a parameter is replicated on every device."""

GATHERED = "gathered"
"""Checkpoint name of gathered parameters: remat policies gather them again in the backward pass."""


def splits_parameters() -> bool:
    """Returns whether the code being traced is traced for a mesh with an fsdp axis larger than 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["fsdp"] > 1


def partition_spec(
    shape: tuple[int, ...],
    over_tensor: Literal["output", "input"] | None,
    over_fsdp: Literal["largest", "input"] | None,
    fsdp: int,
    tensor: int,
    name: str = "the parameter",
) -> PartitionSpec:
    """Returns the PartitionSpec of a parameter.

    Args:
        shape: shape of the parameter.
        over_tensor: "output", "input" or None; see `models.parts.Layer.tensor`.
        over_fsdp: "largest", "input" or None; see `models.parts.Layer.fsdp`.
        fsdp: size of the mesh axis `fsdp`.
        tensor: size of the mesh axis `tensor`.
        name: the parameter's path, for the error message.

    Raises:
        ValueError: the tensor axis does not divide the axis that it must split.
    """
    axes: list[str | None] = [None] * len(shape)
    if over_tensor and tensor > 1 and len(shape) > 1:
        axis = len(shape) - (1 if over_tensor == "output" else 2)
        if shape[axis] % tensor:
            raise ValueError(
                f"train.mesh.tensor is {tensor}; expected a divisor of {shape[axis]}, the {over_tensor} axis of {name} "
                f"{tuple(shape)} (models.parts.LAYERS)"
            )
        axes[axis] = "tensor"
    free = [i for i, size in enumerate(shape) if size % fsdp == 0 and axes[i] is None]
    if over_fsdp and fsdp > 1 and free and math.prod(shape) >= SMALL:
        first = len(shape) - 2 if over_fsdp == "input" else None
        axes[max(free, key=lambda i: (i == first, shape[i], i))] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(a: AnyArray, split: PartitionSpec, gathered: PartitionSpec, dtype: Any) -> Array:
    """Returns a parameter cast to `dtype` and gathered from PartitionSpec `split` to `gathered`.

    The gradient is scattered back to `split` in the precision of the parameter.
    """
    # Without the barrier XLA moves the cast behind the gather, and the parameter travels in float32.
    cast = jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(a.astype(dtype), split))
    return checkpoint_name(jax.lax.with_sharding_constraint(cast, gathered), GATHERED)


def _forward(a: AnyArray, split: PartitionSpec, gathered: PartitionSpec, dtype: Any) -> tuple[Array, Array]:
    return gather(a, split, gathered, dtype), jax.numpy.zeros((), a.dtype)


def _backward(
    split: PartitionSpec, gathered: PartitionSpec, dtype: Any, like: AnyArray, gradient: AnyArray
) -> tuple[Array]:
    axis = split.index("fsdp")
    share = gradient.shape[axis] // jax.sharding.get_abstract_mesh().shape["fsdp"]
    if platform() == "tpu" and gradient.ndim > 1 and share % LANES:
        # XLA for TPU scatters such a sum only along the other axis of a tile.
        *outer, last = (i for i in range(gradient.ndim) if i != axis)
        gradient = with_layout_constraint(gradient, Layout(major_to_minor=(*outer, axis, last)))
    return (jax.lax.with_sharding_constraint(gradient, split).astype(like.dtype),)


gather.defvjp(_forward, _backward)

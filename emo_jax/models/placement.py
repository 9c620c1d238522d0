"""Placement of EMO's parameters and optimizer state on the mesh, by the table in `models.parts`."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from emo_jax.distributed.mesh import replicated
from emo_jax.distributed.parameters import gather as gather_parameter
from emo_jax.distributed.parameters import partition_spec, splits_parameters
from emo_jax.models.int8 import dequantised
from emo_jax.models.parts import layer_of

LARGE = 2**24
"""Number of elements that may be replicated on every device, however small the share of a device is."""

_LEVEL = re.compile(r"(down|up)_blocks_\d+$|mid_block$")


def parameter_spec(path: str, shape: tuple[int, ...], fsdp: int, tensor: int = 1) -> PartitionSpec:
    """Returns the PartitionSpec of a parameter, or of optimizer state with the same path and shape.

    Args:
        path: its path, or its path inside a resnet, transformer or temporal module.
        shape: shape of the parameter.
        fsdp: size of the mesh axis `fsdp`.
        tensor: size of the mesh axis `tensor`.

    Raises:
        ValueError: no row of `models.parts.LAYERS` matches, or the tensor axis does not divide the parameter.
    """
    layer = layer_of(path)
    return partition_spec(shape, layer.tensor, layer.fsdp, fsdp, tensor, path)


def state_sharding(mesh: Mesh | AbstractMesh, state: Any) -> Any:
    """Returns shardings for a tree whose parameters are the values of dicts {path: array}; other leaves are replicated.

    Raises:
        ValueError: as `parameter_spec`, or the fsdp axis divides so few parameters that it saves no memory.
    """
    fsdp, tensor, sizes = mesh.shape["fsdp"], mesh.shape["tensor"], {True: 0, False: 0}

    def place(keys: Any, leaf: Any) -> NamedSharding:
        if not (keys and isinstance(keys[-1], jax.tree_util.DictKey)):
            return replicated(mesh)
        spec = parameter_spec(keys[-1].key, leaf.shape, fsdp, tensor)
        sizes["fsdp" in spec] += math.prod(leaf.shape)
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(place, state)
    unsplit, total = sizes[False], sum(sizes.values())
    if fsdp > 1 and (unsplit > total / 2 or unsplit > max(total / fsdp, LARGE)):
        raise ValueError(
            f"train.mesh.fsdp is {fsdp}, which divides no axis of parameters with {unsplit} of {total} elements (rule "
            "'largest' of models.parts.LAYERS); expected a divisor of the widths, such as 8 or 64: give data the rest"
        )
    return shardings


def gathered(params: Any, dtype: Any = None) -> Any:
    """Returns a module's nested params gathered over the mesh axis fsdp; they stay split over tensor.

    Without a mesh, or with an fsdp axis of 1, params are returned unchanged. Gradients are scattered back.

    Args:
        params: nested params.
        dtype: precision to which params are cast before they are gathered; None keeps theirs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splits_parameters():
        return params
    tensor = mesh.shape["tensor"]

    def gather(keys: Any, a: Any) -> Any:
        path = "/".join(key.key for key in keys)
        split = parameter_spec(path, a.shape, mesh.shape["fsdp"], tensor)
        unsplit = parameter_spec(path, a.shape, 1, tensor)
        return gather_parameter(a, split, unsplit, dtype or a.dtype) if "fsdp" in split else a

    return jax.tree_util.tree_map_with_path(gather, params)


def part_variables(params: Any, dtype: Any = None, keep: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the Flax variables of a part, with kernels of 8 bits as floats, and gathered where a mesh splits them.

    Without the gather, XLA's partitioner would split activations instead. The levels of UNets are left out: each
    gathers its params when it runs.

    Args:
        params: nested params of the part.
        dtype: precision in which params are gathered; None keeps theirs.
        keep: names of layers that compute in float32 and keep their precision.
    """
    params = dequantised(params, dtype or jnp.float32)
    rest = {name: sub for name, sub in params.items() if not _LEVEL.match(name)}
    rest = {name: gathered({name: sub}, None if name in keep else dtype)[name] for name, sub in rest.items()}
    return {"params": {**params, **rest}}

"""Placement of EMO's parameters and optimizer state on the mesh, by the table in `models.parts`."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from emo_jax.distributed.mesh import replicated
from emo_jax.distributed.parameters import gather as gather_parameter
from emo_jax.distributed.parameters import partition_spec, splits_parameters
from emo_jax.models.parts import layer_of

LARGE = 2**24
"""Number of elements that may be replicated on every device, however small the share of a device is."""


def parameter_spec(path: str, shape: tuple[int, ...], fsdp: int, tensor: int = 1) -> PartitionSpec:
    """Returns the PartitionSpec of a parameter, or of optimizer state with the same path and shape.

    Args:
        path: its path, or its path inside a resnet, transformer or temporal module.
        shape: its shape.
        fsdp: size of the mesh axis `fsdp`.
        tensor: size of the mesh axis `tensor`.

    Raises:
        ValueError: no row of `models.parts.LAYERS` matches, or the tensor axis does not divide the parameter.
    """
    layer = layer_of(path)
    return partition_spec(shape, layer.tensor, layer.fsdp, fsdp, tensor, path)


def state_sharding(mesh, state):
    """Shardings for a tree whose array leaves sit in dicts {path: array}; other leaves are replicated.

    Raises:
        ValueError: as `parameter_spec`, and where the fsdp axis divides so little that it saves no memory.
    """
    fsdp, tensor, sizes = mesh.shape["fsdp"], mesh.shape["tensor"], {True: 0, False: 0}

    def place(keys, leaf):
        if not (keys and isinstance(keys[-1], jax.tree_util.DictKey)):
            return replicated(mesh)
        spec = parameter_spec(keys[-1].key, leaf.shape, fsdp, tensor)
        sizes["fsdp" in spec] += math.prod(leaf.shape)
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place, state)
    whole, total = sizes[False], sum(sizes.values())
    if fsdp > 1 and (whole > total / 2 or whole > max(total / fsdp, LARGE)):
        raise ValueError(
            f"train.mesh.fsdp is {fsdp}, which divides no axis of parameters with {whole} of {total} elements (rule "
            "'largest' of models.parts.LAYERS); choose a divisor of the widths, such as 8 or 64, and give data the rest"
        )
    return placed


def gathered(params, dtype=None):
    """A module's nested params as it computes with them: whole over fsdp, still split over tensor.

    They are cast to `dtype` (None: as they are) before they travel; their gradients go back to where they lie. Without
    a mesh, or with an fsdp axis of 1, they are left as they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not splits_parameters():
        return params
    tensor = mesh.shape["tensor"]

    def gather(keys, a):
        path = "/".join(key.key for key in keys)
        split = parameter_spec(path, a.shape, mesh.shape["fsdp"], tensor)
        whole = parameter_spec(path, a.shape, 1, tensor)
        return gather_parameter(a, split, whole, dtype or a.dtype) if "fsdp" in split else a

    return jax.tree_util.tree_map_with_path(gather, params)

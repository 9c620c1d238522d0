"""Mesh, placement of parameters and batches: one table of path rules."""

import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

RULES = (
    (r".*(^|/)(kernel|weight_v)$", "largest"),
    (r".*(^|/)(bias|scale|weight_g|scaling_factor)$", "replicated"),
)
"""Placement by parameter path. 'largest': the largest axis that the fsdp axis divides is split over it."""


def make_mesh(data=-1, fsdp=1, devices=None):
    """A mesh of axes (data, fsdp) over all devices; -1 takes what the other leaves.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if min(data, fsdp) < -1 or 0 in (data, fsdp) or data == fsdp == -1:
        raise ValueError(f"train.mesh is data={data}, fsdp={fsdp}; expected sizes of at least 1, or -1 for one")
    data = count // fsdp if data == -1 else data
    fsdp = count // data if fsdp == -1 else fsdp
    if data * fsdp != count:
        raise ValueError(
            f"train.mesh is data={data}, fsdp={fsdp}: {data * fsdp} devices, but {count} are present; "
            "set one of them to -1"
        )
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def parameter_spec(path, shape, fsdp):
    """The PartitionSpec of a parameter, or of optimizer state of the same path and shape.

    Raises:
        ValueError: no rule matches the path.
    """
    placement = next((placement for pattern, placement in RULES if re.match(pattern, path)), None)
    if placement is None:
        raise ValueError(f"no sharding rule matches parameter {path!r}; add a row to sharding.RULES")
    divisible = [i for i, size in enumerate(shape) if size % fsdp == 0 and size >= fsdp]
    if placement == "replicated" or fsdp == 1 or not divisible or math.prod(shape) < 2**10:
        return PartitionSpec()
    axis = max(divisible, key=lambda i: (shape[i], i))
    return PartitionSpec(*(None,) * axis, "fsdp")


def state_sharding(mesh, state):
    """Shardings for a tree whose array leaves sit in dicts {path: array}; other leaves are replicated."""

    def place(keys, leaf):
        if not (keys and isinstance(keys[-1], jax.tree_util.DictKey)):
            return replicated(mesh)
        return NamedSharding(mesh, parameter_spec(keys[-1].key, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, state)


def replicated(mesh):
    """The whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """Batches are split along axis 0 over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place_batch(mesh, batch):
    """Puts this process' part of a batch (numpy) on its devices as one global array.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    size, devices = len(next(iter(batch.values()))), len(mesh.local_devices)
    if size % devices:
        raise ValueError(
            f"a batch of {size} does not divide over {devices} devices; make train.batch_size a multiple of them"
        )
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}

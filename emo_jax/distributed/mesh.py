"""The device mesh, the placement of batches on it, and checks that it divides a config's model and batches."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

AXES = ("data", "fsdp", "frame", "tensor")
"""Samples are split over data and fsdp, parameters over fsdp and tensor, a clip over frame, heads over tensor."""


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    frame: int = 1,
    tensor: int = 1,
    dcn_data: int = 1,
    *,
    clips: bool = True,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns a mesh with the axes AXES over all devices. A size of -1 is inferred from the others.

    Args:
        data: size of the axis `data`.
        fsdp: size of the axis `fsdp`.
        frame: size of the axis `frame`.
        tensor: size of the axis `tensor`.
        dcn_data: number of slices (or of processes, if the platform has no slices) that the axis `data` spans. A slow
            network joins them, and carries only gradients.
        clips: False if samples are single frames; the devices of the axis `frame` then take further samples.
        devices: default: all devices of JAX.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or do not fit their topology.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(data=data, fsdp=fsdp, frame=frame, tensor=tensor)
    requested = "train.mesh is " + ", ".join(f"{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ValueError(f"{requested}; expected sizes of at least 1, or -1 for one axis")
    for name in open_axes:
        sizes[name] = max(1, len(devices) // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"{requested}: {math.prod(sizes.values())} devices; expected {len(devices)}, the number present: set one "
            "axis to -1"
        )
    if not clips:
        sizes |= dict(data=sizes["data"] * sizes["frame"], frame=1)
    return Mesh(_device_grid(tuple(sizes.values()), dcn_data, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _device_grid(shape: tuple[int, ...], dcn_data: int, devices: Sequence[Any]) -> np.ndarray:
    """Arranges devices in an array of a shape, with neighbours of the network next to each other.

    Devices that share samples, along frame and tensor, are placed in one process if possible: it feeds them all.
    """
    slices = {getattr(device, "slice_index", None) for device in devices}
    if dcn_data == 1 and len(slices) == 1:
        try:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (AssertionError, NotImplementedError):  # a subset of a TPU's chips that is not a box
            grid = np.array(devices).reshape(shape)
        if _spans_processes(grid):
            by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
            grid = np.array(by_process).reshape(shape)
        return grid
    by_process = None in slices or len(slices) == 1
    groups = len({device.process_index for device in devices}) if by_process else len(slices)
    if dcn_data != groups or shape[0] % dcn_data:
        raise ValueError(
            f"train.mesh.dcn_data is {dcn_data} and data {shape[0]}; expected dcn_data {groups}, the number of "
            f"{'processes' if by_process else 'slices'} of the devices, and data a multiple of it"
        )
    inner, outer = (shape[0] // dcn_data, *shape[1:]), (dcn_data, 1, 1, 1)
    options: dict[str, Any] = dict(process_is_granule=by_process, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **options)


def _spans_processes(grid: np.ndarray) -> bool:
    """Returns whether devices that share samples belong to several processes."""
    rows = grid.reshape(-1, math.prod(grid.shape[2:]))
    return any(len({device.process_index for device in row}) > 1 for row in rows)


def check_mesh(mesh: Mesh, config: ConfigDict) -> None:
    """Checks that a mesh divides the model and the batches of a config.

    Args:
        mesh: from `make_mesh`.
        config: the full config; its sub-configs `model`, `clip` and `train` are read.

    Raises:
        ValueError: the mesh does not divide them, or batches are empty; the message names the field to change.
    """
    shape, unet, train = mesh.shape, config.model.unet, config.train
    for name in ("batch_size", "accumulate"):
        if train[name] < 1:
            raise ValueError(f"train.{name} is {train[name]}; expected 1 or more")
    if unet.heads % shape["tensor"]:
        raise ValueError(
            f"train.mesh.tensor is {shape['tensor']}; expected a divisor of model.unet.heads, {unet.heads}"
        )
    if config.clip.frames % shape["frame"]:
        raise ValueError(
            f"train.mesh.frame is {shape['frame']}; expected a divisor of clip.frames, {config.clip.frames}"
        )
    parts = shape["data"] * shape["fsdp"] * train.accumulate
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size is {train.batch_size}; expected a multiple of {parts}, data x fsdp x train.accumulate = "
            f"{shape['data']} x {shape['fsdp']} x {train.accumulate}"
        )
    if _spans_processes(mesh.devices):
        raise ValueError(
            f"train.mesh has frame x tensor = {shape['frame'] * shape['tensor']} devices that share samples in several "
            "processes, each of which reads its own; expected a divisor of the devices of a process"
        )


def traced_for_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Returns a function that is traced with a mesh, which `constrain` and `per_device` read."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: axis 0 over data and fsdp; devices along frame and tensor share samples."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def local_rows(mesh: Mesh, size: int) -> list[int]:
    """Returns the indices of a batch's samples on this process' devices, in the order that `place_batch` expects.

    On TPUs, neighbours in the mesh are neighbours of the network, so that a process' rows need not be contiguous.

    Args:
        mesh: from `make_mesh`.
        size: number of samples in the global batch.
    """
    feeding = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)[:, 0]
    share, process = size // len(feeding), jax.process_index()
    places = [place for place, device in enumerate(feeding) if device.process_index == process]
    return [place * share + row for place in places for row in range(share)]


def place_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Places this process' part of a batch, its `local_rows`, on its devices, as global arrays.

    Args:
        mesh: from `make_mesh`.
        batch: {name: NumPy array with samples along axis 0}.

    Raises:
        ValueError: the batch does not divide over the devices, or processes would have to share samples.
    """
    size, devices = len(next(iter(batch.values()))), len(mesh.local_devices)
    sharing = mesh.shape["frame"] * mesh.shape["tensor"]
    if devices % sharing:
        raise ValueError(
            f"train.mesh has frame x tensor = {sharing} devices that share samples; expected a divisor of {devices}, "
            "the devices of a process"
        )
    if size % (devices // sharing):
        raise ValueError(
            f"a process has {size} samples of a batch; expected a multiple of {devices // sharing} devices: change "
            "train.batch_size"
        )
    sharding, global_size = batch_sharding(mesh), size * mesh.size // devices
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(part), (global_size, *np.shape(part)[1:]))
        for name, part in batch.items()
    }

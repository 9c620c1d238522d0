"""Mesh, placement of parameters and batches, and of activations at a few named places: one table of rules for each."""

import functools
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "frame", "tensor")
"""Samples are split over data and fsdp, parameters over fsdp and tensor, a clip over frame, heads over tensor."""


def make_mesh(data=-1, fsdp=1, frame=1, tensor=1, dcn_data=1, *, clips=True, devices=None):
    """A mesh of AXES over all devices; -1 takes what the others leave.

    Args:
        dcn_data: how many slices (or, where the platform has none, processes) the data axis spans: they are joined by
            a slow network, which then carries gradients alone.
        clips: False where samples are single frames: the frame axis' devices then take further samples, as data's do.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or the devices lie otherwise.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(data=data, fsdp=fsdp, frame=frame, tensor=tensor)
    told = "train.mesh is " + ", ".join(f"{name}={size}" for name, size in sizes.items())
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ValueError(f"{told}; expected sizes of at least 1, or -1 for one")
    for name in open_axes:
        sizes[name] = max(1, len(devices) // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"{told}: {math.prod(sizes.values())} devices, but {len(devices)} are present; set one of them to -1"
        )
    if not clips:
        sizes |= dict(data=sizes["data"] * sizes["frame"], frame=1)
    return Mesh(_grid(tuple(sizes.values()), dcn_data, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape, dcn_data, devices):
    """The devices as an array of that shape, neighbours of the network next to each other.

    But those that share samples, along frame and tensor, lie in one process where they can: it feeds them all.
    """
    slices = {getattr(device, "slice_index", None) for device in devices}
    if dcn_data == 1 and len(slices) == 1:
        try:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (AssertionError, NotImplementedError):  # some of a TPU's chips, which are no box
            grid = np.array(devices).reshape(shape)
        if _torn(grid):
            by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
            grid = np.array(by_process).reshape(shape)
        return grid
    by_process = None in slices or len(slices) == 1
    groups = len({device.process_index for device in devices}) if by_process else len(slices)
    if dcn_data != groups or shape[0] % dcn_data:
        raise ValueError(
            f"train.mesh.dcn_data is {dcn_data} and data {shape[0]}, but the devices lie in {groups} "
            f"{'processes' if by_process else 'slices'}; set dcn_data to {groups}, and data to a multiple of it"
        )
    inner, outer = (shape[0] // dcn_data, *shape[1:]), (dcn_data, 1, 1, 1)
    options = dict(process_is_granule=by_process, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **options)


def _torn(grid):
    """Whether devices that share samples lie in several processes."""
    rows = grid.reshape(-1, math.prod(grid.shape[2:]))
    return any(len({device.process_index for device in row}) > 1 for row in rows)


def check_mesh(mesh, config):
    """Checks that a mesh divides what the config's model and batches have.

    Raises:
        ValueError: it does not, or batches have nothing, with the field to change.
    """
    shape, unet, train = mesh.shape, config.model.unet, config.train
    for name in ("batch_size", "accumulate"):
        if train[name] < 1:
            raise ValueError(f"train.{name} is {train[name]}; expected 1 or more")
    if unet.heads % shape["tensor"]:
        raise ValueError(
            f"train.mesh.tensor is {shape['tensor']}, which does not divide model.unet.heads, {unet.heads}; "
            "choose a divisor"
        )
    if config.clip.frames % shape["frame"]:
        raise ValueError(
            f"train.mesh.frame is {shape['frame']}, which does not divide clip.frames, {config.clip.frames}; "
            "choose a divisor"
        )
    parts = shape["data"] * shape["fsdp"] * train.accumulate
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size is {train.batch_size}, which does not divide over data x fsdp x train.accumulate = "
            f"{shape['data']} x {shape['fsdp']} x {train.accumulate}; make it a multiple of {parts}"
        )
    if _torn(mesh.devices):
        raise ValueError(
            f"train.mesh has frame x tensor = {shape['frame'] * shape['tensor']} devices share samples, but they lie "
            "in several processes, each of which reads its own; choose a divisor of a process' devices"
        )


def traced_for_mesh(mesh, function):
    """The function as it is traced for a mesh: inside it `constrain` and `per_device` know the axes."""

    @functools.wraps(function)
    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def replicated(mesh):
    """The whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """Batches are split along axis 0 over data and fsdp; devices along frame and tensor share samples."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def local_rows(mesh, size):
    """Which samples of a batch of that size lie on this process' devices, in the order that `place_batch` takes.

    On TPUs neighbours in the mesh are neighbours of the network, and a process' rows are not always next to each other.
    """
    feeding = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)[:, 0]
    share, here = size // len(feeding), jax.process_index()
    places = [place for place, device in enumerate(feeding) if device.process_index == here]
    return [place * share + row for place in places for row in range(share)]


def place_batch(mesh, batch):
    """Puts this process' part of a batch (numpy), its `rows`, on its devices as one global array.

    Raises:
        ValueError: the batch does not divide over the devices, or the processes would have to share samples.
    """
    size, devices = len(next(iter(batch.values()))), len(mesh.local_devices)
    sharing = mesh.shape["frame"] * mesh.shape["tensor"]
    if devices % sharing:
        raise ValueError(
            f"train.mesh has frame x tensor = {sharing} devices share samples, but a process has {devices}; "
            "choose a divisor of that"
        )
    if size % (devices // sharing):
        raise ValueError(
            f"a batch of {size} does not divide over {devices // sharing} devices; make train.batch_size a multiple"
        )
    sharding, whole = batch_sharding(mesh), size * mesh.size // devices
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(part), (whole, *np.shape(part)[1:]))
        for name, part in batch.items()
    }

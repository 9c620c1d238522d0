"""Devices by the name of a topology; those of TPU slices are described without a TPU."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

import jax


class Device(Protocol):
    """The attributes of a `jax.Device` that planning reads."""

    @property
    def platform(self) -> str:
        """Such as 'tpu'."""
        ...

    @property
    def device_kind(self) -> str:
        """Such as 'TPU v5 lite'."""
        ...

    def memory_stats(self) -> dict[str, int] | None:
        """Returns the device's memory statistics."""


@dataclasses.dataclass(frozen=True)
class DescribedDevice:
    """A device that need not exist: enough of a `jax.Device` to build a mesh and to count from shapes.

    Attributes:
        platform: cpu, gpu or tpu.
        device_kind: such as 'TPU v5 lite'.
        id: unique number.
        process_index: of its host.
        coords: position in a TPU slice.
        slice_index: of its TPU slice; None for a single slice.
        core_on_chip: always 0, as JAX sees a chip as one device.
    """

    platform: str
    device_kind: str
    id: int
    process_index: int = 0
    coords: tuple[int, int, int] = (0, 0, 0)
    slice_index: int | None = None
    core_on_chip: int = 0

    def memory_stats(self) -> None:
        """Returns None: the device cannot be asked."""


_TPUS = {
    "v4": ("TPU v4", (2, 2, 1)),
    "v5e": ("TPU v5 lite", (2, 2)),
    "v5p": ("TPU v5", (2, 2, 1)),
    "v6e": ("TPU v6 lite", (2, 2)),
}
"""(device kind, chips of a host along each axis) by platform."""


def find_devices(topology: str, slices: int = 1) -> Sequence[Device]:
    """Returns the devices of a topology for its compiler: of this machine, or as libtpu describes them.

    Args:
        topology: a TPU platform and a shape, such as 'v5e:4x4'; or 'cpu:N', 'gpu:N'.
        slices: number of TPU slices of that topology.

    Raises:
        ValueError: an unknown topology, no compiler for it, or fewer devices than asked for.
    """
    platform, sizes = _parse(topology, slices)
    if platform in _TPUS:
        return _ask_libtpu(platform, sizes, slices)
    if platform == "cpu":
        with contextlib.suppress(RuntimeError):  # once JAX has started, the number of CPU devices is fixed
            jax.config.update("jax_num_cpu_devices", sizes[0])
    devices = _local_devices(platform)
    if len(devices) < sizes[0]:
        raise ValueError(
            f"--topology is {topology}, but JAX finds {len(devices)} {platform} devices here; --no-compile needs none"
        )
    return devices[: sizes[0]]


def describe_devices(topology: str, slices: int = 1) -> list[DescribedDevice]:
    """Returns descriptions of a topology's devices, for which neither the devices nor their compiler are needed.

    GPUs are of the kind that this machine has, or of an unknown kind. Arguments and errors as `find_devices`.
    """
    platform, sizes = _parse(topology, slices)
    if platform not in _TPUS:
        local = _local_devices(platform)
        kind = local[0].device_kind if local else platform
        return [DescribedDevice(platform, kind, id=i) for i in range(sizes[0])]
    kind, (width, height, depth) = _TPUS[platform][0], (*_TPUS[platform][1], 1)[:3]
    columns, rows, layers = (*sizes, 1)[:3]
    across, along = -(-columns // width), -(-rows // height)  # hosts
    hosts = across * along * -(-layers // depth)
    devices = []
    for number, z, y, x in itertools.product(range(slices), range(layers), range(rows), range(columns)):
        host = number * hosts + (z // depth * along + y // height) * across + x // width
        slice_index = number if slices > 1 else None
        devices.append(DescribedDevice("tpu", kind, len(devices), host, (x, y, z), slice_index))
    return devices


def _parse(topology: str, slices: int) -> tuple[str, list[int]]:
    """Returns the platform and the sizes of a topology's name."""
    platform, _, shape = topology.partition(":")
    if slices < 1 or (slices > 1 and platform in ("cpu", "gpu")):
        raise ValueError(f"--slices is {slices}; expected 1 or more, and 1 where the topology is no TPU slice")
    axes = 1 if platform in ("cpu", "gpu") else len(_TPUS.get(platform, ("", ()))[1])
    sizes = [int(n) if n.isdigit() else 0 for n in shape.split("x")]
    if len(sizes) != axes or not all(sizes):
        raise ValueError(
            f"--topology is {topology}; expected one of {', '.join(_TPUS)} and a shape, such as v5e:4x4 or v5p:2x2x2; "
            "or cpu:N, or gpu:N"
        )
    return platform, sizes


def _local_devices(platform: str) -> Sequence[Device]:
    try:
        return jax.devices(platform)
    except RuntimeError:  # none of this platform
        return []


def _ask_libtpu(platform: str, sizes: Sequence[int], slices: int) -> Sequence[Device]:
    from jax.experimental import topologies

    # There is no TPU to query, and none to lock for one process.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            "the TPU compiler is missing: pip install -c constraints.txt -e '.[tpu]'; --no-compile plans without it"
        ) from error
    name, (_, host) = f"{platform}:{'x'.join(map(str, sizes))}", _TPUS[platform]
    options: dict[str, Any] = dict(num_slices=slices) if slices > 1 else {}
    if platform == "v4":
        options["chip_config_name"] = "megacore"  # JAX sees the two cores of a v4 chip as one device
    if math.prod(sizes) < math.prod(host):  # a part of a host
        options["chips_per_host_bounds"] = (*sizes, *(1,) * (3 - len(sizes)))
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # libtpu raises several types
        raise ValueError(f"libtpu knows no topology {name} ({' '.join(str(error).split())})") from error

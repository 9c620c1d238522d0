"""Devices by the name of a topology; those of TPU slices are described without a TPU."""

import contextlib
import importlib.metadata
import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

import jax


class Device(Protocol):
    """The attributes of a `jax.Device` that planning reads."""

    platform: str
    device_kind: str

    def memory_stats(self) -> dict[str, int] | None:
        """Returns the device's memory statistics."""


_HOST_SHAPES = {"v4": (2, 2, 1), "v5e": (2, 2), "v5p": (2, 2, 1), "v6e": (2, 2)}
"""Chips of a host, by platform."""


def find_devices(topology: str, slices: int = 1) -> Sequence[Device]:
    """Returns descriptions of a topology's devices, or the devices of this machine for 'cpu:N' and 'gpu:N'.

    Args:
        topology: a TPU platform and a shape, such as 'v5e:4x4'; or 'cpu:N', 'gpu:N'.
        slices: number of TPU slices of that topology.

    Raises:
        ValueError: an unknown topology, no compiler for it, or fewer devices than asked for.
    """
    platform, _, shape = topology.partition(":")
    if slices < 1 or (slices > 1 and platform in ("cpu", "gpu")):
        raise ValueError(f"--slices is {slices}; expected 1 or more, and 1 where the topology is no TPU slice")
    if platform not in ("cpu", "gpu"):
        return _describe(platform, shape, slices)
    if not shape.isdigit() or not int(shape):
        raise ValueError(f"--topology is {topology!r}; expected {platform}:N, such as {platform}:8")
    if platform == "cpu":
        with contextlib.suppress(RuntimeError):  # once JAX has started, the number of CPU devices is fixed
            jax.config.update("jax_num_cpu_devices", int(shape))
    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise ValueError(f"--topology {topology}: JAX finds no {platform} here ({error})") from error
    if len(devices) < int(shape):
        raise ValueError(f"--topology {topology}: JAX finds only {len(devices)} {platform} devices here")
    return devices[: int(shape)]


def _describe(platform: str, shape: str, slices: int) -> Sequence[Device]:
    from jax.experimental import topologies

    if platform not in _HOST_SHAPES or not all(n.isdigit() and int(n) for n in shape.split("x")):
        raise ValueError(
            f"--topology is {platform}:{shape}; expected one of {', '.join(_HOST_SHAPES)} and a shape, such as "
            "v5e:4x4, or cpu:N, or gpu:N"
        )
    # There is no TPU to query, and none to lock for one process.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError("the TPU compiler is missing: pip install -c constraints.txt -e '.[tpu]'") from error
    sizes, host = [int(n) for n in shape.split("x")], _HOST_SHAPES[platform]
    options: dict[str, Any] = dict(num_slices=slices) if slices > 1 else {}
    if platform == "v4":
        options["chip_config_name"] = "megacore"  # JAX sees the two cores of a v4 chip as one device
    if math.prod(sizes) < math.prod(host):  # a part of a host
        options["chips_per_host_bounds"] = (*sizes, *(1,) * (3 - len(sizes)))
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{platform}:{shape}", **options).devices
    except Exception as error:  # libtpu raises several types
        raise ValueError(f"libtpu knows no topology {platform}:{shape} ({' '.join(str(error).split())})") from error

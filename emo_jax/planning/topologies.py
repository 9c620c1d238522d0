"""Devices by the name of a topology, those of TPU slices without a TPU."""

import contextlib
import importlib.metadata
import math
import os

import jax

_BOUNDS = {"v4": (2, 2, 1), "v5e": (2, 2), "v5p": (2, 2, 1), "v6e": (2, 2)}
"""Chips of a host, by name of the platform."""


def find_devices(topology, slices=1):
    """Descriptions of the devices of so many slices of a topology such as 'v5e:4x4'; the devices of 'cpu:8', 'gpu:8'.

    Raises ValueError: an unknown one, no compiler for it, or fewer devices than asked for.
    """
    platform, _, shape = topology.partition(":")
    if slices < 1 or (slices > 1 and platform in ("cpu", "gpu")):
        raise ValueError(f"--slices is {slices}; expected 1 or more, and more than 1 of TPUs alone")
    if platform in ("cpu", "gpu"):
        if not shape.isdigit() or not int(shape):
            raise ValueError(f"--topology is {topology!r}; expected {platform}:N, such as {platform}:8")
        if platform == "cpu":
            with contextlib.suppress(RuntimeError):  # JAX has begun, with as many as it was told then
                jax.config.update("jax_num_cpu_devices", int(shape))
        try:
            devices = jax.devices(platform)
        except RuntimeError as error:
            raise ValueError(f"--topology {topology}: JAX finds no {platform} here ({error})") from error
        if len(devices) < int(shape):
            raise ValueError(f"--topology {topology}: JAX finds {len(devices)} devices of {platform} here")
        return devices[: int(shape)]
    return _describe(platform, shape, slices)


def _describe(platform, shape, slices):
    from jax.experimental import topologies

    if platform not in _BOUNDS or not all(n.isdigit() and int(n) for n in shape.split("x")):
        raise ValueError(
            f"--topology is {platform}:{shape}; expected one of {', '.join(_BOUNDS)} and a shape, such as v5e:4x4, "
            "or cpu:N, or gpu:N"
        )
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):  # there is no TPU to ask, none to lock
        os.environ.setdefault(name, "1")
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError("the TPU's compiler is missing: pip install -c constraints.txt -e '.[tpu]'") from error
    sizes = [int(n) for n in shape.split("x")]
    options, bounds = dict(num_slices=slices) if slices > 1 else {}, _BOUNDS[platform]
    if platform == "v4":
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device, as JAX has them on a v4
    if math.prod(sizes) < math.prod(bounds):  # a part of a host
        options["chips_per_host_bounds"] = (*sizes, *(1,) * (3 - len(sizes)))
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{platform}:{shape}", **options).devices
    except Exception as error:  # the compiler has its own kinds
        raise ValueError(f"libtpu knows no topology {platform}:{shape} ({' '.join(str(error).split())})") from error

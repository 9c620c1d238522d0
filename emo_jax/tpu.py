"""The environment of libtpu, the TPU runtime and compiler (extra: tpu), on machines without TPUs."""

from __future__ import annotations

import os
import pathlib

_GOOGLE, _DISK_OR_NETWORK = "0x1ae0", ("0x01", "0x02")
_NO_SLICE = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
"""A slice of one chip. Without a description, libtpu prints a page of errors before JAX falls back to the CPU."""


def describe_no_slice() -> None:
    """Keeps libtpu from looking for the TPU slice of a machine that has no TPU, and from reporting that it finds none.

    Call it before JAX starts its devices. JAX tries to start libtpu wherever it is installed. The variables that the
    user has set are kept, and nothing changes on a machine with TPUs or where JAX_PLATFORMS asks for them: all errors
    of libtpu are printed there. The compiler for described topologies (`emo plan`) does not read these variables.
    """
    if "tpu" in os.environ.get("JAX_PLATFORMS", "") or any(name in os.environ for name in _NO_SLICE) or _has_tpu():
        return
    os.environ.update(_NO_SLICE)


def _has_tpu(devices: pathlib.Path = pathlib.Path("/sys/bus/pci/devices")) -> bool:
    """Returns whether Google makes a PCI device other than the network cards and disks of its virtual machines."""
    for vendor in devices.glob("*/vendor"):
        try:
            kind = (vendor.parent / "class").read_text()
            if vendor.read_text().strip() == _GOOGLE and not kind.startswith(_DISK_OR_NETWORK):
                return True
        except OSError:  # a device that is just removed
            continue
    return False

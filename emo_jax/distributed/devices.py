"""One table of accelerators: peak rates, memory and links, from the vendors' data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip or a GPU.

    Attributes:
        flops: peak bf16 FLOP/s, dense.
        memory: bytes of device memory, or None if unknown.
        bandwidth: bytes/s of device memory.
        links: bytes/s to other chips of the same slice or host, one way, all links together.
        network: a chip's share of the network between TPU slices, bytes/s, or None if no data sheet gives it.
    """

    flops: float
    memory: float | None = None
    bandwidth: float | None = None
    links: float | None = None
    network: float | None = None


CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),  # cloud.google.com/tpu/docs/v4
    # .../tpu/docs/v5e: 400 GB/s both ways, 6.4 Tbit/s for 256 chips
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9, 3.125e9),
    "TPU v5": Chip(459e12, 95e9, 2765e9, 600e9, 6.25e9),  # .../tpu/docs/v5p: 1200 GB/s both ways, 50 Gbit/s
    # .../tpu/docs/v6e: 3200 Gbit/s one way, 25.6 Tbit/s for 256 chips
    "TPU v6 lite": Chip(918e12, 32e9, 1600e9, 400e9, 12.5e9),
    "NVIDIA A100": Chip(312e12),  # NVIDIA's data sheets, without sparsity
    "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9),  # nvidia.com/en-us/data-center/h100: NVLink 900 GB/s both ways
    "NVIDIA H100 NVL": Chip(835e12, 94e9, 3900e9, 300e9),  # the same page: 600 GB/s both ways
    "NVIDIA H100 PCIe": Chip(756e12, 80e9, 2000e9, 300e9),  # product brief PB-11133: 600 GB/s both ways
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),  # nvidia.com/en-us/data-center/h200: 900 GB/s both ways
    "NVIDIA H200 NVL": Chip(835e12, 141e9, 4800e9, 450e9),
}
CHIPS |= {"TPU v5e": CHIPS["TPU v5 lite"], "TPU v5p": CHIPS["TPU v5"], "TPU v6e": CHIPS["TPU v6 lite"]}
"""Rows by the beginning of `jax.Device.device_kind`; the longest match wins."""


def chip_of(kind: str) -> Chip | None:
    """Returns the row for a device kind such as 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3', or None if there is none."""
    fitting = [name for name in CHIPS if f"{kind} ".startswith((f"{name} ", f"{name}-"))]
    return CHIPS[max(fitting, key=len)] if fitting else None


def peak_flops(kind: str) -> float | None:
    """Returns the peak bf16 FLOP/s of a device kind, or None if it is not in CHIPS."""
    chip = chip_of(kind)
    return chip.flops if chip else None

"""Clips per second of one CPU core that the input pipeline makes, and how many a TPU pod would need."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from emo_jax.configs import base
from emo_jax.data import pipeline, records
from emo_jax.distributed.devices import CHIPS
from emo_jax.media import mp4
from emo_jax.progress import Progress
from emo_jax.synthetic.world import make_record

BATCH = 4
GRAIN = 1.6
"""Standard deviation of the noise that gives rendered frames the size of filmed ones, about 8.6 kB at 512x512."""
VAE, BACKBONE, REFERENCE_NET = 1.117e12, 1.287e12, 0.754e12
"""FLOPs of one frame at full size (configs/base.py), by XLA's cost analysis: encoder, one pass of each UNet."""


@dataclasses.dataclass(frozen=True)
class Pod:
    """A TPU pod that trains stage `video` at full size.

    Attributes:
        chips: the number of chips, `chips_per_host` of them on each host.
        utilisation: the share of the peak FLOP/s that the training step reaches.
        passes: forward passes that one step costs: 3, or 4 if all blocks are recomputed (``model.unet.remat``).
    """

    name: str = "v5p-256"  # 256 TensorCores, two for each chip
    chip: str = "TPU v5p"
    chips: int = 128
    chips_per_host: int = 4
    utilisation: float = 0.4
    passes: int = 3

    def clips_per_second(self, clip: ConfigDict) -> float:
        """Returns how many clips per second all chips train on."""
        n, f = clip.motion_frames, clip.frames
        encoded = (1 + n + f) * VAE  # the reference, the motion frames and the clip
        forward = f * BACKBONE + (1 + n) * REFERENCE_NET
        return self.chips * CHIPS[self.chip].flops * self.utilisation / (encoded + self.passes * forward)


def measure(config: ConfigDict, directory: str | None = None, batches: int = 40) -> list[dict]:
    """Measures the pipeline, from stored records or latents to batches, in the main process.

    Counts the CPU time of all threads, not the elapsed time.

    Args:
        config: says what a clip is (`clip`) and how clips are drawn (`data`).
        directory: records or latents; None renders four people for ten seconds, with film grain.
        batches: the number of measured batches of four clips.

    Returns:
        Rows of ``quantity`` and ``value``. The needs of a pod are left out for clips of another size than full size.
    """
    with tempfile.TemporaryDirectory() as folder:
        if directory is None:
            directory = f"{folder}/records"
            write_grainy_records(directory, config.clip.image_size[0], config.clip.fps)
        rate = _clips_per_cpu_second(config, directory, batches)
    rows = [dict(quantity="clips per CPU second", value=rate)]
    if config.clip.image_size != base.get_config("video").clip.image_size:
        return rows
    for pod in (Pod(), Pod(passes=4)):
        needed = pod.clips_per_second(config.clip)
        cores = needed * pod.chips_per_host / pod.chips / rate
        name = f"{pod.name} at {pod.utilisation:.0%} of its peak, {pod.passes} passes a step"
        rows.append(dict(quantity=f"clips per second that a {name} takes", value=needed))
        rows.append(dict(quantity="  CPU cores of each host", value=cores))
    return rows


def write_grainy_records(directory: str, size: int, fps: float, count: int = 4, seconds: float = 10.0) -> None:
    """Writes rendered people with film grain, whose frames compress as badly as filmed ones."""

    def add_grain(seed: int) -> records.Record:
        record = make_record(seed, seconds=seconds, size=size, fps=fps)
        rng = np.random.default_rng(seed)
        frames = mp4.decode_video(record.video, 0, len(record.boxes)).astype(np.int16)
        noise = rng.normal(0, GRAIN, (8, *frames.shape[1:])).round().astype(np.int16)
        noisy = [np.clip(frame + noise[rng.integers(8)], 0, 255).astype(np.uint8) for frame in frames]
        return dataclasses.replace(record, video=mp4.encode_video(np.stack(noisy), record.fps))

    def make_records() -> Iterator[records.Record]:
        with Progress(count, "records", "record", every=1) as progress:
            for seed in range(count):
                yield add_grain(seed)
                progress.add()

    records.write_records(Path(directory), {"train": make_records}, progress=False)


def _clips_per_cpu_second(config: ConfigDict, directory: str, batches: int) -> float:
    data = config.data.copy_and_resolve_references().unlock()
    data.update(directory=str(directory), sources=(), num_workers=0, prefetch=1, first_clip_prob=0.0)
    iterator = pipeline.make_iterator(data, config.clip, batch_size=BATCH, seed=0)
    next(iterator)  # as many batches are prefetched at the start as at the end
    started = time.process_time()
    with Progress(batches, "batches", "step") as progress:
        for _ in range(batches):
            next(iterator)
            progress.add()
    spent = time.process_time() - started
    iterator.close()
    return BATCH * batches / spent

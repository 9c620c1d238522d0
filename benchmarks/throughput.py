"""How many clips a second of one CPU core the whole pipeline makes, records to batch, and how many a TPU pod needs.

    python -m benchmarks.throughput [RECORDS]    # a folder of 512x512 records; without one, some are drawn \\
    under film grain

The same from latents, of random numbers in place of the VAE's. Counts the CPU time of all threads, not the time that
passes. Clips are those of configs/base.py: n + f = 16, 512x512.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np
from emo_jax.configs import base

from emo_jax.data import pipeline, records
from emo_jax.media import mp4
from emo_jax.models.emo import build
from emo_jax.preparation.encode_latents import _finish, _layout, _make_shards
from emo_jax.progress import Progress
from emo_jax.synthetic.world import make_record

BATCH, BATCHES, BAR, LATENTS_BAR = 4, 40, 12, 100
GRAIN = 1.6  # standard deviation of the noise that gives drawn people the bytes a frame of filmed ones, about 8.6 kB
# Cost of a frame, FLOP: XLA's analysis of the full size; a training step is PASSES forward passes.
VAE, BACKBONE, REFERENCE_NET = 1.117e12, 1.287e12, 0.754e12
PASSES = {"without remat": 3, "remat of all blocks": 4}  # a backward pass counts two forward ones
CHIPS, PEAK, USE, CHIPS_A_HOST = 128, 459e12, 0.4, 4  # v5p-256 is 256 cores of 128 chips; bfloat16; share of the peak


def write_records(directory, count=4, seconds=10.0):
    """Drawn people under film grain, as whole videos."""

    def grained(seed):
        record = make_record(seed, seconds=seconds, size=512)
        rng = np.random.default_rng(seed)
        frames = mp4.decode_video(record.video, 0, len(record.boxes)).astype(np.int16)
        noise = rng.normal(0, GRAIN, (8, *frames.shape[1:])).round().astype(np.int16)
        noisy = [np.clip(frame + noise[rng.integers(8)], 0, 255).astype(np.uint8) for frame in frames]
        record.video = mp4.encode_video(np.stack(noisy), record.fps)
        return record

    def made():
        with Progress(count, "records", "record", every=1) as progress:
            for seed in range(count):
                yield grained(seed)
                progress.add()

    records.write_records(directory, {"train": made}, progress=False)


def write_latents(source, directory):
    """Random numbers in the place of what `emo prepare latents` writes of the records."""
    config = base.get_config("video")
    rng, emo = np.random.default_rng(0), build(config)
    layout = _layout(emo, windows=2)
    directory.mkdir()

    class Encoder:
        def pictures(self, images):
            return rng.standard_normal((len(images), *layout.latent_shape), np.float32)

        def features(self, audio, frames, fps, layout):
            return rng.standard_normal((frames + 2 * layout.reach, *layout.heard_shape), np.float32)

    files = ["latents.array_record"]
    _make_shards(Encoder(), source, directory, files, layout, seed=0)
    _finish(directory, directory.parent / "encoded", source.split, files, layout, {})
    return directory.parent / "encoded"


def measure(directory):
    """Clips per CPU second, batches made one behind the other in this process."""
    config = base.get_config("video")
    config.data.update(directory=str(directory), num_workers=0, prefetch=1, first_clip_prob=0.0)
    iterator = pipeline.make_iterator(config.data, config.clip, batch_size=BATCH, seed=0)
    next(iterator)  # as much is ahead at the beginning as at the end
    started = time.process_time()
    with Progress(BATCHES, "batches", "step") as progress:
        for _ in range(BATCHES):
            next(iterator)
            progress.add()
    spent = time.process_time() - started
    iterator.close()
    return BATCH * BATCHES / spent


def need(passes):
    """Clips a second that the pod trains on in stage 2."""
    clip = base.get_config("video").clip
    n, f = clip.motion_frames, clip.frames
    encoded = (1 + n + f) * VAE  # reference, motion frames, frames
    forward = f * BACKBONE + (1 + n) * REFERENCE_NET
    return CHIPS * PEAK * USE / (encoded + passes * forward)


def main(directory):
    """Prints what was measured and what is needed."""
    source = records.open_records(directory, "train")
    with tempfile.TemporaryDirectory() as folder:
        encoded = write_latents(source, pathlib.Path(folder) / "work")
        fast = measure(encoded)
        size = sum(path.stat().st_size for path in encoded.iterdir()) / source.index()["frames"].sum()
    print(
        f"{fast:.0f} clips per CPU second, latents to batch (bar: {LATENTS_BAR}); {size / 1e3:.0f} kB a frame: two "
        "windows and twelve layers of wav2vec 2.0"
    )
    sizes = [len(source[i]["video"]) / len(source[i]["boxes"]) for i in range(len(source))]
    print(f"{directory}: {len(source)} records, {np.mean(sizes) / 1e3:.1f} kB a frame", flush=True)
    rate = measure(directory)
    print(f"{rate:.1f} clips per CPU second of n + f = 16 frames, 512x512, mp4 to batch (bar: {BAR})")
    print(
        f"needed = {CHIPS} chips x {PEAK / 1e12:g} TFLOP/s x {USE:g} of it / ((1 + n + f) x {VAE / 1e12:g} "
        f"+ passes x (f x {BACKBONE / 1e12:g} + (1 + n) x {REFERENCE_NET / 1e12:g})) TFLOP, n = 4, f = 12"
    )
    for name, passes in PASSES.items():
        clips = need(passes)
        host = clips / (CHIPS / CHIPS_A_HOST)
        print(
            f"v5p-256, {passes} passes ({name}): {clips:.0f} clips/s, {host:.1f} a host of {CHIPS_A_HOST} chips: "
            f"{host / rate:.2f} CPU cores of each host"
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        main(pathlib.Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_records(pathlib.Path(folder) / "records")
            main(pathlib.Path(folder) / "records")

"""Records whose pictures, sound and speed tell which record and frame they are."""

import functools

import numpy as np
import pytest

from emo_jax.data import records

SILENT = (1, 4)


@functools.cache  # x264 does not always write the same bytes, so a record is made once
def coded_record(k: int, fps: float) -> records.Record:
    """Record k of 40 + 4k frames: left third 40k bright, rest 40 + 3 * frame; a ramp of sound; speed 100k + frame."""
    count = 40 + 4 * k
    frames = np.full((count, 48, 64, 3), 40 * k, np.uint8)
    frames[:, :, 24:] = 40 + 3 * np.arange(count)[:, None, None, None]
    samples = round(count * 16000 / fps)
    sound = (np.arange(samples) - 20000).astype(np.int16)
    move = np.arange(count)[:, None]
    return records.Record(
        id=f"head-{k}",
        source="tests",
        licence="CC0-1.0",
        video=records.encode_video(frames, fps),
        audio=np.zeros(0, np.int16) if k in SILENT else sound,
        fps=fps,
        boxes=np.array([[12.0, 8.0, 30.0, 28.0]]) + 0.25 * move,
        rotation=np.zeros((count, 3)),
        speed=100 * k + np.arange(count),
    )


def _write(directory, fps):
    made = [coded_record(k, fps) for k in range(6)]
    records.write_records(directory, {"train": lambda: made, "test": lambda: made[:1]}, shards=2, progress=False)
    return directory


@pytest.fixture(scope="session")
def record_dir(tmp_path_factory):
    """Six coded records at 25 fps (two without sound) in the split train, one in test."""
    return _write(tmp_path_factory.mktemp("records") / "fps25", 25.0)


@pytest.fixture(scope="session")
def record_dir_30(tmp_path_factory):
    """The same at 30 fps."""
    return _write(tmp_path_factory.mktemp("records") / "fps30", 30.0)


@pytest.fixture(scope="session")
def make_record():
    """Record k of `record_dir`."""
    return lambda k: coded_record(k, 25.0)

"""Configs, batches and comparisons of the tests of the input pipeline."""

import numpy as np
from ml_collections import ConfigDict

from emo_jax.data import pipeline, records
from emo_jax.media import mp4


def configs(directory, fps=25, **changes):
    data = dict(directory=str(directory), split="train", sources=(), crop_scale=(1.0, 1.0), min_reference_gap=0.4)
    data |= dict(same_window_prob=0.0, first_clip_prob=0.3, flip_prob=0.0, color_jitter=0.0, num_workers=0, prefetch=2)
    data |= dict(max_speed=0.0, without_sound="none")
    clip = dict(frames=4, motion_frames=2, audio_window=2, fps=fps, image_size=(48, 64))
    for name, value in changes.items():
        (data if name in data else clip)[name] = value
    return ConfigDict(data), ConfigDict(clip)


def samples(batches):
    """Returns the samples of batches, one dict each."""
    return [{name: value[i] for name, value in b.items()} for b in batches for i in range(len(b["speed"]))]


def take(count, *args, **options):
    iterator = pipeline.make_iterator(*args, **options)
    return [next(iterator) for _ in range(count)]


def plain_record(name, frames, fps, box, speed):
    """Makes a silent record of frames (N, H, W, 3) with a constant face box (4,); speed (N,)."""
    return records.Record(
        id=name,
        source="tests",
        licence="CC0-1.0",
        video=mp4.encode_video(frames, fps),
        audio=np.zeros(0, np.int16),
        fps=float(fps),
        boxes=np.tile(np.float32(box), (len(frames), 1)),
        rotation=np.zeros((len(frames), 3)),
        speed=np.float32(speed),
    )


def record_number(sample):
    return int(sample["speed"][0]) // 100


def frame_numbers(frames):
    return list(np.round((frames[:, :, 32:].reshape(len(frames), -1).mean(axis=1) - 40) / 3).astype(int))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)

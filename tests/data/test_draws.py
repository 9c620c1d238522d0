"""Thousands of draws from records whose images, sound and speed identify the record and frame."""

import numpy as np
import pytest

from emo_jax.data import clip_sampler, records, sources
from emo_jax.media import mp4
from emo_jax.media.moments import audio_moments
from emo_jax.training.stages import get_stage
from tests.data.clips import configs

DRAWS, LENGTHS, SILENT = 4_000, np.array([6, 18, 31, 40, 47]), (0, 3)
EVERY = {(k, t) for k, length in enumerate(LENGTHS) for t in range(length)}
WITH_SOUND = {(k, t) for k, t in EVERY if k not in SILENT}


class CodedSource(records.RecordSource):
    """Records in memory: frame t of record k has the color (k, t, 7), the sound is a ramp, the speed is 1000 k + t."""

    def __init__(self, fps):
        self.directory, self.split, self.fps = "memory", "train", fps
        self.records = [self._record(k, length) for k, length in enumerate(LENGTHS.tolist())]

    def _record(self, k, length):
        ramp = np.arange(0 if k in SILENT else round(length * 16000 / self.fps), dtype=np.int16)
        boxes = np.tile(np.float32([0, 0, 1, 1]), (length, 1))
        moments = audio_moments(ramp)
        return dict(video=k, audio=ramp, audio_moments=moments, boxes=boxes, speed=1000.0 * k + np.arange(length))

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, k):
        return self.records[k]

    def index(self):
        sound = np.array([len(record["audio"]) > 0 for record in self.records])
        return dict(frames=LENGTHS, fps=np.full(len(self), self.fps), sound=sound)


@pytest.fixture
def draw(monkeypatch):
    """Function (stage, fps, clip options) -> DRAWS samples of the records that the stage uses, one array per field."""

    def decode(k, start, count):
        assert 0 <= start and start + count <= LENGTHS[k], "a sample extends beyond its record"
        frames = np.full((count, 2, 2, 3), (k, 0, 7), np.uint8)
        frames[..., 1] += np.arange(start, start + count, dtype=np.uint8)[:, None, None]
        return frames

    def draw(stage, fps, **clip_options):
        monkeypatch.setattr(mp4, "decode_video", decode)
        data, clip = configs("memory", fps, image_size=(2, 2), min_reference_gap=0.2, **clip_options)
        source = CodedSource(fps)
        positions = sources.select_records(source, clip, get_stage(stage).sound)
        sampler, rng = clip_sampler.make_clip_sampler(source, data, clip), np.random.default_rng(0)
        drawn = [sampler(int(positions[i % len(positions)]), rng) for i in range(DRAWS)]
        return {name: np.stack([sample[name] for sample in drawn]) for name in drawn[0]}

    return draw


def decoded(images):
    """Returns {(record, frame)} of images (..., 2, 2, 3)."""
    return set(map(tuple, np.unique(images[..., 0, 0, :2].reshape(-1, 2), axis=0).tolist()))


@pytest.mark.parametrize("fps", [25, 30])
def test_clips_with_sound(draw, fps):
    f, n, m = 4, 2, 2
    drawn = draw("video", fps, frames=f, motion_frames=n, audio_window=m)
    record, start = drawn["frames"][:, 0, 0, 0, :2].astype(int).T
    total, has_motion = LENGTHS[record], drawn["has_motion"]
    assert not np.isin(record, SILENT).any()
    assert (
        decoded(drawn["frames"]) == decoded(drawn["reference"]) == WITH_SOUND
    )  # every one is drawn, and no silent one
    assert decoded(drawn["motion"][has_motion]) == {(k, t) for k, t in WITH_SOUND if t < LENGTHS[k] - f}
    for name, first, count in (("frames", 0, f), ("motion", -n, n)):
        chosen = np.ones(DRAWS, bool) if name == "frames" else has_motion
        numbers = (start[:, None] + first + np.arange(count))[chosen]
        np.testing.assert_array_equal(drawn[name][chosen][..., 0, 0, 1], numbers)
        assert (drawn[name][chosen][..., 0] == record[chosen, None, None, None]).all()
    assert not drawn["motion"][~has_motion].any()
    around = start[:, None] + np.arange(-m, f + m)
    np.testing.assert_array_equal(drawn["speed"], 1000 * record[:, None] + np.clip(around, 0, total[:, None] - 1))
    # Exact to the sample: the window starts 256 samples before the time of frame start - m.
    at = np.round((start - m) * 16000 / fps).astype(int)[:, None] - 256 + np.arange(drawn["audio"].shape[1])
    inside = (at >= 0) & (at < np.round(total * 16000 / fps)[:, None])
    assert at.shape[1] == np.ceil((f + 2 * m) * 16000 / fps) + 512
    np.testing.assert_array_equal(drawn["audio"] * 32768, np.where(inside, at, 0))
    gaps = np.abs(start[:, None] + np.arange(f) - drawn["reference"][:, 0, 0, 1].astype(int)[:, None])
    assert gaps.min() >= 0.2 * fps and (drawn["reference"][:, 0, 0, 0] == record).all()


def test_single_frames(draw):
    drawn = draw("image", 25, frames=1, motion_frames=0)
    assert decoded(drawn["frames"]) == decoded(drawn["reference"]) == EVERY
    frame, reference = drawn["frames"][:, 0, 0, 0].astype(int), drawn["reference"][:, 0, 0].astype(int)
    assert (frame[:, 0] == reference[:, 0]).all() and (frame[:, 1] != reference[:, 1]).all()

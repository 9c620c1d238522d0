"""Several videos in one batch of the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.media.timing import frame_count
from tests.generation.media import BOX, random_portrait, random_voice

LENGTHS = (9000, 3000, 6400)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_videos_of_a_batch_equal_those_made_one_by_one(pipeline, eta):
    """Portraits, lengths, speeds and seeds differ; eta 1 draws noise in each step."""
    from ml_collections import ConfigDict

    from emo_jax.generation.sampler import VideoSampler

    sampling = ConfigDict({**pipeline.config.sampling, "eta": eta, "solver": "ddim"})
    sampler = VideoSampler(pipeline._emo, pipeline.params, sampling)
    portraits = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    masks = np.ones((3, 64, 64, 1), np.uint8)
    voices = [random_voice(length, index) for index, length in enumerate(LENGTHS)]
    speeds = np.array([0.2, 0.9, 2.0], np.float32)
    keys = jnp.stack([jax.random.key(seed) for seed in (3, 4, 5)])
    together = np.concatenate(list(sampler.stream(portraits, masks, voices, speed=speeds, key=keys)), axis=1)
    for index, voice in enumerate(voices):
        rows = slice(index, index + 1)
        segments = sampler.stream(portraits[rows], masks[rows], voice[None], speed=speeds[rows], key=keys[index])
        alone = np.concatenate(list(segments), axis=1)[0]
        assert len(alone) == frame_count(len(voice), 25)
        assert np.abs(together[index, : len(alone)].astype(int) - alone).max() <= 1


@pytest.mark.slow
def test_lists_are_made_together_and_other_lengths_compile_nothing(pipeline):
    options = dict(face_box=BOX, framing="crop")
    portraits = [random_portrait(index) for index in range(3)]
    voices = [random_voice(length, index) for index, length in enumerate(LENGTHS)]
    calls = []
    together = pipeline(
        portraits,
        voices,
        seed=[3, 4, 5],
        batch_size=2,
        callback_on_segment_end=lambda pipe, index, frames: calls.append((index, len(frames))),
        **options,
    )
    for video, portrait, voice, seed in zip(together, portraits, voices, (3, 4, 5), strict=True):
        alone = pipeline(portrait, voice, seed=seed, **options)
        assert video.frames.shape == alone.frames.shape and np.array_equal(video.audio, alone.audio)
        assert np.abs(video.frames.astype(int) - alone.frames).max() <= 1 and f"seed {seed}" in video.comment
    assert sum(count for _, count in calls) == sum(len(video.frames) for video in together)
    before = pipeline.compilations()
    pipeline(portraits[:2], [random_voice(5000), random_voice(12000)], batch_size=2, speed=[0.1, 1.0], **options)
    pipeline(portraits[0], [random_voice(700)], batch_size=2, **options)
    assert pipeline.compilations() == before
    with pytest.raises(ValueError, match="batch_size"):
        pipeline(portraits, voices, batch_size=0, **options)


@pytest.mark.slow
def test_pipelines_on_single_devices_are_traced_once(pipeline, monkeypatch):
    from emo_jax.generation.sampler import VideoSampler

    segment, traces = VideoSampler._segment_fn, []
    monkeypatch.setattr(VideoSampler, "_segment_fn", lambda self, *inputs: traces.append(1) or segment(self, *inputs))
    arguments, options = (random_portrait(), random_voice(700)), dict(face_box=BOX, framing="crop", steps=3)
    pipes = [pipeline.on(jax.local_devices()[:1]) for _ in range(2)]
    frames = [pipe(*arguments, **options).frames for pipe in pipes]
    assert len(traces) == 1 and np.array_equal(*frames) and pipes[0].params is not pipes[1].params


@pytest.mark.slow
def test_videos_that_differ_in_framing_or_scales_are_divided_into_batches(pipeline):
    call = dict(portrait=random_portrait(), audio=random_voice(700), face_box=BOX)
    calls = [call | dict(framing="crop"), call, call | dict(framing="crop", seed=1)]
    streams = pipeline.streams(calls, 2)
    shapes = [np.concatenate(list(stream)).shape for stream in streams]
    assert shapes[0] == shapes[2] == (2, *pipeline.size, 3) and shapes[1] == (2, *random_portrait().shape)


def test_a_video_of_a_batch_that_fails_does_not_stop_the_others():
    from emo_jax.generation.many import _Shared, in_turn

    def batches(good):
        for index in range(good):
            frames = np.random.default_rng(index).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
            yield frames, np.array([True, index != 1])
        raise MemoryError("full")

    shared = _Shared(batches(3), [12, 12])
    rows = [shared.row(0), shared.row(1)]
    next(rows[1])
    with pytest.raises(FloatingPointError, match="segment 1"):
        next(rows[1])
    assert len(np.concatenate(list(rows[0]))) == 12 and not shared._held[1]
    shared = _Shared(batches(1), [8, 8])
    rows = [shared.row(0), shared.row(1)]
    assert [index for index, _ in in_turn([iter("ab"), iter("c")])] == [0, 1, 0]
    for row in rows:
        next(row)
    for row in rows:
        with pytest.raises(MemoryError):
            next(row)

"""EMO with wav2vec 2.0: windows of recordings, features at the video's frame rate, training and generation."""

import functools
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from emo_jax.data.transforms import audio_window, audio_window_samples
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.generation.sampler import VideoSampler
from emo_jax.media.moments import audio_moments
from emo_jax.media.timing import AUDIO_MARGIN, audio_context, cut, window_bounds
from emo_jax.models.audio_encoder import (
    FrameRecording,
    Recording,
    frame_positions,
    interpolate,
    moment_frames,
    standardise,
)
from emo_jax.models.emo import build
from emo_jax.models.parts import part_of
from emo_jax.models.placement import parameter_spec
from emo_jax.models.wav2vec2 import Wav2Vec2Config, interpolate_at
from emo_jax.synthetic.world import make_voice
from emo_jax.training.stages import STAGES, split
from emo_jax.training.step import make_loss
from tests.echo import RecordingRule, echo
from tests.small import WAV2VEC2, small_config
from tests.steps import FAST, fixed_batch, random_params, training_config

FPS, M = 25.0, 2


@pytest.fixture(scope="module")
def emo():
    return build(small_config(audio=WAV2VEC2))


@pytest.fixture(scope="module")
def listen(emo):
    """Hidden states of wav2vec 2.0 with weak attention, whose context is what a window lacks."""
    flat = flatten_dict(random_params(emo)["audio_encoder"])
    weights = {path: a * (0.02 if "out_proj" in path else 1) for path, a in flat.items()}
    params = {"audio_encoder": jax.device_put(unflatten_dict(weights))}
    return functools.partial(jax.jit(emo.hidden_states), params)


def sound(seconds, seed=0, size=1):
    """Returns noise of rising level with a DC offset."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((size, round(16000 * seconds))) * np.linspace(0.02, 0.3, round(16000 * seconds))
    return (noise + 0.05).astype(np.float32)


def error(ours, theirs):
    return np.abs(ours - theirs).max(axis=(0, 1, 3)) / np.abs(theirs).max(axis=(0, 1, 3))


def features_at_once(listen, recording, first, frames, config):
    """Computes features from the complete waveform that Recording has prepared, in one call."""
    start, _ = window_bounds(-M, 0, FPS)
    return interpolate(np.asarray(listen(recording.waveform)), frame_positions(first, frames, FPS, start, config))


# -- recordings


def test_windows_equal_one_pass_over_the_recording(emo, listen):
    config, audio = emo.audio_encoder.config, sound(5.0, size=2)
    recording = Recording(listen, audio, FPS, M, config, seconds=1.0, overlap=0.25)
    found = recording(-M, 125 + 2 * M)
    assert found.shape == (2, 125 + 2 * M, 2, 16) and found.dtype == np.float32
    first, last = error(found, features_at_once(listen, recording, -M, 125 + 2 * M, config))
    # Convolutions, group norm and positions are exact; attention is limited to the window.
    assert first < 5e-6 and 1e-4 < last < 0.01
    assert error(found[:, 1:], found[:, :-1]).min() > 0.1
    for start, frames in ((0, 1), (60, 8), (120, 5)):
        np.testing.assert_array_equal(recording(start, frames), found[:, M + start :][:, :frames])


@pytest.mark.slow
def test_a_recording_shorter_than_a_window_is_exact(emo, listen):
    config = emo.audio_encoder.config
    for seconds in (0.04, 1.5):
        recording = Recording(listen, sound(seconds), FPS, M, config, seconds=2.0, overlap=0.5)
        frames = math.ceil(seconds * FPS) + 2 * M
        assert error(recording(-M, frames), features_at_once(listen, recording, -M, frames, config)).max() < 1e-5
        np.testing.assert_array_equal(recording(frames, 3), recording(frames + 99, 3))


def test_a_long_recording_is_computed_once_in_windows_of_one_shape_and_few_are_cached(emo):
    calls, config = [], emo.audio_encoder.config

    def listen(audio, lengths, measured):
        calls.append((audio.shape, measured.shape, lengths.tolist()))
        return audio[:, 200 :: config.stride][:, : config.length(audio.shape[1]), None, None]

    recording = Recording(listen, sound(150), FPS, M, config)
    found = np.concatenate([recording(first - M, 8 + 2 * M)[:, M : M + 8] for first in range(0, 3750, 8)], axis=1)
    samples = 320 * 799 + 400
    assert calls == [((1, samples), (1, 20, 10), [samples])] * 13  # one per 12 s, the last flush right
    assert recording._window.cache_info().currsize == 8
    near = interpolate(recording.waveform[:, 200::320], frame_positions(0, 3750, FPS, -AUDIO_MARGIN - 640 * M, config))
    np.testing.assert_allclose(found[:, :3750, 0, 0], near, atol=1e-6)
    recording(3200, 500)
    assert len(calls) == 13


@pytest.mark.slow
def test_windows_of_a_long_frame_recording_equal_one_pass(emo, listen, monkeypatch):
    """The transformer runs at 25 frames per second; only its attention is limited to the window."""
    config, audio = emo.audio_encoder.config, sound(9.9, size=2)
    at_once = FrameRecording(listen, audio, FPS, 4, config)(-M, 248 + 2 * M)
    monkeypatch.setattr(FrameRecording, "MAX_FRAMES", 100)
    monkeypatch.setattr(FrameRecording, "OVERLAP", 25)
    recording = FrameRecording(listen, audio, FPS, 4, config)
    found = recording(-M, 248 + 2 * M)
    assert recording._window.cache_info().currsize == 4  # first frames 0, 50, 100 and 148
    assert 1e-4 < error(found, at_once).max() < 0.01
    assert error(found[:, 1:], found[:, :-1]).min() > 0.1
    for start, frames in ((0, 1), (60, 8), (243, 5)):
        np.testing.assert_array_equal(recording(start, frames), found[:, M + start :][:, :frames])


def test_a_frame_recording_beyond_the_longest_window_has_windows_of_one_shape(emo):
    calls, config, size = [], emo.audio_encoder.config, FrameRecording.MAX_FRAMES

    def listen(audio, lengths, measured, taps):
        calls.append((audio.shape, lengths.tolist()))
        return np.asarray(interpolate_at(audio[:, 200 :: config.stride, None, None], taps))

    recording, frames = FrameRecording(listen, sound(160), FPS, 8, config), 4000
    found = np.concatenate([recording(first - M, 8 + 2 * M)[:, M : M + 8] for first in range(0, frames, 8)], axis=1)
    assert len(calls) == 3 and len({shape for shape, _ in calls}) == 1  # first frames 0, 1400 and 2400
    assert all(lengths == [size] for _, lengths in calls)
    outputs = recording.waveform[:, 200 :: config.stride][:, : recording._outputs]
    wanted = interpolate(outputs, np.arange(frames) * (outputs.shape[1] - 1) / (frames - 1))
    np.testing.assert_allclose(found[:, :, 0, 0], wanted, atol=2e-3)


def test_audio_is_standardised_over_the_recording(emo):
    inputs = []

    def listen(audio, lengths, measured):
        inputs.append(audio)
        return np.zeros((1, 50, 1, 1), np.float32)

    def network_input(audio, **config):
        config = Wav2Vec2Config(**{**vars(emo.audio_encoder.config), **config})
        Recording(listen, audio, FPS, M, config, seconds=1.0, overlap=0.1)(0, 1)
        return inputs[-1]

    audio, lead = sound(2.0), AUDIO_MARGIN + 640 * M
    np.testing.assert_allclose(network_input(audio), network_input(0.3 * audio - 0.1), atol=2e-4)
    wanted = (audio - audio.mean()) / audio.std()
    np.testing.assert_allclose(network_input(audio)[:, lead:], wanted[:, : 50 * 320 + 80 - lead], atol=1e-4)
    assert not network_input(audio)[:, :lead].any()
    unscaled = network_input(audio, do_normalize=False)
    np.testing.assert_array_equal(unscaled[:, lead:], audio[:, : 50 * 320 + 80 - lead])
    assert np.isfinite(standardise(np.zeros((1, 9), np.float32))).all()


def test_moment_frames_have_the_moments_of_all_frames():
    audio = np.cumsum(sound(3.0)[0]) / 100
    frames = np.lib.stride_tricks.sliding_window_view(audio, 10)[::5].astype(np.float64)
    few = moment_frames(audio, 10, 5, block=1000).astype(np.float64)
    assert few.shape == (20, 10)
    np.testing.assert_allclose(few.mean(0), frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.cov(few.T, bias=True), np.cov(frames.T, bias=True), rtol=1e-5)


# -- the video's frame rate


@pytest.mark.parametrize("fps", [25.0, 30.0, 29.97, 60.0])
def test_features_are_interpolated_at_frame_centres(fps):
    """The states are times: output j is the time at the middle of its receptive field."""
    config = Wav2Vec2Config()
    times = ((np.arange(200) * 320 + 200 - AUDIO_MARGIN) / 16000)[None, :, None, None]
    found = interpolate(times.astype(np.float32), frame_positions(0, 50, fps, -AUDIO_MARGIN, config))
    np.testing.assert_allclose(found[0, :, 0, 0], (np.arange(50) + 0.5) / fps, atol=1e-6)
    later = interpolate(times.astype(np.float32), frame_positions(20, 30, fps, -AUDIO_MARGIN, config))
    np.testing.assert_array_equal(later, found[:, 20:])


def test_interpolate_holds_the_ends():
    states = np.array([1.0, 2.0, 4.0], np.float32)[None, :, None, None]
    found = interpolate(states, np.array([-1.5, 0.0, 0.25, 1.5, 2.0, 9.0]))
    np.testing.assert_array_equal(found.ravel(), [1, 1, 1.25, 3, 4, 4])


# -- EMO


@pytest.mark.slow
def test_a_training_window_is_standardised_and_interpolated_at_its_frames(emo):
    params, (start, length) = random_params(emo), window_bounds(3, 6, FPS)
    window = cut(sound(1.0)[0], start, length)[None]
    compute = jax.jit(lambda p, a: emo.audio_features(p, a, 6))
    found = compute(params, window)
    assert found.shape == (1, 6, 2, 16)
    np.testing.assert_allclose(found, compute(params, 0.5 * window + 0.1), atol=1e-3)
    states = np.asarray(jax.jit(emo.hidden_states)(params, standardise(window)))
    every, _ = jax.jit(emo.audio_encoder.apply)({"params": params["audio_encoder"]}, standardise(window))
    np.testing.assert_allclose(states, np.stack([every[0], every[2]], axis=2), atol=1e-5)
    config = emo.audio_encoder.config
    np.testing.assert_allclose(found, interpolate(states, frame_positions(3, 6, FPS, start, config)), atol=1e-5)
    assert emo.audio_features(params, found, 6) is found


@pytest.mark.slow
def test_context_brings_the_features_of_a_clip_close_to_those_of_its_recording(emo, listen):
    record = np.round(make_voice(np.random.default_rng([5, 2]), 10.0)[0] * 32767).astype(np.int16)
    recording = Recording(listen, record[None].astype(np.float32) / 32768, FPS, M, emo.audio_encoder.config)
    clip = ConfigDict(dict(frames=4, audio_window=M, fps=FPS))
    params = listen.args[0]

    def relative_error(start, **context):
        clip.update(context)
        window = audio_window(record, start, 4, M, FPS, audio_context(clip))[None]
        assert window.shape == (1, audio_window_samples(clip))
        found, wanted = np.asarray(emo.audio_features(params, window, 4 + 2 * M)), recording(start - M, 4 + 2 * M)
        return np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean())

    starts = (0, 60, 125, 200, 246)
    alone = np.array([relative_error(start) for start in starts])  # configs of older weights have no context
    more = np.array([relative_error(start, audio_context=2.0) for start in starts])
    assert (more < 0.35 * alone).all() and more[1:4].max() < 0.05 and alone.min() > 0.2


@pytest.mark.slow
def test_clips_are_normalized_by_their_recording(emo, listen):
    """With pauses, the statistics of a window differ from those of the recording, which generation uses."""
    voice = make_voice(np.random.default_rng([5, 2]), 4.0)[0]
    track = np.concatenate([0.02 * voice, np.zeros(96000, np.float32), voice, np.zeros(96000, np.float32)])
    track = np.round(track * 32767).astype(np.int16)
    record, moments = track[:160000], audio_moments(track)[None]  # ten seconds of the recording, mostly quiet
    config, params = emo.audio_encoder.config, listen.args[0]
    recording = Recording(listen, track[None].astype(np.float32) / 32768, FPS, M, config)
    part = Recording(listen, record[None].astype(np.float32) / 32768, FPS, M, config, moments=moments)
    features = jax.jit(emo.audio_features, static_argnums=2)

    def error(found, want):
        return np.sqrt(((np.asarray(found) - want) ** 2).mean() / (want**2).mean())

    for start in (60, 70):  # in the quiet voice
        window = audio_window(record, start, 4, M, FPS, 2.0)[None]
        want = recording(start - M, 4 + 2 * M)
        assert error(features(params, window, 4 + 2 * M, moments), want) < 0.05
        assert error(part(start - M, 4 + 2 * M), want) < 0.05
        assert error(features(params, window, 4 + 2 * M, None), want) > 0.2


def test_log_mel_features_ignore_the_context():
    emo, record = build(small_config()), np.round(sound(2.0)[0] * 32767).astype(np.int16)
    windows = [audio_window(record, 20, 4, M, FPS, context)[None] for context in (0.0, 0.35)]
    plain, more = (np.asarray(emo.audio_features({}, window, 4 + 2 * M)) for window in windows)
    assert windows[1].shape[1] == windows[0].shape[1] + 2 * 5600
    np.testing.assert_array_equal(plain, more)


def test_wav2vec2_is_frozen_in_every_stage_and_has_partition_specs(emo):
    paths = flatten_dict(emo.abstract_params(), sep="/")
    ours = {path for path in paths if path.startswith("audio_encoder/")}
    assert len(ours) > 20 and {part_of(path) for path in ours} == {"audio_encoder"}
    for stage in STAGES.values():
        assert ours <= set(split(paths, stage)[1])
    for path in ours:
        parameter_spec(path, paths[path].shape, 8)
    assert build(small_config(audio=WAV2VEC2, audio_attention=False)).audio_encoder is None


@pytest.mark.slow
def test_the_training_loss_depends_on_the_audio(emo):
    config = training_config("video")
    config.model.audio.update(WAV2VEC2)
    batch, params = fixed_batch(config), random_params(emo)
    loss = jax.jit(make_loss(emo, config)).lower(params, batch, jax.random.key(0)).compile(compiler_options=FAST)
    value = float(loss(params, batch, jax.random.key(0))[0])
    other = float(loss(params, batch | {"audio": batch["audio"][:, ::-1].copy()}, jax.random.key(0))[0])
    assert np.isfinite(value) and abs(other - value) > 1e-6


@pytest.mark.slow
def test_sampling_conditions_every_clip_on_its_part_of_the_recording():
    config = training_config("speed")
    config.model.audio.update(WAV2VEC2)
    config.sampling.steps = 1
    rule = RecordingRule()
    emo = echo(config, rule)
    params = {"audio_encoder": random_params(build(config))["audio_encoder"]}
    sampler = VideoSampler(emo, params, config.sampling)
    portrait, mask = np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 64, 64, 1), np.uint8)

    def generate(audio):
        rule.calls.clear()
        parts = list(sampler.stream(portrait, mask, audio, key=jax.random.key(0)))
        jax.effects_barrier()
        count = np.concatenate(parts, axis=1).shape[1]
        return np.concatenate([call["audio"] for call in rule.calls], axis=1)[:, :count], sampler.time._recording[1]

    voice = sound(0.8)
    found, recording = generate(voice)
    assert found.shape == (1, 20, 2, 16)
    listen = functools.partial(jax.jit(emo.hidden_states), params)
    np.testing.assert_allclose(found, features_at_once(listen, recording, 0, 20, emo.audio_encoder.config), atol=1e-4)
    again, cached = generate(voice.copy())
    np.testing.assert_array_equal(again, found)
    assert cached is recording and cached._window.cache_info().misses == 1
    other, new = generate(0.5 * voice[:, ::-1])
    assert new is not recording and np.abs(other - found).max() > 0.1
    assert generate(sound(0.1))[0].shape[1] == 3
    assert sampler.compilations() == sampler.time._hidden_states._cache_size() == 1


@pytest.mark.slow
def test_generation_with_wav2vec2():
    parts = dict(reference_attention="off", temporal_modules=False, speed_layers=False, face_locator=False)
    config = small_config(audio=WAV2VEC2, **parts)
    config.sampling.update(steps=1, solver="ddim", clips=1, reference_scale=1.0, audio_scale=1.0)
    emo = build(config)
    pipe, portrait = EmoPipeline(emo, random_params(emo)), np.zeros((64, 64, 3), np.uint8)

    def frames(audio):
        return pipe(portrait, audio, face_box=(10, 10, 50, 50), framing="crop").frames

    voice = sound(0.2)[0]
    first = frames(voice)
    assert first.shape == (5, 64, 64, 3) and first.std() > 0
    np.testing.assert_array_equal(frames(voice), first)
    assert not np.array_equal(frames(voice[::-1].copy()), first)
    assert pipe.compilations() == 1

"""Audio features and tokens, speed buckets and features: which frames depend on which input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.media.timing import cut, window_bounds
from emo_jax.models.audio_encoder import mel_features
from emo_jax.models.audio_projector import AudioProjector
from emo_jax.models.layers import gather_window
from emo_jax.models.speed_encoder import SpeedEncoder, buckets

FPS, BANDS, STEPS = 25, 40, 4


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples).astype(np.float32)


def window(sound, start, frames, fps=FPS):
    """Returns the audio of some frames (1, samples), cut as in data and sampler."""
    return cut(sound, *window_bounds(start, frames, fps))[None]


def features(sound, start, frames, fps=FPS):
    return np.asarray(mel_features(window(sound, start, frames, fps), frames, fps, bands=BANDS, steps=STEPS))[0]


def test_mel_features_depend_on_their_frame_only():
    sound = noise(12 * 640)
    full = features(sound, 0, 12)
    assert full.shape == (12, STEPS, BANDS)
    frame = 5
    for at, changes in ((5 * 640 - 200, False), (5 * 640 + 320, True), (6 * 640 + 200, False)):
        changed = sound.copy()
        changed[at : at + 8] += 0.5
        moved = np.abs(features(changed, 0, 12) - full).max(axis=(1, 2)) > 0
        assert moved[frame] == changes
        assert moved.sum() <= 2 and moved.any()
        assert set(np.flatnonzero(moved)) <= {at // 640 - 1, at // 640, at // 640 + 1}


@pytest.mark.parametrize("fps, start", [(25, 3), (25, 8), (30, 6)])
def test_features_of_windows_equal_those_of_the_recording(fps, start):
    sound = noise(20 * 640)
    full = features(sound, 0, 16, fps)
    np.testing.assert_allclose(features(sound, start, 5, fps), full[start : start + 5], atol=1e-4)
    assert np.abs(features(sound, start + 1, 5, fps) - full[start : start + 5]).max() > 0.1


def test_a_tone_peaks_in_its_band_and_silence_is_the_floor():
    time = np.arange(4 * 640) / 16000
    loudest = []
    for hertz in (150, 500, 1500, 5000):
        spectrum = features(0.5 * np.sin(2 * np.pi * hertz * time).astype(np.float32), 0, 4)[1, 1]
        loudest.append(int(spectrum.argmax()))
        centre = 700 * (10 ** (np.interp(loudest[-1] + 1, [0, BANDS + 1], _mel(60, 7600)) / 2595) - 1)
        assert abs(centre - hertz) < 0.12 * hertz + 30
        assert 0.3 < spectrum.max() < 2
    assert loudest == sorted(set(loudest))
    np.testing.assert_allclose(features(np.zeros(4 * 640, np.float32), 0, 4), -45 / 35, atol=1e-3)


def _mel(*hertz):
    return 2595 * np.log10(1 + np.array(hertz) / 700)


def test_mel_features_are_scaled_decibels():
    quiet, loud = (features(scale * noise(4 * 640), 0, 4)[1] for scale in (0.1, 1.0))
    np.testing.assert_allclose((loud - quiet).mean(), 20 / 35, atol=0.01)


def test_gather_window_concatenates_neighbours_in_order():
    x = jnp.arange(7.0).reshape(1, 7, 1)
    np.testing.assert_array_equal(gather_window(x, 2)[0], [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]])
    np.testing.assert_array_equal(gather_window(x, 0), x)


@pytest.mark.slow
def test_audio_tokens_depend_on_2m_plus_1_frames():
    module = AudioProjector(tokens=3, features=8, hidden=16, window=2)
    x = jax.random.normal(jax.random.key(0), (2, 9, 4, 5))
    params = module.init(jax.random.key(1), x)
    run = jax.jit(module.apply)
    tokens = run(params, x)
    assert tokens.shape == (2, 5, 3, 8)
    moved = np.abs(run(params, x.at[0, 2].add(1.0)) - tokens).max(axis=(2, 3)) > 1e-6
    np.testing.assert_array_equal(moved, [[True, True, True, False, False], [False] * 5])


def test_speed_buckets_follow_the_formula():
    centres, radii = (0.1, 0.5, 2.0), (0.1, 0.2, 0.8)
    speed = np.array([[0.0, 0.1, 0.7, 5.0]], np.float32)
    found = buckets(speed, centres, radii)
    wanted = [[[np.tanh((w - c) / r * 3) for c, r in zip(centres, radii, strict=True)] for w in row] for row in speed]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose([found[0, 1, 0], found[0, 2, 1]], [0, np.tanh(3)], atol=1e-5)


def test_speed_features_depend_on_their_window():
    module = SpeedEncoder(features=6, window=1, centres=(0.2, 1.0), radii=(0.2, 0.5))
    speed = jnp.array([[0.1, 0.4, 0.9, 1.6, 0.3]])
    params = module.init(jax.random.key(0), speed)
    out = module.apply(params, speed)
    assert out.shape == (1, 3, 6)
    moved = np.abs(module.apply(params, speed.at[0, 0].set(0.5)) - out).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(moved, [[True, False, False]])

"""Sampling in windows against a plain loop of EchoMimic's rule, with formulas in place of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.clips import clip_keys
from emo_jax.diffusion.schedule import make_schedule, strided, timesteps
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.window_sampler import WindowSampler, make_sampler
from tests.echo import echo
from tests.small import WHISPER, as_echomimic, small_config

F, STEPS, SCALE = 4, 3, 2.0
VALUES = np.random.default_rng(0).normal(size=(1, 40, 1, 1)).astype(np.float32)
"""The audio feature of each frame."""


def echo_config(**sampling):
    config = as_echomimic(small_config(audio=WHISPER))
    config.sampling.update(steps=STEPS, reference_scale=SCALE, audio_scale=SCALE, overlap=1, shift=3)
    config.sampling.update(sampling)
    return config


def rule(latents, timesteps, conditions):
    """Mixes the frames of a window, and depends on the place of a frame in it."""
    places = jnp.arange(F, dtype=jnp.float32)[:, None, None, None] / F
    missing = len(latents) - len(conditions.audio)  # the null half
    voice = jnp.pad(conditions.audio.mean(axis=(2, 3)), ((missing, 0), (0, 0)))[:, :, None, None, None]
    return 0.4 * latents.mean(axis=1, keepdims=True) + 0.3 * places * latents + voice


def features(first, frames):
    return VALUES[:, np.clip(np.arange(first, first + frames), 0, VALUES.shape[1] - 1)]


def make(config):
    sampler = make_sampler(echo(config, rule), {}, config.sampling)
    sampler.time.hearing = lambda params, audio: features
    return sampler


@pytest.fixture(scope="module")
def sampler():
    return make(echo_config())


def generate(sampler, frames, seed=0, **options):
    portraits, masks = np.full((1, 64, 64, 3), 90, np.uint8), np.ones((1, 64, 64, 1), np.uint8)
    samples = frames * 16000 // 24
    key = jax.random.key(seed)
    return list(sampler.stream(portraits, masks, np.zeros((1, samples), np.float32), key=key, **options))


def expected(sampler, frames, seed=0):
    """EchoMimic's loop over steps and windows in float64: sums and counts of v, then DDIM to t - 1000 // steps."""
    schedule = make_schedule(sampler.emo.config.diffusion)
    times = timesteps(schedule, STEPS, schedule.spacing)
    alphas = np.append(schedule.alphas_cumprod, 1.0)  # -1: clean
    keys = clip_keys(jax.random.key(seed), 0, -(-frames // F))
    noise = [np.asarray(sampler._noise(jax.random.split(key)[0], 1)) for key in keys]
    count = max(frames, F)
    x = np.concatenate(noise, axis=1)[:, :count].astype(np.float64)
    for step, (t, t_next) in enumerate(zip(times, strided(schedule, times), strict=True)):
        sums, seen = np.zeros_like(x), np.zeros(count)
        for start in range(0, count if count > F else 1, F - 1):
            window = [(start + i + 3 * step) % count for i in range(F)]
            halves = []
            for voice in (0.0, VALUES[:, window][..., None]):
                mixed = 0.4 * x[:, window].mean(axis=1, keepdims=True)
                halves.append(mixed + 0.3 * np.arange(F)[:, None, None, None] / F * x[:, window] + voice)
            sums[:, window] += halves[0] + SCALE * (halves[1] - halves[0])
            seen[window] += 1
        v = sums / seen[:, None, None, None]
        a, s = np.sqrt(alphas[t]), np.sqrt(1 - alphas[t])
        x = np.sqrt(alphas[t_next]) * (a * x - s * v) + np.sqrt(1 - alphas[t_next]) * (a * v + s * x)
    return x[:, :frames]


@pytest.mark.parametrize("frames", [9, 12, 4, 3, 14])
def test_windows_are_averaged_in_each_step_and_one_program_serves_every_length(sampler, frames):
    found, counted = [], []
    decode = sampler._decode

    def recording(params, latents, *more):
        found.append(latents)
        return decode(params, latents, *more)

    sampler._decode = recording
    try:
        segments = generate(sampler, frames, on_window=lambda *numbers: counted.append(numbers))
    finally:
        sampler._decode = decode
    assert [segment.shape[1] for segment in segments] == [F] * (frames // F) + [frames % F] * (frames % F > 0)
    latents = np.concatenate([np.asarray(a)[0] for a in found], axis=1)[:, :frames]
    wanted = expected(sampler, frames)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(latents, wanted, rtol=1e-4, atol=1e-4)
    windows = len(range(0, max(frames, F) if frames > F else 1, F - 1))
    assert counted == [(i + 1, windows * STEPS) for i in range(windows * STEPS)]
    assert sampler.compilations() == sampler._advance._cache_size() == decode._cache_size() == 1


def test_the_device_holds_one_window(sampler):
    """Whatever the length, the program's arguments are f frames."""
    sizes, window = [], sampler._window

    def recording(params, constants, x, *rest):
        sizes.append(x.shape)
        return window(params, constants, x, *rest)

    sampler._window = recording
    try:
        generate(sampler, 30)
    finally:
        sampler._window = window
    assert set(sizes) == {(1, F, *sampler.emo.latent_shape)} and len(sizes) == 10 * STEPS


def test_seeds_and_held_latents(sampler):
    first, again, other = (np.concatenate(generate(sampler, 9, seed), axis=1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.1
    hold = np.zeros((1, *sampler.emo.latent_shape[:2], 1), np.float32)
    hold[:, 1:3] = 1
    held = np.concatenate(generate(sampler, 9, hold=hold), axis=1)
    factor = sampler.emo.vae.config.factor
    inside = held[:, :, factor : 3 * factor].astype(int)
    assert np.abs(inside - 90).max() <= 1
    assert (held[:, :, 3 * factor :] != 90).mean() > 0.5


def test_other_solvers_keep_a_state_of_each_frame():
    """DPM-Solver++ needs the previous prediction from the third step on; in three steps it equals DDIM."""

    def frames(**options):
        return np.concatenate(generate(make(echo_config(stride=False, **options)), 9), axis=1).astype(int)

    assert (frames(steps=5, solver="dpm++2m") != frames(steps=5)).mean() > 0.1


def test_a_strategy_that_does_not_fit_raises():
    def check(message, change):
        config = echo_config()
        change(config)
        with pytest.raises(ValueError, match=message):
            make_sampler(echo(config, rule), {}, config.sampling)

    check("sampling.strategy is 'both'", lambda c: c.sampling.update(strategy="both"))
    check("clip.motion_frames is 2", lambda c: c.clip.update(motion_frames=2))
    check("clip.audio_window is 1", lambda c: c.clip.update(audio_window=1))
    check("model.audio.encoder is 'mel'", lambda c: c.model.audio.update(encoder="mel", projected=True))
    check("sampling.hold_colors", lambda c: c.sampling.update(hold_colors=True))
    check("sampling.overlap is 4", lambda c: c.sampling.update(overlap=4))
    config = small_config()
    assert type(make_sampler(echo(config, rule), {}, config.sampling)) is VideoSampler
    assert type(make(echo_config())) is WindowSampler

"""Latents of the reference and of the last motion frame at the Backbone's input, and as what diffusion starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.schedule import add_noise, make_schedule
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.window_sampler import make_sampler
from emo_jax.models.conditions import LATENTS, mask_conditions
from emo_jax.models.emo import EMO, build
from emo_jax.training.losses import denoising_loss
from emo_jax.training.stages import get_stage
from tests.small import small_config
from tests.steps import fixed_batch

STD = 0.5


def config_of(std=STD, **model):
    config = small_config("video", **model)
    config.diffusion.update(residual_std=std, zero_terminal_snr=True, prediction="v", spacing="trailing")
    config.sampling.update(solver="ddim", steps=2, clips=1, reference_scale=1.0, audio_scale=1.0)
    return config


def draw(emo, seed, frames):
    return jax.random.normal(jax.random.key(seed), (2, frames, *emo.latent_shape))


@pytest.fixture(scope="module")
def shown():
    """(networks with image inputs, their params, latents, timesteps)."""
    emo = build(config_of(image_inputs=True))
    return emo, emo.init(jax.random.key(0)), draw(emo, 1, 4), jnp.array([3, 700])


@pytest.mark.slow
def test_the_backbone_reads_the_reference_and_the_null_condition_is_zeros(shown):
    emo, params, x, t = shown
    given = emo.conditions(params, reference=draw(emo, 2, 1), temporal=False)
    changed = dict(given.reference)
    changed[LATENTS] = changed[LATENTS].at[0].add(1)
    outputs = [emo.denoise(params, x, t, dataclasses.replace(given, reference=r)) for r in (given.reference, changed)]
    assert np.abs(outputs[0][0] - outputs[1][0]).max() > 0.01
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])
    masked = mask_conditions(given, jnp.array([False, True]), jnp.array([True, True]))
    assert not masked.reference[LATENTS][0].any()
    np.testing.assert_array_equal(masked.reference[LATENTS][1], given.reference[LATENTS][1])


@pytest.mark.slow
def test_the_backbone_reads_the_last_motion_frame_as_a_difference_from_the_reference(shown):
    emo, params, x, t = shown
    reference, motion = draw(emo, 2, 1), draw(emo, 3, emo.config.clip.motion_frames)
    constants = emo.conditions(params, reference=reference)
    given = emo.conditions(params, base=constants, motion=motion, has_motion=jnp.array([True, False]))
    np.testing.assert_allclose(given.motion[LATENTS][0], (motion[0, -1:] - reference[0]) / STD, rtol=1e-5, atol=1e-5)
    assert not given.motion[LATENTS][1].any()
    other = dict(given.motion)
    other[LATENTS] = other[LATENTS] + 1
    outputs = [emo.denoise(params, x, t, dataclasses.replace(given, motion=m)) for m in (given.motion, other)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


@pytest.mark.parametrize("mode", ["shared", "off"])
def test_modes_of_reference_attention_without_image_inputs(mode):
    with pytest.raises(ValueError, match="reference_attention"):
        build(config_of(image_inputs=True, reference_attention=mode))


# ---- differences from the reference


@pytest.mark.slow
def test_the_loss_diffuses_the_difference_from_the_reference(monkeypatch):
    seen = []
    monkeypatch.setattr(EMO, "denoise", lambda self, params, x, t, conditions: seen.append(x) or jnp.zeros_like(x))
    config = config_of()
    config.train.motion_noise = 0.0
    emo, schedule = build(config), make_schedule(config.diffusion)
    params, batch = emo.init(jax.random.key(0)), fixed_batch(config)
    t = jnp.zeros(2, jnp.int32)  # almost no noise
    denoising_loss(emo, schedule, get_stage("video"), config.train, params, batch, jax.random.key(3), t)
    reference, frames = (emo.encode(params, batch[name]) for name in ("reference", "frames"))
    clean = (frames - reference[:, None]) / STD
    noise_free = add_noise(schedule, clean, jnp.zeros_like(clean), t)
    assert np.abs(seen[0] - noise_free).max() < 6 * schedule.sigmas[0]


@pytest.mark.slow
@pytest.mark.parametrize("off", [(), ("reference",)])
def test_an_output_of_zeros_is_the_portrait_unless_the_reference_is_off(monkeypatch, off):
    monkeypatch.setattr(EMO, "denoise", lambda self, params, x, t, conditions: jnp.zeros_like(x))
    config = config_of()
    config.sampling.steps = 1  # x_T is pure noise, of which v = 0 says nothing
    emo = build(config)
    params = emo.init(jax.random.key(0))
    sampler, size, latents = VideoSampler(emo, params, config.sampling, off=off), config.clip.image_size, []
    original = sampler._decode
    monkeypatch.setattr(sampler, "_decode", lambda params, x, n: latents.append(x) or original(params, x, n))
    reference = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    masks = np.ones((1, *size, 1), np.uint8)
    list(sampler.stream(reference, masks, np.zeros((1, 1600), np.float32), key=jax.random.key(0)))
    expected = emo.encode(params, reference)[:, None] * (not off)
    np.testing.assert_allclose(latents[0][0], jnp.broadcast_to(expected, latents[0][0].shape), atol=1e-5)


def test_overlapping_windows_are_refused():
    config = config_of()
    config.sampling.strategy = "windows"
    config.clip.update(motion_frames=0, audio_window=0)
    with pytest.raises(ValueError, match="residual_std"):
        make_sampler(build(config), None, config.sampling)

"""The reference's latents at the Backbone's input and output, and as the mean of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.schedule import make_schedule
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.window_sampler import make_sampler
from emo_jax.models.conditions import LATENTS, mask_conditions
from emo_jax.models.emo import EMO, build
from emo_jax.training.losses import denoising_loss
from emo_jax.training.stages import get_stage
from tests.small import small_config
from tests.steps import fixed_batch

MEAN = 0.5


def config_of(**model):
    config = small_config("video", **model)
    config.diffusion.update(reference_mean=MEAN)
    config.sampling.update(solver="ddim", steps=1, clips=1, reference_scale=1.0, audio_scale=1.0)
    return config


def draw(emo, seed, frames):
    return jax.random.normal(jax.random.key(seed), (2, frames, *emo.latent_shape))


@pytest.fixture(scope="module")
def shortcut():
    """(networks with the shortcut, params in which it is trained, latents, timesteps)."""
    emo = build(config_of(reference_shortcut=True))
    params = emo.init(jax.random.key(0))
    for name in ("conv_in_reference", "conv_out_reference"):
        kernel = params["backbone"][name]["kernel"]
        assert not kernel.any()  # an untrained shortcut changes nothing
        params["backbone"][name]["kernel"] = 0.1 * np.random.default_rng(0).normal(size=kernel.shape)
    return emo, params, draw(emo, 1, 4), jnp.array([3, 700])


def test_the_untrained_shortcut_changes_nothing(shortcut):
    emo, _, x, t = shortcut
    plain = build(config_of())
    outputs = []
    for one in (emo, plain):
        params = one.init(jax.random.key(0))
        outputs.append(one.denoise(params, x, t, one.conditions(params, reference=draw(one, 2, 1), temporal=False)))
    np.testing.assert_array_equal(*outputs)


def test_the_shortcut_reads_the_reference_and_the_null_condition_is_zeros(shortcut):
    emo, params, x, t = shortcut
    given = emo.conditions(params, reference=draw(emo, 2, 1), temporal=False)
    on, both = jnp.array([False, True]), jnp.array([True, True])
    masked = emo.denoise(params, x, t, mask_conditions(given, on, both))
    full = emo.denoise(params, x, t, given)
    assert np.abs(masked[0] - full[0]).max() > 0.01
    np.testing.assert_array_equal(masked[1], full[1])
    zeros = mask_conditions(given, jnp.array([True, True]), both)
    zeros.reference[LATENTS] = zeros.reference[LATENTS].at[0].set(0)
    for name in set(zeros.reference) - {LATENTS}:
        zeros.reference[name] = zeros.reference[name].at[0].set(0)
    np.testing.assert_allclose(masked, emo.denoise(params, x, t, zeros), atol=1e-6)


@pytest.mark.parametrize("mode", ["shared", "off"])
def test_modes_of_reference_attention_without_a_shortcut(mode):
    with pytest.raises(ValueError, match="reference_attention"):
        build(config_of(reference_shortcut=True, reference_attention=mode))


# ---- the mean of the noise


def noisy_input(monkeypatch, emo, params, batch):
    """Returns what the Backbone gets in the loss at the last timestep, and the reference's latents."""
    seen = []

    def denoise(self, params, x, t, conditions):
        seen.append(x)
        return x

    monkeypatch.setattr(EMO, "denoise", denoise)
    config = emo.config
    schedule, t = make_schedule(config.diffusion), jnp.full(2, config.diffusion.train_steps - 1)
    denoising_loss(emo, schedule, get_stage("video"), config.train, params, batch, jax.random.key(3), t)
    return seen[0], emo.encode(params, batch["reference"])[:, None]


def test_the_loss_adds_the_mean_to_the_noise(monkeypatch):
    config = config_of()
    config.diffusion.update(zero_terminal_snr=True, prediction="x0", spacing="trailing")
    emo = build(config)
    params, batch = emo.init(jax.random.key(0)), fixed_batch(config)
    with_mean, reference = noisy_input(monkeypatch, emo, params, batch)
    config.diffusion.reference_mean = 0.0
    without, _ = noisy_input(monkeypatch, build(config), params, batch)
    np.testing.assert_allclose(with_mean - without, jnp.broadcast_to(MEAN * reference, without.shape), atol=1e-5)


def first_frames(emo, params, off=()):
    """Returns the latents of a clip, for a Backbone that returns its input as x0, and the reference's latents."""
    sampler = VideoSampler(emo, params, emo.config.sampling, off=off)
    size, latents = emo.config.clip.image_size, []
    original = sampler._decode
    sampler._decode = lambda params, x, count: latents.append(x) or original(params, x, count)
    reference = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    masks = np.ones((1, *size, 1), np.uint8)
    list(sampler.stream(reference, masks, np.zeros((1, 1600), np.float32), key=jax.random.key(0)))
    return latents[0][0], emo.encode(params, reference)[:, None]


def test_sampling_starts_from_the_mean_unless_the_reference_is_off(monkeypatch):
    monkeypatch.setattr(EMO, "denoise", lambda self, params, x, t, conditions: x)
    config = config_of()
    config.diffusion.update(zero_terminal_snr=True, prediction="x0", spacing="trailing")
    emo = build(config)
    params = emo.init(jax.random.key(0))
    near, reference = first_frames(emo, params)
    off, _ = first_frames(emo, params, off=("reference",))
    np.testing.assert_allclose(near - off, jnp.broadcast_to(MEAN * reference, off.shape), atol=1e-5)


def test_samplers_that_add_noise_of_another_mean_are_refused():
    config = config_of()
    config.sampling.eta = 0.5
    with pytest.raises(ValueError, match=r"sampling\.eta is 0\.5"):
        VideoSampler(build(config), None, config.sampling)
    config.sampling.update(eta=0.0, strategy="windows")
    config.clip.update(motion_frames=0, audio_window=0)
    with pytest.raises(ValueError, match="reference_mean"):
        make_sampler(build(config), None, config.sampling)

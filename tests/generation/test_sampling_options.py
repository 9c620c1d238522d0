"""Options of the sampler: guidance and colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax.generation.guided import guidance_options
from emo_jax.generation.options import SAMPLING_OPTIONS, check_sampling
from emo_jax.generation.sampler import VideoSampler
from emo_jax.models.emo import build
from tests.echo import RecordingRule, echo
from tests.small import as_hallo, small_config
from tests.steps import FAST, random_params


def calls_of(**options):
    """Generates one segment; returns the sizes of the Backbone's batches, in order."""
    config = small_config("speed")
    config.sampling.update(steps=4, solver="ddim", clips=1, reference_scale=2.0, audio_scale=2.0, **options)
    rule = RecordingRule()
    sampler = VideoSampler(echo(config, rule), {}, config.sampling)
    portraits, masks = np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 64, 64, 1), np.uint8)
    audio = np.zeros((1, 4 * 640), np.float32)
    list(sampler.stream(portraits, masks, audio, key=jax.random.key(0)))
    jax.effects_barrier()
    return [len(call["latents"]) for call in rule.calls]


def test_the_interval_saves_a_pass_in_the_other_steps():
    """The timesteps of four trailing steps are 999, 749, 499 and 249."""
    assert calls_of() == [2, 2, 2, 2]
    assert calls_of(guidance_interval=(0.2, 0.6)) == [1, 1, 2, 2]


def test_configs_of_older_weights_lack_the_options():
    config = small_config().sampling
    for name in SAMPLING_OPTIONS:
        del config[name]
    assert guidance_options(config, 1000) == dict(rescale=0.0, interval=None)
    check_sampling(config, 1000)
    assert guidance_options(ConfigDict(dict(guidance_interval=(0.25, 0.8))), 1000)["interval"] == (250, 799)


@pytest.mark.parametrize("hold", [False, True])
def test_hold_colors_stops_the_drift_of_segments(hold):
    """Every clip is brighter and has more contrast than its motion frames; both would grow without limit."""
    config = small_config("speed")
    config.sampling.update(steps=2, clips=2, reference_scale=1.0, audio_scale=1.0, hold_colors=hold)
    pattern = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 1, *build(config).latent_shape)).astype(np.float32)

    def drifting(latents, timesteps, conditions):
        motion = conditions.motion["layer"].mean(axis=(1, 2, 3, 4), keepdims=True)
        return jnp.broadcast_to(motion + 0.05 + (1 + motion) * pattern, latents.shape)

    sampler = VideoSampler(echo(config, drifting), {}, config.sampling)
    portraits, masks = np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 64, 64, 1), np.uint8)
    segments = list(sampler.stream(portraits, masks, np.zeros((1, 24 * 640), np.float32), key=jax.random.key(0)))
    assert [len(frames[0]) for frames in segments] == ([8, 8, 8] if hold else [4, 8, 8, 4])
    levels = [(frames.mean(), frames.std()) for frames in segments]
    if hold:
        np.testing.assert_allclose(levels, [levels[0]] * 3, atol=1)
    else:
        assert levels[2][0] > levels[1][0] + 5 > levels[0][0] + 10


@pytest.mark.parametrize("change", [
    dict(guidance_rescale=1.1), dict(guidance_rescale=-0.1), dict(guidance_interval=(0.5, 0.5)),
    dict(guidance_interval=(-0.1, 1.0)), dict(guidance_interval=(0.0, 1.5)),
])  # fmt: skip
def test_options_out_of_range_raise(change):
    config = small_config().sampling
    config.update(change)
    with pytest.raises(ValueError, match=next(iter(change))):
        check_sampling(config, 1000)


@pytest.mark.slow
def test_motion_frames_of_many_videos_are_encoded_again_one_at_a_time():
    emo = build(as_hallo(small_config()))
    params, rng, n = random_params(emo), np.random.default_rng(0), emo.config.clip.motion_frames
    reencode = VideoSampler(emo, params, emo.config.sampling)._next_motion(params)

    def compiled(batch):
        latents = jax.ShapeDtypeStruct((batch, n, *emo.latent_shape), jnp.float32)
        return jax.jit(reencode).lower(latents).compile(compiler_options=FAST)

    one, many = compiled(1), compiled(8)
    latents = rng.normal(size=(8, n, *emo.latent_shape)).astype(np.float32)
    found = np.asarray(many(latents))
    images = emo.vae.apply({"params": params["vae"]}, latents, method="decode")
    wanted = np.asarray(emo.encode(params, jnp.clip(images, -1, 1)))
    assert wanted.std() > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    pixels = 7 * n * 64 * 64 * 3 * 4  # the images of seven videos would already take this many bytes
    assert many.memory_analysis().temp_size_in_bytes < one.memory_analysis().temp_size_in_bytes + pixels

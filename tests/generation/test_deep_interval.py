"""`sampling.deep_interval`: the levels below the first are computed in some steps only (DeepCache)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.guidance import PASSES
from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import make_schedule, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.generation.guided import guided_denoiser
from emo_jax.generation.options import check_sampling
from emo_jax.generation.sampler import VideoSampler
from emo_jax.media.timing import window_bounds
from emo_jax.models.conditions import mask_conditions
from emo_jax.models.emo import build
from emo_jax.models.unet import DEEP
from emo_jax.training.flops import count_flops
from tests.small import small_config
from tests.steps import FAST, random_params


@pytest.fixture(scope="module")
def networks():
    emo = build(small_config("speed"))
    return emo, random_params(emo)


@pytest.fixture(scope="module")
def inputs(networks):
    """Inputs of the Backbone: latents, timesteps, conditions."""
    emo, params = networks
    clip = emo.config.clip
    latents, motion = (jax.random.normal(jax.random.key(n), (2, n, *emo.latent_shape)) for n in (clip.frames, 2))

    @functools.partial(jax.jit, compiler_options=FAST)
    def conditions(params, latents, motion, sound):
        frames = clip.frames + 2 * clip.audio_window
        found = emo.conditions(
            params, reference=latents[:, :1], mask=jnp.ones((2, *clip.image_size, 1)), motion=motion,
            audio=emo.audio_features(params, sound, frames), has_motion=jnp.ones(2, bool), speed=jnp.ones((2, frames)),
        )  # fmt: skip
        return mask_conditions(found, jnp.ones(2, bool), jnp.ones(2, bool))

    first, last = window_bounds(-clip.audio_window, clip.frames + 2 * clip.audio_window, clip.fps)
    sound = 0.1 * jax.random.normal(jax.random.key(9), (2, last - first))
    return latents, jnp.array([500, 500]), conditions(params, latents, motion, sound)


@pytest.mark.slow
def test_own_features_give_the_same_prediction_and_others_do_not(networks, inputs):
    emo, params = networks
    run = jax.jit(emo.backbone_outputs, compiler_options=FAST)
    prediction, features = run(params, *inputs)
    again, _ = run(params, *inputs, features[DEEP])
    np.testing.assert_allclose(again, prediction, rtol=1e-4, atol=1e-5)
    other, _ = run(params, *inputs, features[DEEP] + 1)
    assert float(jnp.abs(other - prediction).max()) > 1e-2


@pytest.mark.slow
def test_first_level_alone_costs_less(networks, inputs):
    emo, params = networks
    deep = jax.eval_shape(emo.backbone_outputs, params, *inputs)[1][DEEP]
    complete, first_level = (
        count_flops(lambda *a: emo.backbone_outputs(*a)[0], params, *inputs, *more) for more in ((), (deep,))
    )
    assert first_level < 0.8 * complete


@pytest.mark.parametrize(("interval", "complete"), [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_features_come_from_the_last_complete_step(interval, complete):
    schedule = make_schedule(small_config().diffusion)
    ts, seen = timesteps(schedule, 5, "trailing"), []

    def denoise(x, t, features=None):
        jax.debug.callback(lambda t, f: seen.append((int(t), float(f))), t[0], -1.0 if features is None else features)
        value = t[0].astype(jnp.float32)
        return 0.1 * x if interval == 1 else (0.1 * x, value if features is None else features)

    x = jnp.ones((2, 3))
    sample(denoise, schedule, make_solver("ddim", schedule), x, ts, jax.random.key(0), deep_interval=interval)
    jax.effects_barrier()
    last = [ts[i - i % interval] for i in range(5)]
    assert seen == [(t, -1.0 if t == own else own) for t, own in zip(ts, last, strict=True)]
    assert [features for _, features in seen].count(-1.0) == complete


@pytest.mark.slow
def test_guided_denoiser_returns_the_features_of_its_passes(networks, inputs):
    (emo, params), mode = networks, "separate"
    latents, t, conditions = inputs

    @functools.partial(jax.jit, compiler_options=FAST)
    def twice(params, latents, t, conditions):
        guided = guided_denoiser(emo, params, conditions, mode, (2.0, 2.0), reuses_deep=True)
        prediction, deep = guided(latents, t)
        return prediction, guided(latents, t, deep)[0], deep

    prediction, again, deep = twice(params, latents, t, conditions)
    assert len(deep) == len(PASSES[mode]) * len(latents)
    np.testing.assert_allclose(again, prediction, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_video_changes_less_than_with_fewer_steps(networks):
    emo, params = networks

    def frames(deep_interval, steps=4):
        sampling = small_config("speed").sampling
        sampling.update(steps=steps, clips=1, reference_scale=2.0, audio_scale=3.0)
        sampling.deep_interval = deep_interval
        sampler = VideoSampler(emo, params, sampling)
        portraits, masks = np.full((1, 64, 64, 3), 90, np.uint8), np.ones((1, 64, 64, 1), np.uint8)
        audio = np.random.default_rng(0).normal(0, 0.1, (1, 4 * 640)).astype(np.float32)
        return np.concatenate(list(sampler.stream(portraits, masks, audio, key=jax.random.key(0))), axis=1).astype(int)

    exact, reused = frames(1), frames(2)
    assert 0 < np.abs(exact - reused).mean() < np.abs(exact - frames(1, steps=1)).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(deep_interval=0), "expected 1"),
        (dict(deep_interval=2, guidance_interval=(0.2, 0.8)), "guidance_interval"),
        (dict(deep_interval=2, strategy="windows"), "'windows'"),
    ],
)
def test_impossible_intervals_raise(options, message):
    sampling = small_config().sampling
    sampling.update(options)
    with pytest.raises(ValueError, match=message):
        check_sampling(sampling, 1000)

"""The VAE of flow: latents that say how the reference image moves, in all of training and sampling."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from emo_jax.data.motion_fields import optical_flow
from emo_jax.diffusion.schedule import make_schedule
from emo_jax.generation.drift import towards_portrait
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.window_sampler import make_sampler
from emo_jax.models.cosine import flow_basis, inverse_flow_basis, mouth_basis
from emo_jax.models.emo import EMO, build
from emo_jax.models.flow_vae import cut_windows, decode_field, encode_field
from emo_jax.models.frame_latents import decode_frames, encode_clips, encode_references
from emo_jax.preparation.encode_latents import make_layout
from emo_jax.training.losses import denoising_loss
from emo_jax.training.stages import get_stage
from emo_jax.training.vae_losses import draw_windows, flow_loss
from tests.small import as_flow, small_config
from tests.steps import FAST, fixed_batch, fresh_params


def config_of(stage="video"):
    return as_flow(small_config(stage))


def shifted(seed, pixels):
    """Returns a picture of smooth spots (64, 64, 3) uint8, and the same moved to the right."""
    noise = np.random.default_rng(seed).uniform(0, 255, (64, 96, 3))
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return picture[:, 16:80], picture[:, 16 - pixels : 80 - pixels]


@pytest.fixture(scope="module")
def still():
    """Returns networks, parameters, two references, their latents as references, and their latents as frames."""
    emo = build(config_of())
    params = fresh_params(emo)
    references = jnp.asarray(np.stack([shifted(seed, 0)[0] for seed in range(2)]))
    return emo, params, references, *fast(encode_references, emo)(params, references)


def fast(function, emo):
    return jax.jit(functools.partial(function, emo), compiler_options=FAST)


def test_a_new_decoder_shows_the_reference(still):
    emo, params, references, _, own = still
    assert own.shape == (2, 1, *emo.latent_shape) and emo.latent_shape == (4, 4, 8)
    frames = np.asarray(fast(decode_frames, emo)(params, own, references), np.float32)
    assert np.abs(frames[:, 0] - references).max() < 2


def test_latents_of_the_reference_are_those_of_a_frame_without_flow(still):
    emo, params, references, known, own = still
    inputs = params, references, references[:, None], jnp.zeros((2, 1, 32, 32, 3))
    known_too, latents = fast(encode_clips, emo)(*inputs)
    assert known.shape == (2, 1, 4, 4, 12)
    np.testing.assert_allclose(known, known_too, atol=1e-6)
    np.testing.assert_allclose(latents[:, 0], latents[:, 1], atol=1e-5)
    np.testing.assert_allclose(latents[:, :1], own, atol=1e-5)


def pairs_with_a_mouth(count, opens):
    """Returns a batch of stage vae: pictures that move by some pixels, with a dark spot that the references lack."""
    pairs = [shifted(seed, 2 * (seed % 3) - 2) for seed in range(count)]
    frames = np.stack([frame for _, frame in pairs])
    if opens:
        frames[:, 40:48, 24:40] = (90, 20, 20)
    field = np.zeros((count, 1, 32, 32, 3), np.float32)
    field[:, 0, ..., :2] = [optical_flow(frame, reference, 2) for reference, frame in pairs]
    field[:, 0, 20:24, 12:20, 2] = opens
    references, mask = np.stack([reference for reference, _ in pairs]), np.ones((count, 64, 64, 1), np.uint8)
    arrays = dict(reference=references, frames=frames[:, None], field=field, mask=mask)
    return {name: jnp.asarray(array) for name, array in arrays.items()}


@pytest.mark.slow
def test_the_loss_teaches_to_paint_what_flow_does_not_explain():
    config = config_of("vae")
    config.train.update(face_weight=1.0, mouth_weight=1.0, gradient_weight=0.0, kl_weight=0.0)
    emo = build(config)
    params, optimizer = {"vae": fresh_params(emo)["vae"]}, optax.adam(1e-2)
    state, batch = optimizer.init(params), pairs_with_a_mouth(8, opens=True)

    @functools.partial(jax.jit, compiler_options=FAST)
    def step(params, state, key):
        def loss(params):
            return flow_loss(emo, config.train, params, batch, key)

        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    _, _, first = step(params, state, jax.random.key(0))
    for number in range(60):
        params, state, last = step(params, state, jax.random.key(number))
    assert first["gain"] < 1 and last["gain"] > 5
    _, latents = fast(encode_clips, emo)(params, batch["reference"], batch["frames"], batch["field"])
    made = fast(decode_frames, emo)(params, latents, batch["reference"])[:, :, 42:46, 28:36].astype(np.float32)
    assert abs(made[:, 1, ..., 0].mean() - 90) < 25  # in the frames, not in the reference
    shut = batch["reference"][:, 42:46, 28:36, 0].astype(np.float32)
    assert np.abs(made[:, 0, ..., 0] - shut).mean() < np.abs(made[:, 1, ..., 0] - shut).mean()


def test_windows_lie_where_the_weight_is():
    weight = np.zeros((2, 1, 48, 40, 1))
    weight[0, 0, 24, 16], weight[1, 0, 0, 39] = 1, 1  # inside, and in a corner
    windows = draw_windows(jax.random.key(0), weight, 3)
    np.testing.assert_array_equal(windows, [[[15, 7]] * 3, [[0, 22]] * 3])
    share = draw_windows(jax.random.key(1), np.ones((1, 1, 48, 40, 1)), 400)[0]
    assert share.min(0).tolist() == [0, 0] and share.max(0).tolist() == [30, 22]
    np.testing.assert_allclose(share.mean(0), [15, 11], atol=1.6)


def test_a_window_is_painted_as_the_complete_frame_is(still):
    emo, params, references, *_ = still
    variables = {"params": jax.tree.map(lambda a: a + 0.05, params["vae"])}
    windows = jnp.array([[[0, 0]], [[14, 6]]])
    field = jnp.zeros((2, 1, 32, 32, 3)).at[:, :, 8:24, 4:28, 2].set(1)  # partly outside the windows
    latents = encode_field(emo.vae.config, field)
    paint = functools.partial(emo.vae.apply, variables, latents, references / 127.5 - 1, method="decode_flow")
    complete, parts = (jax.jit(paint, compiler_options=FAST)(windows=w) for w in (None, windows))
    inner = np.s_[:, :, 10:-10, 10:-10]  # beyond the reach of the window's border
    np.testing.assert_allclose(parts.frames[inner], cut_windows(complete.frames, windows, 2)[inner], atol=1e-4)
    assert np.abs(parts.frames - parts.warped).mean() > 0.01  # there is paint


def test_the_first_channels_of_the_latents_are_the_flow():
    """Moves complete pictures: the first two numbers of each latent then hold the displacement."""
    batch = pairs_with_a_mouth(3, opens=False)
    emo = build(config_of())
    _, latents = fast(encode_clips, emo)(fresh_params(emo), batch["reference"], batch["frames"], batch["field"])
    scale = 1.375 * flow_basis(8, 6)[:2, :2].sum(0) * 8**2
    moved = latents[:, 1, 1:3, 1:3, :2].mean((1, 2)) / scale
    np.testing.assert_allclose(moved, [[2, 0], [0, 0], [-2, 0]], atol=0.4)
    assert not latents[:, 0, ..., :6].any()  # the reference itself


def test_a_field_survives_its_latents():
    """Smooth flow, and a mouth across two latents: both are found again, without a seam between the latents."""
    config = build(config_of()).vae.config
    rows, columns = np.mgrid[:32, :32] / 32
    field = np.zeros((1, 1, 32, 32, 3), np.float32)
    field[..., :2] = np.stack([4 * np.sin(3 * columns), 5 * rows], -1)
    field[0, 0, 12:14, 4:28, 2] = 1
    config = dataclasses.replace(config, flow_channels=16, mouth_channels=12)
    found = np.asarray(decode_field(config, encode_field(config, field)))
    assert np.abs(found[..., :2] - field[..., :2]).max() < 0.5
    assert found[0, 0, 12:14, 6:26, 2].min() > 0.4 and np.abs(found[0, 0, 20:, :, 2]).max() < 0.15


def test_mouth_basis_is_orthonormal_and_prefers_vertical_detail():
    basis = mouth_basis(8, 12)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-6)
    waves = basis.reshape(8, 8, 12)
    assert np.ptp(waves[..., 1], axis=0).max() > 0.2 and np.ptp(waves[..., 1], axis=1).max() < 1e-6


def test_flow_basis_and_its_inverse():
    basis, inverse = flow_basis(4, 6), inverse_flow_basis(4, 6)
    np.testing.assert_allclose(inverse @ basis, np.eye(6), atol=1e-6)
    constant = np.tile([3.0, -2.0], 16)
    np.testing.assert_allclose(constant @ basis @ inverse, constant, rtol=1e-5)


@pytest.fixture(scope="module")
def video():
    config = config_of()
    config.sampling.update(solver="ddim", steps=1, clips=1, reference_scale=1.0, audio_scale=1.0)
    emo = build(config)
    return emo, fresh_params(emo), config


@pytest.mark.slow
def test_stage_video_trains_on_latents_of_flow(video):
    emo, params, config = video
    schedule, batch = make_schedule(config.diffusion), fixed_batch(config)
    inputs = emo, schedule, get_stage("video"), config.train

    def loss(params):
        return denoising_loss(*inputs, params, batch, jax.random.key(0))[0]

    gradients = jax.jit(jax.grad(loss), compiler_options=FAST)(params)
    for part in ("backbone", "reference_net", "audio_projector", "face_locator"):
        leaves = jax.tree.leaves(gradients[part])
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert sum(np.abs(leaf).sum() for leaf in leaves) > 0 or part == "audio_projector"  # behind zeros at first
    assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(gradients["vae"]))


@pytest.mark.slow
def test_a_video_moves_the_portrait_and_starts_at_it(video, monkeypatch):
    emo, params, config = video
    seen = []

    def denoise(self, params, x, t, conditions):
        seen.append(conditions.motion)
        return jnp.zeros_like(x)

    monkeypatch.setattr(EMO, "denoise", denoise)
    sampler = VideoSampler(emo, params, config.sampling)
    portrait = shifted(0, 0)[0][None]
    inputs = portrait, np.ones((1, 64, 64, 1), np.uint8), np.zeros((1, 2560), np.float32)
    frames = np.concatenate(list(sampler.stream(*inputs, key=jax.random.key(0))), axis=1)
    assert frames.shape == (1, 4, 64, 64, 3) and seen
    expected = decode_frames(emo, params, jnp.zeros((1, 4, *emo.latent_shape)), portrait)
    np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("change, word", [
    (lambda c: c.model.vae.update(flow_channels=5), "model.vae.flow_channels is 5"),
    (lambda c: c.clip.update(flow_cell=0), "clip.flow_cell is 0; expected 2"),
    (lambda c: c.model.vae.update(patch=32), "clip.flow_cell is 2; expected 4"),
    (lambda c: c.model.vae.update(shortcut=True), "model.vae.shortcut"),
])  # fmt: skip
def test_options_that_do_not_fit(change, word):
    config = config_of()
    change(config)
    with pytest.raises(ValueError, match=word):
        build(config)


@pytest.mark.parametrize("name", ["hold_colors", "reencode_motion"])
def test_sampling_options_that_do_not_fit(name):
    config = config_of()
    config.sampling[name] = True
    with pytest.raises(ValueError, match=name):
        VideoSampler(build(config), None, config.sampling)


def test_clips_return_to_the_portrait_smoothly():
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.normal(size=(2, 4, 3, 3, 8)) + 5, jnp.float32)
    moved = towards_portrait(latents, 0.4, 6)
    np.testing.assert_allclose(moved[..., 6:], latents[..., 6:])
    change, mean = np.asarray(latents - moved)[..., :6], np.asarray(latents)[..., :6].mean(1)
    np.testing.assert_allclose(change, np.array([0.1, 0.2, 0.3, 0.4])[:, None, None, None] * mean[:, None], rtol=1e-4)


@pytest.mark.slow
def test_the_sampler_returns_to_the_portrait(video, monkeypatch):
    emo, params, config = video
    monkeypatch.setattr(EMO, "denoise", lambda self, params, x, t, conditions: -jnp.ones_like(x))
    config = ConfigDict(config)
    config.sampling.portrait_return = 0.5
    portrait, mask = shifted(0, 0)[0][None], np.ones((1, 64, 64, 1), np.uint8)
    sampler = VideoSampler(emo, params, config.sampling)
    frames = np.concatenate(
        list(sampler.stream(portrait, mask, np.zeros((1, 2560), np.float32), key=jax.random.key(0))), axis=1
    )
    latents = towards_portrait(jnp.ones((1, 4, *emo.latent_shape)), 0.5, 6)
    expected = decode_frames(emo, params, latents, portrait)
    assert np.abs(frames.astype(int) - expected).max() <= 1
    config = small_config()
    config.sampling.portrait_return = 0.5
    with pytest.raises(ValueError, match="portrait_return"):
        VideoSampler(build(config), None, config.sampling)


def test_stored_latents_are_refused():
    with pytest.raises(ValueError, match="flow_channels"):
        make_layout(build(config_of()), windows=1)


def test_overlapping_windows_are_refused():
    config = config_of()
    config.sampling.strategy = "windows"
    config.clip.update(motion_frames=0, audio_window=0)
    with pytest.raises(ValueError, match="flow_channels"):
        make_sampler(build(config), None, config.sampling)


def test_weights_of_the_version_before_are_read():
    config = small_config()
    with config.unlocked():
        config.model.vae.linear_encoder = False
        config.model.vae.paint_channels = 0
        config.diffusion.residual_std = 0.0
    assert build(config).vae == build(small_config()).vae
    config.model.vae.linear_encoder = True
    with pytest.raises(ValueError, match="linear_encoder is True; expected False"):
        build(config)
    config.model.vae.update(linear_encoder=False, paint_channels=8)
    with pytest.raises(ValueError, match="paint_channels is 8; expected 0"):
        build(config)
    config.model.vae.paint_channels = 0
    config.diffusion.residual_std = 0.35
    with pytest.raises(ValueError, match="residual_std is 0.35; expected 0.0"):
        build(config)

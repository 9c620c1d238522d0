"""The VAE of flow: latents that say how the reference image moves, in all of training and sampling."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emo_jax.data.transforms import optical_flow
from emo_jax.diffusion.schedule import make_schedule
from emo_jax.generation.sampler import VideoSampler
from emo_jax.generation.window_sampler import make_sampler
from emo_jax.models.cosine import flow_basis, inverse_flow_basis
from emo_jax.models.emo import EMO, build
from emo_jax.models.frame_latents import decode_frames, encode_clips, encode_references
from emo_jax.preparation.encode_latents import make_layout
from emo_jax.training.losses import denoising_loss
from emo_jax.training.stages import get_stage
from emo_jax.training.vae_losses import flow_loss
from tests.small import as_flow, small_config
from tests.steps import FAST, fixed_batch, fresh_params


def config_of(stage="video"):
    return as_flow(small_config(stage))


def shifted(seed, pixels):
    """Returns a picture of smooth spots (64, 64, 3) uint8, and the same moved to the right."""
    noise = np.random.default_rng(seed).uniform(0, 255, (64, 96, 3))
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return picture[:, 16:80], picture[:, 16 - pixels : 80 - pixels]


def test_optical_flow_says_where_a_square_comes_from():
    reference, frame = shifted(0, 3)
    flow = optical_flow(np.stack([frame, reference]), reference, 2)
    assert flow.shape == (2, 32, 32, 2) and flow.dtype == np.float16
    np.testing.assert_allclose(np.median(flow[0], axis=(0, 1)), [-3, 0], atol=0.3)
    np.testing.assert_allclose(flow[1], 0, atol=0.05)


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
    weight = jax.nn.sigmoid(-2.0)  # of paint, which is grey at first
    assert np.abs(frames[:, 0] - (references * (1 - weight) + 127.5 * weight)).max() < 2


def test_latents_of_the_reference_are_those_of_a_frame_without_flow(still):
    emo, params, references, known, own = still
    inputs = params, references, references[:, None], jnp.zeros((2, 1, 32, 32, 2))
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
    flow = np.stack([optical_flow(frame[None], reference, 2) for reference, frame in pairs])
    references, mask = np.stack([reference for reference, _ in pairs]), np.ones((count, 64, 64, 1), np.uint8)
    arrays = dict(reference=references, frames=frames[:, None], flow=flow, mask=mask)
    return {name: jnp.asarray(array) for name, array in arrays.items()}


@pytest.mark.slow
def test_the_loss_teaches_to_paint_what_flow_does_not_explain():
    config = config_of("vae")
    config.train.update(face_weight=1.0, mouth_weight=1.0, gradient_weight=0.0, kl_weight=0.0)
    emo = build(config)
    params, optimizer = {"vae": fresh_params(emo)["vae"]}, optax.adam(3e-3)
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
    assert last["psnr"] > first["psnr"] + 3 and last["paint"] < 0.5 * first["paint"]
    _, latents = fast(encode_clips, emo)(params, batch["reference"], batch["frames"], batch["flow"])
    made = fast(decode_frames, emo)(params, latents, batch["reference"])[:, :, 42:46, 28:36].astype(np.float32)
    assert abs(made[:, 1, ..., 0].mean() - 90) < 25  # in the frames, not in the reference
    shut = batch["reference"][:, 42:46, 28:36, 0].astype(np.float32)
    assert np.abs(made[:, 0, ..., 0] - shut).mean() < np.abs(made[:, 1, ..., 0] - shut).mean()


def test_the_first_channels_of_the_latents_are_the_flow():
    """Moves complete pictures: the first two numbers of each latent then hold the displacement."""
    batch = pairs_with_a_mouth(3, opens=False)
    emo = build(config_of())
    _, latents = fast(encode_clips, emo)(fresh_params(emo), batch["reference"], batch["frames"], batch["flow"])
    moved = latents[:, 1, 1:3, 1:3, :2].mean((1, 2)) / flow_basis(8, 6)[:2, :2].sum(0) / 8**2
    np.testing.assert_allclose(moved, [[2, 0], [0, 0], [-2, 0]], atol=0.4)
    assert not latents[:, 0, ..., :6].any()  # the reference itself


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
    (lambda c: c.model.vae.update(patch=1), "model.vae.patch is 1"),
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
        config.diffusion.residual_std = 0.0
    assert build(config).vae == build(small_config()).vae
    config.model.vae.linear_encoder = True
    with pytest.raises(ValueError, match="linear_encoder is True; expected False"):
        build(config)
    config.model.vae.linear_encoder = False
    config.diffusion.residual_std = 0.35
    with pytest.raises(ValueError, match="residual_std is 0.35; expected 0.0"):
        build(config)

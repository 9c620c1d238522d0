"""The VAE: folding, shapes, initialisation and scale of the latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.models import emo as emo_lib
from emo_jax.models.cosine import cosine_basis
from emo_jax.models.emo import build
from emo_jax.models.layers import fold, unfold
from emo_jax.models.vae import to_float, to_uint8
from tests.small import small_config
from tests.steps import FAST, fresh_params


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unfold_inverts_fold(patch):
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 12, 3)).astype(np.float32)
    folded = fold(x, patch)
    assert folded.shape == (2, 3, 8 // patch, 12 // patch, 3 * patch**2)
    np.testing.assert_array_equal(unfold(folded, patch), x)


def test_fold_stacks_the_pixels_of_a_square():
    x = np.arange(4.0 * 6).reshape(4, 6, 1)
    np.testing.assert_array_equal(fold(x, 2)[1, 2], [16, 17, 22, 23])


def test_to_uint8_inverts_to_float():
    values = jnp.arange(256, dtype=jnp.uint8)
    floats = to_float(values)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), values)
    np.testing.assert_array_equal(to_uint8(jnp.array([-3.0, 3.0])), [0, 255])
    np.testing.assert_array_equal(to_float(floats), floats)


@pytest.mark.parametrize("factor, channels", [(16, 4), (8, 192), (4, 12)])
def test_cosine_basis_is_orthogonal(factor, channels):
    basis = cosine_basis(factor, channels)
    assert basis.shape == (3 * factor**2, channels)
    np.testing.assert_allclose(basis.T @ basis, np.eye(channels) / factor, atol=1e-6)


@pytest.mark.parametrize("size, patch, factor", [
    pytest.param((64, 128), 4, 16, marks=pytest.mark.slow),
    pytest.param((128, 64), 4, 16, marks=pytest.mark.slow),
    ((64, 32), 1, 4),
])  # fmt: skip
def test_shapes_of_latents_and_frames(size, patch, factor):
    config = small_config(face_locator=False)
    config.model.vae.patch = patch
    config.clip.image_size = size
    emo = build(config)
    params = emo.abstract_params()
    latents = jax.eval_shape(emo.encode, params, np.zeros((2, 3, *size, 3), np.uint8))
    assert latents.shape == (2, 3, size[0] // factor, size[1] // factor, 4)
    assert latents.shape[2:] == emo.latent_shape and latents.dtype == jnp.float32
    images = jax.eval_shape(emo.decode, params, latents)
    assert images.shape == (2, 3, *size, 3) and images.dtype == jnp.uint8


@pytest.fixture(scope="module")
def vae():
    """(emo, params, encode, decode) of a new small VAE for images of 64 x 128 pixels."""
    config = small_config()
    config.clip.image_size = (64, 128)
    emo = build(config)
    params = fresh_params(emo)
    images, latents = jnp.zeros((2, 64, 128, 3)), jnp.zeros((2, *emo.latent_shape))
    encode = jax.jit(emo.encode).lower(params, images).compile(compiler_options=FAST)
    decode = jax.jit(emo.decode).lower(params, latents).compile(compiler_options=FAST)
    return emo, params, encode, decode


def test_a_new_vae_reconstructs_the_brightness_of_uniform_images(vae):
    _, params, encode, decode = vae
    colours = np.array([[10, 120, 230], [255, 0, 90]], np.uint8)  # all four channels encode brightness
    images = np.broadcast_to(colours[:, None, None], (2, 64, 128, 3))
    decoded = decode(params, encode(params, to_float(jnp.asarray(images))))
    np.testing.assert_allclose(decoded, np.broadcast_to([[[[120]]], [[[115]]]], images.shape), atol=1)


def test_the_decoder_divides_by_the_scaling_factor(vae):
    _, params, encode, decode = vae
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 64, 128, 3)).astype(np.float32))
    flat = flatten_dict(params, sep="/")
    scaled = unflatten_dict({**flat, "vae/scaling_factor": 3 * flat["vae/scaling_factor"]}, sep="/")
    latents, larger = encode(params, images), encode(scaled, images)
    np.testing.assert_allclose(larger, 3 * latents, rtol=1e-4, atol=1e-6)
    assert np.abs(decode(params, latents).astype(int) - decode(scaled, larger).astype(int)).max() <= 1
    assert np.abs(decode(params, latents).astype(int) - decode(params, larger).astype(int)).max() > 1


def test_large_frames_are_encoded_one_at_a_time(vae, monkeypatch):
    emo, params, encode, _ = vae
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 128, 3)).astype(np.float32))
    expected = np.stack([encode(params, images[:, k]) for k in range(3)], axis=1)

    monkeypatch.setattr(emo_lib, "_LARGE", 64 * 128)
    compiled = jax.jit(emo.encode).lower(params, images).compile(compiler_options=FAST)
    assert "while(" in compiled.as_text()
    np.testing.assert_allclose(compiled(params, images), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(emo_lib, "_LARGE", 64 * 128 + 1)
    assert "while(" not in jax.jit(lambda *given: emo.encode(*given)).lower(params, images).as_text()

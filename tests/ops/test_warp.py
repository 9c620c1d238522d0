"""Warping by flow fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.ops.warp import warp


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 6, 8, 3)), jnp.float32)


def test_no_flow_changes_nothing(image):
    still = warp(image, jnp.zeros((2, 3, 6, 8, 2)))
    np.testing.assert_allclose(still, jnp.repeat(image[:, None], 3, axis=1), atol=1e-6)


def test_flow_says_where_a_pixel_comes_from_and_the_border_continues(image):
    flow = jnp.broadcast_to(jnp.array([2.0, -1.0]), (2, 1, 6, 8, 2))
    padded = np.pad(image, ((0, 0), (1, 0), (0, 2), (0, 0)), mode="edge")
    np.testing.assert_allclose(warp(image, flow)[:, 0], padded[:, :6, 2:], atol=1e-6)


def test_half_a_pixel_is_the_mean_of_two(image):
    flow = jnp.broadcast_to(jnp.array([0.5, 0.0]), (2, 1, 6, 8, 2))
    np.testing.assert_allclose(warp(image, flow)[:, 0, :, :-1], (image[:, :, :-1] + image[:, :, 1:]) / 2, atol=1e-6)


def test_gradients_say_which_way_to_move():
    """A ramp that rises to the right: a brighter target moves the source to the right."""
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None], (1, 6, 8, 1))
    gradient = jax.grad(lambda flow: warp(ramp, flow).sum())(jnp.full((1, 1, 6, 8, 2), 0.25))
    np.testing.assert_allclose(gradient[0, 0, :, :-1, 0], 1, atol=1e-6)
    np.testing.assert_allclose(gradient[..., 1], 0, atol=1e-6)

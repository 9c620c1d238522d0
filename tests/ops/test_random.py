"""Draws along one axis have the values of draws over several."""

import jax
import numpy as np
import pytest

from emo_jax.ops import random


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 2)])
def test_values_are_those_of_jax(shape):
    key = jax.random.key(3)
    np.testing.assert_array_equal(random.normal(key, shape), jax.random.normal(key, shape))
    np.testing.assert_array_equal(random.bernoulli(key, 0.3, shape), jax.random.bernoulli(key, 0.3, shape))
    assert random.normal(key, shape, np.float16).dtype == np.float16


def test_the_program_draws_along_one_axis():
    """XLA compiles threefry over several axes slowly on CPUs."""
    text = jax.jit(lambda key: random.normal(key, (4, 3, 8, 12, 1))).lower(jax.random.key(0)).as_text()
    assert "tensor<4x3x8x12x1xui32>" not in text and "tensor<1152xui32>" in text

"""Convolution: equal to XLA's on both paths, and which path a shape takes."""

import jax
import numpy as np
import pytest

from emo_jax.ops import conv

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
SHAPES = [((1, 4, 4, 512), True), ((1, 4, 4, 64), False), ((1, 32, 32, 512), False)]


@pytest.mark.parametrize("shape, is_matmul", SHAPES)
def test_small_wide_maps_take_a_matrix_product_equal_to_the_convolution(shape, is_matmul):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(3, 3, shape[-1], 8)).astype(np.float32)
    padding = [(1, 1), (1, 1)]

    def convolve(x, kernel):
        return conv.convolve(x, kernel, (1, 1), padding, dimension_numbers=DIMENSION_NUMBERS)

    assert ("dot_general" in str(jax.make_jaxpr(convolve)(x, kernel))) == is_matmul
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=DIMENSION_NUMBERS)
    np.testing.assert_allclose(jax.jit(convolve)(x, kernel), expected, rtol=1e-4, atol=1e-3)
    strided = conv.convolve(x, kernel, (2, 2), padding, dimension_numbers=DIMENSION_NUMBERS)
    np.testing.assert_allclose(strided, expected[:, ::2, ::2], rtol=1e-4, atol=1e-3)

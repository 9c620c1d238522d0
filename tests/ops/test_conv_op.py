import jax
import numpy as np
import pytest

from emo_jax.ops import conv

NUMBERS = ("NHWC", "HWIO", "NHWC")


SHAPES = [((1, 4, 4, 512), True), ((1, 4, 4, 64), False), ((1, 32, 32, 512), False)]


@pytest.mark.parametrize("shape, as_product", SHAPES)
def test_wide_maps_of_few_places_are_a_product_and_all_are_equal(shape, as_product):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(3, 3, shape[-1], 8)).astype(np.float32)
    padding = [(1, 1), (1, 1)]

    def ours(x, kernel):
        return conv.convolve(x, kernel, (1, 1), padding, dimension_numbers=NUMBERS)

    assert ("dot_general" in str(jax.make_jaxpr(ours)(x, kernel))) == as_product
    want = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NUMBERS)
    np.testing.assert_allclose(jax.jit(ours)(x, kernel), want, rtol=1e-4, atol=1e-3)
    halved = conv.convolve(x, kernel, (2, 2), padding, dimension_numbers=NUMBERS)
    np.testing.assert_allclose(halved, want[:, ::2, ::2], rtol=1e-4, atol=1e-3)

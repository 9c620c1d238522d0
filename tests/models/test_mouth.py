"""Tests that the edges of an opening mouth are found, and that its inside is drawn."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.models.mouth import draw_inside, find_opening, inside

ROWS, COLUMNS = np.mgrid[:64, :96]


def blurred(height, width=48, middle=(30, 45)):
    """Returns the true opening (64, 96) bool of a mouth, and its blurred share as latents keep it."""
    x = (COLUMNS - middle[1]) / (width / 2)
    true = (np.abs(x) < 1) & (np.abs(ROWS - middle[0]) < height / 2 * np.sqrt(np.clip(1 - x**2, 0, 1)))
    share = cv2.GaussianBlur(true.astype(np.float32), (0, 0), 4)
    return true, jnp.asarray(share[None, None, ..., None])


@pytest.mark.parametrize("height", [6, 12, 24])
def test_edges_are_found_in_blurred_shares(height):
    true, share = blurred(height)
    found = np.asarray(inside(find_opening(share, 4), share))[0, 0, ..., 0] > 0
    assert (found & true).sum() / (found | true).sum() > 0.75
    if height == 6:
        assert not (share > 0.5).any()  # a threshold finds nothing


def test_a_shut_mouth_has_no_inside():
    rng = np.random.default_rng(0)
    ripples = jnp.asarray(rng.uniform(-0.25, 0.25, (1, 1, 64, 96, 1)), jnp.float32)
    for share in (jnp.zeros((1, 1, 64, 96, 1)), ripples):
        assert (inside(find_opening(share, 4), share) < -1).all()


@pytest.mark.parametrize("face", [0.0, -0.6])
def test_teeth_are_below_the_upper_lip_and_brightness_is_that_of_the_lips(face):
    true, share = blurred(24)
    drawn = np.asarray(draw_inside(find_opening(share, 4), share, jnp.full((1, 1, 64, 96, 3), face)))[0, 0]
    top = int(np.flatnonzero(true[:, 45])[0])
    teeth, dark, tongue = (drawn[top + offset, 45] + 1 for offset in (2, 9, 21))
    assert teeth.min() > 2 * dark.max() and dark[0] > dark[1:].max()  # red
    assert dark[0] < tongue[0] < teeth[0]
    np.testing.assert_allclose(teeth[0] / (face + 1), 1.5, atol=0.25)


def test_narrow_openings_show_no_teeth():
    _, share = blurred(5)
    drawn = draw_inside(find_opening(share, 4), share, jnp.zeros((1, 1, 64, 96, 3)))
    assert drawn[0, 0, 30, 45].max() < 0

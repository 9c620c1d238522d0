"""Detail of the portrait that moves with generated frames of a lower resolution."""

import cv2
import numpy as np
from PIL import Image

from emo_jax.generation.detail import PortraitDetail

TIMES = 4
SIZE = 128


def textured(rng):
    """Returns a picture of coarse shapes, which the reduced square keeps, with fine grain, which it loses."""
    coarse = cv2.resize(rng.uniform(40, 215, (24, 24, 3)), (SIZE * TIMES,) * 2, interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(rng.normal(0, 25, coarse.shape), (0, 0), 0.8)
    return np.clip(coarse + grain, 0, 255).astype(np.uint8)


def enlarge(square):
    return np.asarray(Image.fromarray(square).resize((SIZE * TIMES,) * 2, Image.Resampling.BICUBIC))


def reduce(picture):
    return np.asarray(Image.fromarray(picture).resize((SIZE,) * 2, Image.Resampling.BOX))


def detail_of(picture):
    crop = reduce(picture)
    return PortraitDetail(crop, picture, enlarge(crop), (0.0, 0.0, SIZE, SIZE))


def inner_error(made, true, margin=64):
    return np.abs(made.astype(np.float32) - true)[margin:-margin, margin:-margin].mean()


def test_detail_follows_a_portrait_that_moves():
    picture = textured(np.random.default_rng(0))
    moved = np.roll(picture, (2 * TIMES, -3 * TIMES), axis=(0, 1))
    frame = reduce(moved)
    without = inner_error(enlarge(frame), moved)
    found = inner_error(enlarge(frame) + detail_of(picture).of(frame), moved)
    assert found < 0.5 * without


def test_a_frame_without_movement_becomes_the_portrait():
    picture = textured(np.random.default_rng(1))
    crop = reduce(picture)
    assert inner_error(enlarge(crop) + detail_of(picture).of(crop), picture) < 0.5


def test_what_is_new_in_a_frame_gets_no_detail():
    picture = textured(np.random.default_rng(2))
    frame = reduce(picture).copy()
    frame[48:80, 48:80] = (90, 10, 20)  # as the inside of a mouth
    added = np.abs(detail_of(picture).of(frame))
    new = np.s_[52 * TIMES : 76 * TIMES, 52 * TIMES : 76 * TIMES]
    assert added[new].mean() < 0.2 * added[:, : 40 * TIMES].mean()

"""Seams, rotation speed and place."""

import numpy as np
import pytest

from emo_jax.evaluation.motion import following_slope, mask_centres, measured_speed, seam_ratio
from emo_jax.faces.rotation import rotation_speed


def _video(jumps):
    levels = np.cumsum(jumps).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 4, 4, 3))


def test_seam_ratio_finds_jumps_at_clip_borders_only():
    smooth = np.full(24, 2)
    jumps = smooth.copy()
    jumps[[8, 16]] = 6
    assert seam_ratio(_video(smooth), 8) == pytest.approx(1)
    assert seam_ratio(_video(jumps), 8) == pytest.approx(3)
    assert seam_ratio(np.stack([_video(jumps), _video(smooth)]), 8) == pytest.approx(2)
    with pytest.raises(ValueError, match="more frames"):
        seam_ratio(_video(smooth), 24)


def _turning(rate, noise):
    rng = np.random.default_rng(0)
    yaw = 25 * np.sin(np.arange(200) * rate / 25)
    return np.stack([yaw, 0.3 * yaw, np.zeros(200)], 1)[None] + rng.normal(0, noise, (1, 200, 3))


def test_measured_speed_is_near_the_truth_for_readings_without_error():
    for rate in (0.3, 1.0, 2.0):
        truth = rotation_speed(_turning(rate, 0)[0]).mean()
        assert measured_speed(_turning(rate, 0)).mean() == pytest.approx(truth, rel=0.05)


def test_smoothing_removes_most_of_the_noise():
    raw = rotation_speed(_turning(0.1, 0.8)[0]).mean()
    assert measured_speed(_turning(0.1, 0.8)).mean() < 0.4 * raw
    assert measured_speed(_turning(0.1, 0.8)).shape == (1, 200)


def test_mask_centres():
    masks = np.zeros((2, 10, 20, 1), np.uint8)
    masks[0, 2:6, 4:8] = 1
    masks[1, :, :] = 1
    assert mask_centres(masks).tolist() == [[0.3, 0.4], [0.5, 0.5]]
    with pytest.raises(ValueError, match="mask"):
        mask_centres(np.zeros((1, 4, 4, 1), np.uint8))


def test_following_slope():
    moved = np.array([[-0.1, 0.4], [0.0, 0.5], [0.1, 0.6]])
    people = np.array([0.2, 0.7])  # a constant offset between face and mask does not matter
    assert following_slope(moved, 0.8 * moved + people) == pytest.approx(0.8)
    assert following_slope(moved, np.broadcast_to(people, (3, 2))) == pytest.approx(0)
    with pytest.raises(ValueError, match="not moved"):
        following_slope(np.ones((3, 2)), moved)

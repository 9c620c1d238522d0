"""Fields that say how frames follow from a reference image."""

import cv2
import numpy as np
import pytest

from emo_jax.data.motion_fields import NAMES, motion_field, named_points, open_mouth, optical_flow
from emo_jax.synthetic.people.geometry import POINT_NAMES

FACE = dict(
    upper_lip=(64, 84), lower_lip=(64, 84), upper_lip_edge=(64, 79), lower_lip_edge=(64, 90), left_corner=(76, 84),
    right_corner=(52, 84), nose_tip=(64, 68), under_nose=(64, 73), between_eyes=(64, 48), chin=(64, 104),
    left_eye_outer=(86, 50), left_eye_inner=(72, 50), right_eye_inner=(56, 50), right_eye_outer=(42, 50),
    left_lid_upper=(79, 46), left_lid_lower=(79, 53), right_lid_upper=(49, 46), right_lid_lower=(49, 53),
)  # fmt: skip


def points(**moved):
    """Returns landmarks of a face at rest in 128x128 pixels, some of which are moved by (x, y)."""
    return np.array([np.add(FACE[name], moved.get(name, (0, 0))) for name in NAMES], np.float64)


def spots(seed, pixels=(0, 0)):
    """Returns a picture of smooth spots (128, 128, 3), moved to the right and down."""
    noise = np.random.default_rng(seed).uniform(0, 255, (192, 192, 3))
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return picture[32 - pixels[1] : 160 - pixels[1], 32 - pixels[0] : 160 - pixels[0]]


def test_names_are_those_of_rendered_people():
    assert NAMES == POINT_NAMES


def test_named_points_of_a_mesh_and_of_nothing():
    mesh = np.random.default_rng(0).uniform(0, 99, (3, 478, 2))
    named = named_points(mesh)
    np.testing.assert_array_equal(named[:, NAMES.index("chin")], mesh[:, 152])
    np.testing.assert_array_equal(named[:, NAMES.index("upper_lip")], mesh[:, 13])
    assert named_points(np.zeros((0, 0, 2))) is None and named_points(np.zeros((3, 5, 2))) is None
    own = np.zeros((2, 18, 2))
    assert named_points(own) is own


def test_optical_flow_says_where_a_cell_comes_from():
    reference, frame = spots(0), spots(0, (3, -2))
    flow = optical_flow(frame, reference, 4)
    assert flow.shape == (32, 32, 2)
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), [-3, 2], atol=0.3)


def test_without_landmarks_a_field_is_optical_flow():
    reference, frame = spots(1), spots(1, (2, 0))
    for known in (None, points()):
        field = motion_field(frame, reference, 4, None, known)
        np.testing.assert_array_equal(field[..., :2], optical_flow(frame, reference, 4))
        assert not field[..., 2].any()


def test_an_opening_mouth_moves_the_lower_lip_and_shows_its_inside():
    picture, opened = spots(2), points(lower_lip=(0, 12), lower_lip_edge=(0, 12), chin=(0, 10))
    field = motion_field(picture, picture, 4, opened, points())
    at = {name: field[int(y) // 4, int(x) // 4] for name, (x, y) in zip(NAMES, opened, strict=True)}
    assert abs(at["upper_lip_edge"][1]) < 2 and abs(at["lower_lip_edge"][1] + 12) < 2.5
    middle = field[90 // 4, 64 // 4]
    assert middle[2] > 0.9 and -10 < middle[1] < -2
    assert np.abs(field[:8]).max() < 0.2  # the hair does not move
    assert 5 < field[..., 2].sum() < 16  # two thirds of 24 x 12 pixels


def test_a_mouth_that_the_reference_shows_is_not_new():
    picture, opened = spots(3), points(lower_lip=(0, 12), lower_lip_edge=(0, 12), chin=(0, 10))
    assert motion_field(picture, picture, 4, opened, opened)[..., 2].max() < 0.1
    assert motion_field(picture, picture, 4, points(), opened)[..., 2].max() < 0.1  # it closes


def test_lids_close():
    closed = points(left_lid_upper=(0, 6), right_lid_upper=(0, 6))
    field = motion_field(spots(4), spots(4), 4, closed, points())
    assert field[50 // 4, 79 // 4, 1] < -2 and field[50 // 4, 49 // 4, 1] < -2


@pytest.mark.parametrize("seed", range(4))
def test_lips_that_touch_where_the_reference_is_open_stay_smooth(seed):
    opened = points(lower_lip=(0, 14), lower_lip_edge=(0, 14), chin=(0, 11))
    jitter = np.random.default_rng(seed).normal(0, 0.3, (18, 2))
    field = motion_field(spots(5), spots(5), 4, points() + jitter, opened)
    assert np.abs(field[..., :2]).max() < 20
    assert np.abs(np.diff(field[..., 1], axis=0)).max() < 9


def test_open_mouth_is_an_area_between_two_curves():
    shape = open_mouth(points(lower_lip=(0, 12)), (32, 32), 4)
    area = 2 / 3 * 24 * 12 / 16  # of a parabola, in cells
    assert abs(shape.sum() - area) < 0.15 * area and shape.max() == 1
    assert not open_mouth(points(lower_lip=(0, -1)), (32, 32), 4).any()

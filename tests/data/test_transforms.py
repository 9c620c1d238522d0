"""Choices of start, reference and window; crops, masks, flips and colours of a clip."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax.data import transforms
from emo_jax.faces.rotation import rotation_speed


def test_mask_follows_the_crop_window():
    boxes = np.array([[20.0, 10, 30, 18], [24, 12, 36, 22]])
    mask = transforms.union_mask(boxes, (8, 16, 20, 40), (40, 80))  # a window of 20 x 40 doubled in size
    rows, columns = np.nonzero(mask[..., 0])
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (4, 28, 8, 40)
    assert not transforms.union_mask(boxes, (30, 40, 10, 10), (10, 10)).any()  # the face is outside the window
    assert not transforms.union_mask(boxes, (22, 36, 10, 10), (10, 10)).any()
    assert transforms.union_mask(boxes, (12, 22, 4, 4), (8, 8)).all()


def test_choose_start_draws_every_valid_start():
    rng = np.random.default_rng(0)
    starts = {transforms.choose_start(rng, 12, 4, 2) for _ in range(400)}
    assert starts == set(range(2, 9))
    assert {transforms.choose_start(rng, 12, 4, 0) for _ in range(400)} == set(range(9))
    with pytest.raises(ValueError, match="5 frames"):
        transforms.choose_start(rng, 5, 4, 2)


def test_choose_reference_keeps_the_gap_where_possible():
    rng = np.random.default_rng(0)

    def drawn(total, start, gap, motion_frames=0):
        return {transforms.choose_reference(rng, total, start, 4, gap, motion_frames) for _ in range(600)}

    assert drawn(20, 8, 3) == {0, 1, 2, 3, 4, 5} | {14, 15, 16, 17, 18, 19}
    assert drawn(12, 0, 3) == {6, 7, 8, 9, 10, 11}
    assert drawn(12, 8, 3) == {0, 1, 2, 3, 4, 5}
    assert drawn(8, 2, 9) == {0, 7}  # no frame is far enough: the gap is halved
    assert drawn(4, 0, 9) == {0, 1, 2, 3}  # the clip fills the record
    assert drawn(6, 1, 0) == {0, 5}  # without a gap, still not a frame of the clip
    assert [transforms.gap_frames(s, fps) for s, fps in ((1.0, 25), (0.2, 30), (0.5, 25))] == [25, 6, 13]


def test_reference_is_never_a_motion_frame():
    rng = np.random.default_rng(0)

    def drawn(total, start, gap):
        return {transforms.choose_reference(rng, total, start, 4, gap, motion_frames=3) for _ in range(600)}

    assert drawn(20, 8, 0) == {0, 1, 2, 3, 4} | {12, 13, 14, 15, 16, 17, 18, 19}
    assert drawn(12, 4, 9) == {0, 11}  # the gap is halved to 4
    assert drawn(9, 4, 3) == {0}
    assert drawn(7, 3, 3) == {3, 4, 5, 6}  # the clip and its motion frames fill the record


def test_references_in_records_of_two_seconds():
    """Draws as in configs/base.py: 12 frames, 4 motion frames, a gap of one second."""
    rng, near = np.random.default_rng(0), 0
    for _ in range(2000):
        start = transforms.choose_start(rng, 50, 12, 4)
        reference = transforms.choose_reference(rng, 50, start, 12, 25, 4)
        distance = max(start - reference, reference - (start + 11))
        assert distance > 4 or reference > start
        assert distance >= 12  # half a second
        near += distance < 25
    assert 0.2 < near / 2000 < 0.4  # such records are flagged as short


def test_choose_window_fills_its_range():
    rng = np.random.default_rng(0)
    windows = np.array([transforms.choose_window(rng, (100, 200), (50, 50), (0.5, 0.8)) for _ in range(500)])
    top, left, height, width = windows.T
    assert (height == width).all() and height.min() == 50 and height.max() == 80
    assert top.min() == 0 and (top + height).max() == 100 and left.min() < 3 and (left + width).max() > 197
    assert transforms.choose_window(rng, (160, 160), (128, 128), (0.8, 0.8))[2:] == (128, 128)


def face_in(window, box):
    """Returns height and centre (x, y) of a box as shares of a window's sides."""
    top, left, rows, columns = window
    x0, y0, x1, y1 = box
    return (y1 - y0) / rows, ((x0 + x1) / 2 - left) / columns, ((y0 + y1) / 2 - top) / rows


@pytest.mark.parametrize("box", [(100.0, 90.0, 160.0, 190.0), (60.0, 120.0, 110.0, 200.0)])
def test_face_windows_place_the_face_as_generation_does(box):
    rng, face = np.random.default_rng(0), (0.6, (0.5, 0.55))
    draw = (rng, (256, 300), (64, 64), (0.9, 1.0), box, face)
    windows = np.array([transforms.choose_face_window(*draw) for _ in range(300)])
    placed = np.array([face_in(window, box) for window in windows])
    np.testing.assert_allclose(placed.mean(0), (0.6, 0.5, 0.55), atol=0.01)
    assert (np.ptp(placed, axis=0) > 0.03).all() and (np.ptp(placed, axis=0) < 0.12).all()
    top, left, rows, columns = windows.T
    assert (rows == columns).all() and top.min() >= 0 and left.min() >= 0
    assert (top + rows).max() <= 256 and (left + columns).max() <= 300


def test_face_windows_of_a_face_that_is_too_large_or_at_the_border_stay_inside():
    rng, face = np.random.default_rng(0), (0.6, (0.5, 0.55))
    for box in [(20.0, 10.0, 230.0, 250.0), (0.0, 0.0, 60.0, 90.0), (250.0, 200.0, 300.0, 256.0)]:
        draw = (rng, (256, 300), (64, 64), (0.9, 1.0), box, face)
        for top, left, rows, columns in (transforms.choose_face_window(*draw) for _ in range(100)):
            assert top >= 0 and left >= 0 and top + rows <= 256 and left + columns <= 300


@pytest.mark.parametrize("face_crop", [False, True])
def test_middle_window_is_that_of_training(face_crop):
    box, clip = (90.0, 60.0, 190.0, 180.0), ConfigDict(dict(face=dict(height=0.6, centre=(0.5, 0.55))))
    data = ConfigDict(dict(face_crop=face_crop, crop_scale=(0.9, 0.9)))
    window = transforms.middle_window((256, 300), (64, 64), data, clip, box)
    if face_crop:
        np.testing.assert_allclose(face_in(window, box), (0.6, 0.5, 0.55), atol=0.01)
    else:
        assert window == transforms.center_window((256, 300), (64, 64), 0.9)


def test_crop_keeps_pixels_or_resizes():
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    np.testing.assert_array_equal(transforms.crop(frames, (3, 5, 8, 10), (8, 10)), frames[:, 3:11, 5:15])
    halves = np.zeros((1, 16, 16, 3), np.uint8)
    halves[:, :, 8:] = 200
    small = transforms.crop(halves, (0, 0, 16, 16), (4, 8))
    assert small.shape == (1, 4, 8, 3) and (small[:, :, :3] == 0).all() and (small[:, :, 5:] == 200).all()


def test_flip_mirrors_images_and_mask():
    rng = np.random.default_rng(0)
    sample = {n: rng.integers(0, 9, (2, 3, 4, 3)) for n in ("frames", "motion")} | {"speed": np.arange(4)}
    sample |= {"reference": rng.integers(0, 9, (3, 4, 3)), "mask": np.arange(12).reshape(3, 4, 1)}
    flipped = transforms.flip_horizontally(sample)
    for name in ("frames", "motion"):
        np.testing.assert_array_equal(flipped[name], sample[name][:, :, ::-1])
    for name in ("reference", "mask"):
        np.testing.assert_array_equal(flipped[name], sample[name][:, ::-1])
    np.testing.assert_array_equal(flipped["speed"], sample["speed"])


def test_flip_does_not_change_the_speed():
    angles = np.random.default_rng(0).normal(0, 9, (40, 3))  # a mirror changes the signs of yaw and roll
    np.testing.assert_allclose(rotation_speed(angles * (-1, 1, -1)), rotation_speed(angles), rtol=1e-5)


def test_color_change_is_the_same_in_all_images_of_a_sample():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (6, 4, 3)).astype(np.uint8)
    sample = {"frames": np.stack([picture, picture]), "reference": picture, "motion": picture[None], "mask": picture}
    for strength in (0.0, 0.3, 0.9):
        matrix, offset = transforms.choose_colors(rng, strength)
        changed = transforms.change_colors(sample | {"has_motion": np.asarray(True)}, matrix, offset)
        want = np.clip(np.rint(picture @ matrix.T + offset), 0, 255)
        assert (want == picture).all() == (strength == 0)
        for seen in (*changed["frames"], changed["reference"], *changed["motion"]):
            assert np.abs(seen - want).max() <= 1 and seen.dtype == np.uint8
        assert changed["mask"] is picture
    none = sample | {"has_motion": np.asarray(False), "motion": np.zeros((1, 6, 4, 3), np.uint8)}
    assert not transforms.change_colors(none, np.eye(3), np.full(3, 9.0))["motion"].any()
    grey = np.full((1, 3), 128)
    for seed in range(50):
        matrix, offset = transforms.choose_colors(np.random.default_rng(seed), 0.2)
        assert 0.8 * 128 - 1 < (grey @ matrix.T + offset).min() < 1.2 * 128 + 1
        assert np.ptp(grey @ matrix.T + offset) < 1e-9  # grey stays grey

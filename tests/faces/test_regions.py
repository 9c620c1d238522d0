"""Masks of the face, the lips and the pose: equal to hallo's where the reference arrays are present."""

import os
from pathlib import Path

import numpy as np
import pytest

from emo_jax.faces.regions import OUTER_LIPS, SILHOUETTE, Regions, draw_masks, regions_from_box, regions_from_landmarks

SHARED = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media")).parent
REFERENCE = SHARED / "reference" / "hallo_small_masks_audio.safetensors"
LEVELS = [(64, 64), (32, 32), (16, 16), (8, 8)]


def mesh(face=(40, 30, 140, 150), lips=(75, 115, 105, 128)):
    """Returns 478 points whose silhouette and lips have these extents."""
    points = np.tile(np.array([[90.0, 90.0]]), (478, 1))
    for indices, (x0, y0, x1, y1) in ((SILHOUETTE, face), (OUTER_LIPS, lips)):
        turns = np.linspace(0, 2 * np.pi, len(indices), endpoint=False)
        around = np.column_stack([np.sin(turns), -np.cos(turns)])
        points[list(indices)] = (x0 + x1) / 2, (y0 + y1) / 2
        points[list(indices)] += around / np.abs(around).max(0) * ((x1 - x0) / 2, (y1 - y0) / 2)
    return points


def test_masks_are_those_of_hallo():
    if not REFERENCE.exists():
        pytest.skip("no reference arrays")
    from safetensors.numpy import load_file

    truth = load_file(REFERENCE)
    height, width = truth["mask.png.face_mask"].shape
    regions = regions_from_landmarks(truth["mask.landmarks"], height, width)
    np.testing.assert_array_equal(regions.face, truth["mask.png.face_mask"])
    np.testing.assert_array_equal(regions.lips, truth["mask.png.lip_mask"])
    np.testing.assert_array_equal(regions.face_region((512, 512)), truth["mask.region512"])
    masks = regions.masks(LEVELS)
    for branch, name in {"pose": "full", "face": "face", "lip": "lip"}.items():
        for level, mask in enumerate(masks[branch]):
            np.testing.assert_array_equal(mask.reshape(1, -1), truth[f"mask.{name}.{level}"])


def test_rectangles_grow_around_the_landmarks_and_stay_in_the_portrait():
    regions = regions_from_landmarks(mesh(), 200, 180)
    rows, columns = np.nonzero(regions.face)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (30, 150, 18, 162)
    rows, columns = np.nonzero(regions.lips)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (60, 120, 108, 134)
    outside = regions_from_landmarks(mesh(face=(-20, -20, 100, 100)), 200, 180)
    assert outside.face[0, 0] == 255 and outside.face.shape == (200, 180)


def test_masks_cover_what_they_are_named_after():
    masks = regions_from_landmarks(mesh(), 200, 180).masks([(200, 180), (25, 45)])
    assert [mask.shape for mask in masks["pose"]] == [(200, 180), (25, 45)]
    pose, face, lip = (masks[name][0] for name in ("pose", "face", "lip"))
    assert lip[121, 90] > 0.95 and face[121, 90] < 0.05 and pose[121, 90] < 0.1
    assert face[70, 90] > 0.85 > 0.2 > lip[70, 90]
    assert pose[195, 5] > 0.9 and face[195, 5] < 0.1


def test_box_alone_gives_nearly_the_masks_of_a_frontal_face():
    from_box = regions_from_box((40, 30, 140, 150), 200, 180)
    np.testing.assert_array_equal(from_box.face, regions_from_landmarks(mesh(), 200, 180).face)
    rows, columns = np.nonzero(from_box.lips)
    assert 108 < rows.mean() < 134 and abs(columns.mean() - 90) < 3


def test_invalid_landmarks_and_boxes_raise():
    with pytest.raises(ValueError, match="landmarks"):
        regions_from_landmarks(np.zeros((68, 2)), 100, 100)
    with pytest.raises(ValueError, match="outside the image"):
        regions_from_box((0, 0, 200, 50), 100, 100)


def test_empty_region_gives_empty_masks():
    """A box at the very edge can leave no pixel; its masks must not be noise that was stretched."""
    empty = np.zeros((50, 50), np.uint8)
    masks = Regions(empty, empty).masks([(8, 8)])
    assert masks["pose"][0].min() == 1 and masks["face"][0].max() == masks["lip"][0].max() == 0


def test_drawn_masks_colour_lips_face_and_pose():
    drawn = draw_masks(np.zeros((200, 180, 3), np.uint8), regions_from_landmarks(mesh(), 200, 180))
    assert drawn[121, 90].argmax() == 0 and drawn[70, 90].argmax() == 1 and drawn[195, 5].argmax() == 2

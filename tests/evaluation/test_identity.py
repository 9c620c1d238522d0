"""Discriminants, retrieval of people, colour distance and drift."""

import cv2
import numpy as np
import pytest

from emo_jax.evaluation.identity import (
    FEATURES,
    colour_distance,
    discriminants,
    distances,
    drift,
    nearest,
    retrieval,
    thumbnail,
)


def _people(rng, views=40):
    """20 people whose first attribute is measured exactly and the second with a large error."""
    true = rng.random((20, 1, 2))
    return true, true + rng.normal(0, 1, (20, views, 2)) * [0.02, 2.0]


def test_discriminants_ignore_what_varies_within_a_person():
    true, views = _people(np.random.default_rng(0))
    matrix = discriminants(views, 1, shrink=0)
    assert retrieval(views, true[:, 0]) < 0.2
    assert retrieval(views @ matrix, true[:, 0] @ matrix) > 0.6


def test_views_of_a_person_have_unit_variance():
    _, views = _people(np.random.default_rng(1), 400)
    found = views @ discriminants(views, 2, shrink=0)
    assert (found - found.mean(1, keepdims=True)).std((0, 1))[0] == pytest.approx(1, abs=0.1)


def test_discriminants_need_two_views_and_enough_people():
    for shape in ((4, 1, 3), (4, 5, 3)):
        with pytest.raises(ValueError, match="views"):
            discriminants(np.zeros(shape), 4)


def test_a_thumbnail_shows_the_face_upright_wherever_it_is():
    gradient = np.zeros((200, 200, 3), np.uint8)
    gradient[..., 0] = np.linspace(0, 250, 200)[:, None]  # dark above, bright below, in the head's frame
    seen = []
    for roll, x, y in ((0, 64, 64), (15, 70, 60), (-15, 55, 66)):
        turn = cv2.getRotationMatrix2D((100, 100), -roll, 1)
        turn[:, 2] += np.array([x, y]) + 0.5 - 100
        frame = cv2.warpAffine(gradient, turn, (128, 128))
        seen.append(thumbnail(frame, np.array([x + 0.5, y + 0.5]) / 128, np.array([0.4, 0.5]), roll))
    assert seen[0].shape == (FEATURES,) and np.ptp(seen[0][::3]) > 0.2
    assert np.abs(seen[1] - seen[0]).max() < 0.02 and np.abs(seen[2] - seen[0]).max() < 0.02


def test_retrieval_counts_frames_nearest_to_their_own_person():
    references = np.eye(4)
    found = np.stack([np.stack([references[0], references[0]]), np.stack([references[3], references[1]])])
    assert nearest(found, references).tolist() == [[0, 0], [3, 1]]
    assert retrieval(found, references) == 0.75
    assert distances(found, references)[0, 0].tolist() == pytest.approx([0, 2**0.5, 2**0.5, 2**0.5])


def test_colour_distance_measures_tint_and_ignores_motion():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    frames = np.stack([np.roll(reference, 3, 1), reference + np.uint8([30, 0, 0])])
    assert colour_distance(frames, reference) == pytest.approx([0, 10])


def test_drift_compares_both_ends():
    distance = np.concatenate([np.full(10, 2.0), np.full(30, 9.0), np.full(10, 3.0)])[None]
    assert drift(distance, 10) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="50"):
        drift(distance, 26)

"""Who is nearest to whom, and drift."""

import numpy as np
import pytest

from emo_jax.metrics.identity import colour_distance, distances, drift, nearest, retrieval, whitening


def _people(rng, views=40):
    """20 people whose first attribute is told exactly and the second read with a large error."""
    true = rng.random((20, 1, 2)) * [1, 1]
    return true, true + rng.normal(0, 1, (20, views, 2)) * [0.004, 2.0]


def test_whitening_makes_badly_measured_attributes_count_little():
    true, views = _people(np.random.default_rng(0))
    matrix = whitening(views, shrink=0)
    plain = retrieval(views, true[:, 0])
    assert plain < 0.2 and retrieval(views @ matrix, true[:, 0] @ matrix) > 0.6


def test_errors_have_unit_variance_after_whitening():
    _, views = _people(np.random.default_rng(1), 400)
    white = views @ whitening(views, shrink=0)
    assert (white - white.mean(1, keepdims=True)).std((0, 1))[1] == pytest.approx(1, abs=0.05)


def test_whitening_needs_two_views():
    with pytest.raises(ValueError, match="two views"):
        whitening(np.zeros((4, 1, 3)))


def test_retrieval_counts_frames_that_find_their_own():
    references = np.eye(4)
    found = np.stack([np.stack([references[0], references[0]]), np.stack([references[3], references[1]])])
    assert nearest(found, references).tolist() == [[0, 0], [3, 1]]
    assert retrieval(found, references) == 0.75
    assert distances(found, references)[0, 0].tolist() == pytest.approx([0, 2**0.5, 2**0.5, 2**0.5])


def test_colour_distance_sees_a_tint_and_not_a_move():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    frames = np.stack([np.roll(reference, 3, 1), reference + np.uint8([30, 0, 0])])
    assert colour_distance(frames, reference) == pytest.approx([0, 10])


def test_drift_compares_the_ends():
    distance = np.concatenate([np.full(10, 2.0), np.full(30, 9.0), np.full(10, 3.0)])[None]
    assert drift(distance, 10) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="make the video longer"):
        drift(distance, 26)

"""Correlation of lips and voice, and closed mouths in silence."""

import numpy as np
import pytest

from emo_jax.evaluation.sync import lip_correlation, silence_ratio, silent_frames


def test_correlation_ignores_scale_and_offset_and_detects_a_shift():
    truth = np.abs(np.sin(np.arange(100) / 5.0))[None]
    assert lip_correlation(0.3 * truth + 0.2, truth) == pytest.approx(1)
    assert lip_correlation(-truth, truth) == pytest.approx(-1)
    assert abs(lip_correlation(np.roll(truth, 4, 1), truth)[0]) < 0.5


def test_a_mouth_that_never_moves_has_no_correlation():
    assert lip_correlation(np.full((2, 50), 0.4), np.random.default_rng(0).random((2, 50))).tolist() == [0, 0]


def test_correlation_is_taken_per_person():
    truth = np.random.default_rng(0).random((2, 60))
    r = lip_correlation(np.stack([truth[0], truth[0]]), truth)
    assert r[0] == pytest.approx(1) and abs(r[1]) < 0.4


def test_correlation_of_unequal_lengths_raises():
    with pytest.raises(ValueError, match=r"\(5,\) and \(6,\)"):
        lip_correlation(np.zeros(5), np.zeros(6))


def test_silent_stretches_have_a_minimum_length_and_exclude_their_edges():
    truth = np.full(30, 0.5)
    truth[3:6] = 0  # too short
    truth[10:20] = 0
    assert np.flatnonzero(silent_frames(truth)).tolist() == list(range(11, 19))


def test_silence_ratio_distinguishes_a_closed_mouth_from_an_open_one():
    truth = np.concatenate([np.zeros(20), np.full(20, 0.6)])
    assert silence_ratio(truth + 0.03, truth) == pytest.approx(0.03 / 0.63)
    assert silence_ratio(np.full(40, 0.5), truth) == pytest.approx(1)
    assert silence_ratio(np.where(truth > 0, 0.6, -0.2), truth) == 0
    assert np.isnan(silence_ratio(truth[20:], truth[20:]))

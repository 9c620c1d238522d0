"""Conversions between frames, samples and seconds."""

from fractions import Fraction

import numpy as np
import pytest

from emo_jax.media.timing import cut, exact_fps, frame_count, require_frames, window_bounds


def test_frame_count_is_exact():
    assert frame_count(640, 25) == 1 and frame_count(641, 25) == 2
    assert frame_count(16000 * 3600 * 100, 25.0) == 25 * 3600 * 100
    assert frame_count(16016 * 10, Fraction(30000, 1001)) == 300
    assert frame_count(16016 * 10, 30000 / 1001) == 300
    assert frame_count(16016 * 10 + 1, 30000 / 1001) == 301


def test_exact_fps():
    assert exact_fps(np.float32(29.97)) == Fraction(2997, 100)
    assert exact_fps(np.int64(25)) == 25
    for bad in (0, -1, float("nan"), "25", None):
        with pytest.raises(ValueError, match="fps"):
            exact_fps(bad)


def test_window_bounds():
    assert window_bounds(0, 8, 25) == (-256, 8 * 640 + 512)
    assert window_bounds(-2, 12, 25.0) == (-1280 - 256, 12 * 640 + 512)
    assert window_bounds(3, 2, 30) == (1600 - 256, 1067 + 512)


def test_cut_pads_with_zeros():
    audio = np.arange(1, 6, dtype=np.int16)
    np.testing.assert_array_equal(cut(audio, -2, 4), [0, 0, 1, 2])
    np.testing.assert_array_equal(cut(audio, 3, 4), [4, 5, 0, 0])
    assert cut(audio, 1, 2).dtype == np.int16
    assert not cut(audio, 50, 3).any() and not cut(audio, -9, 3).any()


def test_require_frames_rejects_audio_shorter_than_a_frame():
    assert require_frames(np.zeros(640, np.float32), 25) == 1
    with pytest.raises(ValueError, match=r"voice.wav .*39\.9 ms.*40\.0 ms"):
        require_frames(np.zeros(639, np.float32), 25, "voice.wav")

"""Windows of a denoising step: which frames they have."""

import numpy as np
import pytest

from emo_jax.diffusion.windows import windows


def test_windows_overlap_move_and_close_to_a_ring():
    found = windows(30, 12, 3)
    assert found[:, 0].tolist() == [0, 9, 18, 27]
    assert found[0].tolist() == list(range(12))
    assert found[-1].tolist() == [27, 28, 29, *range(9)]
    np.testing.assert_array_equal(windows(30, 12, 3, 4), (found + 4) % 30)
    assert windows(12, 12, 3).tolist() == [list(range(12))]
    assert windows(12, 12, 3, 2).tolist() == [[*range(2, 12), 0, 1]]


@pytest.mark.parametrize("frames", [12, 13, 21, 22, 100])
@pytest.mark.parametrize("offset", [0, 2, 58])
def test_every_frame_has_a_window_and_none_has_it_twice(frames, offset):
    found = windows(frames, 12, 3, offset)
    assert set(found.ravel().tolist()) == set(range(frames))
    assert all(len(set(window)) == 12 for window in found.tolist())


@pytest.mark.parametrize("arguments", [(11, 12, 3), (30, 12, 12), (30, 12, -1)])
def test_windows_that_do_not_fit_raise(arguments):
    with pytest.raises(ValueError, match="overlap"):
        windows(*arguments)

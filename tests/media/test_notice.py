"""Notices that are drawn into frames."""

import numpy as np
import pytest

from emo_jax.media.notice import Notice


@pytest.mark.parametrize(("size", "text"), [((64, 64), "AI"), ((480, 270), "AI-generated"), ((200, 300), "сделано ИИ")])
def test_notice_is_drawn_into_one_corner_of_every_frame(size, text):
    frames = np.full((3, *size, 3), 100, np.uint8)
    drawn = Notice(text, size).draw(frames)
    changed = (drawn != frames).any(-1)
    assert (changed == changed[0]).all() and (frames == 100).all()
    rows, columns = np.nonzero(changed[0])
    assert rows.min() > size[0] / 2 and columns.min() == 0 and rows.max() == size[0] - 1
    field = drawn[0, rows.min() :, : columns.max() + 1]
    assert field.min() < 60 and field.max() > 230  # dark field, bright letters


@pytest.mark.parametrize(("text", "word"), [("  ", "empty"), ("x" * 200, "shorten"), ("\U000f1234", "font")])
def test_notices_that_cannot_be_drawn_are_refused(text, word):
    with pytest.raises(ValueError, match=word):
        Notice(text, (64, 64))

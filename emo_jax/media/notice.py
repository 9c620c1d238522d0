"""Draws a notice, such as "AI-generated", into the frames of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_HEIGHT = 1 / 24
"""Height of the letters as a share of the shorter side of the frames."""
_MIN_HEIGHT = 8
_OPACITY = 0.55
"""Opacity of the dark field behind the letters."""


class Notice:
    """A line of text in the lower left corner of frames, on a dark field.

    Args:
        text: the line.
        size: (height, width) of the frames in pixels.

    Raises:
        ValueError: if the text is empty, longer than the frames are wide, or has letters that no font here has.
    """

    def __init__(self, text: str, size: tuple[int, int]):
        text = " ".join(text.split())
        if not text:
            raise ValueError("the label is empty; give a text such as 'AI-generated'")
        height, width = size
        letters = max(_MIN_HEIGHT, round(min(size) * _HEIGHT))
        font = ImageFont.truetype(str(_find_font(text)), letters)
        margin = max(2, letters // 3)
        left, top, right, bottom = (round(value) for value in font.getbbox(text))
        field = (right - left + 2 * margin, bottom - top + 2 * margin)
        if field[0] > width or field[1] > height:
            raise ValueError(f"the label {text!r} needs {field[0]} pixels, the frames have {width}; shorten it")
        picture = Image.new("L", field)
        ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=255, font=font)
        self._letters = np.asarray(picture, np.float32)[..., None] / 255
        self._place = np.s_[height - field[1] :, : field[0]]

    def draw(self, frames: np.ndarray) -> np.ndarray:
        """Returns a copy of frames, uint8 RGB (N, height, width, 3), with the notice."""
        frames = frames.copy()
        under = frames[:, *self._place].astype(np.float32) * (1 - _OPACITY)
        frames[:, *self._place] = np.round(under + (255 - under) * self._letters).astype(np.uint8)
        return frames


def _find_font(text: str) -> Path:
    """Returns a font file with all letters of a text: DejaVu Sans, which matplotlib ships, or one of the system."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    needed = {ord(letter) for letter in text if not letter.isspace()}
    for path in [font_manager.findfont("DejaVu Sans"), *sorted(font_manager.findSystemFonts())]:
        try:
            if needed <= set(FT2Font(path).get_charmap()):
                return Path(path)
        except (OSError, RuntimeError):  # a damaged font
            continue
    raise ValueError(
        f"no font on this machine has all letters of the label {text!r}; install one, for Chinese fonts-noto-cjk, or "
        "use Latin letters"
    )

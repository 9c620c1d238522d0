"""The side-by-side picture of an evaluation: reference, rendered truth and generated frames."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from emo_jax.evaluation.heldout import People, rendered

CAPTION = 16
"""Height of a caption in pixels."""


def side_by_side(people: People, frames: np.ndarray, fps: float, shown: int = 4, moments: int = 7) -> np.ndarray:
    """Returns a picture uint8 (h, w, 3) with reference, rendered frames and generated frames of several people.

    Args:
        people: the people of the evaluation.
        frames: generated videos, uint8 (P, N, H, W, 3).
        fps: frames per second.
        shown: number of people.
        moments: number of frames of each, at the widest and narrowest mouth openings of equal parts of the video.
    """
    rows = []
    for person in range(min(shown, len(frames))):
        at = _moments(people.openings[person], moments)
        truth = rendered(people, person, at, fps)
        blank = np.full_like(people.references[person], 255)
        if truth is not None:
            first = _captioned(people.references[person], "reference")
            line = [_captioned(f, f"rendered {t / fps:.2f} s") for f, t in zip(truth, at, strict=True)]
            rows.append(np.concatenate([first, *line], 1))
        first = _captioned(people.references[person], "reference") if truth is None else _captioned(blank, "")
        line = [_captioned(frames[person, t], f"generated {t / fps:.2f} s") for t in at]
        rows.append(np.concatenate([first, *line], 1))
    return np.concatenate(rows)


def save_picture(path, image: np.ndarray) -> None:
    """Writes an image uint8 (h, w, 3) as PNG."""
    Image.fromarray(image).save(path)


def _moments(opening: np.ndarray, count: int) -> list[int]:
    """Returns one frame index per equal part: where the mouth is widest open and most closed, in turn."""
    parts = np.array_split(np.arange(len(opening)), min(count, len(opening)))
    return [int(p[opening[p].argmax() if i % 2 == 0 else opening[p].argmin()]) for i, p in enumerate(parts)]


def _captioned(image: np.ndarray, text: str) -> np.ndarray:
    strip = np.full((CAPTION, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (3, CAPTION - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])

"""Detects frontal faces with OpenCV's Haar cascades."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from emo_jax.faces.boxes import Box, check_image

if TYPE_CHECKING:
    import cv2

DETECTION_SIDE = 640
"""Longer side, in pixels, of the copy in which faces are detected."""
MIN_FACE = 1 / 16
"""Smallest face, as a share of the shorter side; a smaller one is not the subject of a portrait."""
CASCADES = {"haarcascade_frontalface_alt2.xml": 6, "haarcascade_frontalface_default.xml": 16}
"""Cascades in the order they are tried, with the number of overlapping hits that make a face.

All faces in 19 portraits and video frames reach these numbers. In the same pictures with the face painted over, and in
30 pictures of noise, there was one false detection (an apron).
"""
HAAR_TO_FACE = (0.07, 0.12, 0.93, 1.06)
"""Face box in units of a cascade's square, which cuts off the chin and is wider than the face."""
_DETECTION_LOCK = threading.Lock()


def find_face(image: np.ndarray) -> Box | None:
    """Detects the largest frontal face; see `find_faces`.

    Args:
      image: uint8 RGB (height, width, 3).

    Returns:
      The face box, or None if no face was detected (`boxes.default_box` is a substitute).
    """
    faces = find_faces(image)
    return faces[0] if faces else None


def find_faces(image: np.ndarray) -> list[Box]:
    """Detects all frontal faces in a copy of at most DETECTION_SIDE pixels. Needs OpenCV 4.

    Args:
      image: uint8 RGB (height, width, 3).

    Returns:
      The face boxes in pixels of `image`, the largest first.

    Raises:
      ValueError: if `image` is not uint8 RGB, or OpenCV 4 is not installed.
    """
    height, width = check_image(image)
    shrink = max(1.0, max(height, width) / DETECTION_SIDE)
    grey = Image.fromarray(image).convert("L")
    grey = grey.resize((max(1, round(width / shrink)), max(1, round(height / shrink))), Image.Resampling.BOX)
    min_side = max(20, round(min(grey.size) * MIN_FACE))
    for name, min_neighbours in CASCADES.items():
        squares = _detect_squares(name, min_neighbours, np.asarray(grey), min_side)
        if squares:
            return [_face_box(square, shrink, grey.size, (width, height)) for square in squares]
    return []


def _face_box(square: tuple[int, int, int], shrink: float, small: tuple[int, int], size: tuple[int, int]) -> Box:
    """Converts a cascade's square (x, y, side) in the copy of (width, height) `small` to a box in the image."""
    width, height = size
    x, y, side = square[0] * width / small[0], square[1] * height / small[1], square[2] * shrink
    left, top, right, bottom = HAAR_TO_FACE
    return (
        max(0.0, x + left * side),
        max(0.0, y + top * side),
        min(float(width), x + right * side),
        min(float(height), y + bottom * side),
    )


@functools.cache
def _load_cascade(name: str) -> cv2.CascadeClassifier:
    try:
        import cv2

        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + name)  # pyright: ignore[reportAttributeAccessIssue]
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "face detection needs OpenCV 4 (pip install 'opencv-python-headless<5'); or give the face box"
        ) from error
    return cascade


def _detect_squares(name: str, min_neighbours: int, grey: np.ndarray, min_side: int) -> list[tuple[int, int, int]]:
    """Returns (x, y, side) of the detections at least `min_side` pixels wide, the widest first."""
    cascade = _load_cascade(name)
    import cv2

    if min(grey.shape) < min_side:
        return []
    with _DETECTION_LOCK:  # a classifier keeps state while it runs
        squares = cascade.detectMultiScale(cv2.equalizeHist(grey), 1.08, min_neighbours, minSize=(min_side, min_side))
    return [(int(x), int(y), int(side)) for x, y, side, _ in sorted(squares, key=lambda square: -square[2])]

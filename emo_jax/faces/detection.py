"""Where the face is: detection, boxes given by hand, and the crop of a portrait around its face.

A face box is a plain tuple (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, from the brows or forehead to the chin and
about as wide as the face.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
from PIL import Image

from emo_jax.faces.boxes import Box, _check_image

DETECTION_SIDE = 640  # pixels of the longer side at which faces are looked for
MIN_FACE = 1 / 16  # of the shorter side: what is smaller is not the subject of a portrait
CASCADES = {"haarcascade_frontalface_alt2.xml": 6, "haarcascade_frontalface_default.xml": 16}
"""Cascades in the order they are tried, and how many overlapping hits make a face. In 19 portraits and video frames
every face had as many; in those with the face painted over and in 30 pictures of noise only one apron had."""
HAAR_TO_FACE = (0.07, 0.12, 0.93, 1.06)
"""Face box in units of the square of OpenCV's frontal cascades, which cuts the chin and is wider than the face."""
_DETECTING = threading.Lock()


def find_face(image: np.ndarray) -> Box | None:
    """Box of the largest frontal face in uint8 RGB (height, width, 3), or None; use `default_box` then.

    OpenCV's Haar cascades (alt2, then default) on a copy of at most DETECTION_SIDE pixels. Needs opencv < 5.
    """
    found = find_faces(image)
    return found[0] if found else None


def find_faces(image: np.ndarray) -> list[Box]:
    """Boxes of all frontal faces in uint8 RGB (height, width, 3), the largest first; as `find_face` looks for them."""
    height, width = _check_image(image)
    shrink = max(1.0, max(height, width) / DETECTION_SIDE)
    grey = Image.fromarray(image).convert("L")
    grey = grey.resize((max(1, round(width / shrink)), max(1, round(height / shrink))), Image.Resampling.BOX)
    least = max(20, round(min(grey.size) * MIN_FACE))
    for name, hits in CASCADES.items():
        squares = _detections(name, hits, np.asarray(grey), least)
        if squares:
            return [_face_in(square, shrink, grey.size, (width, height)) for square in squares]
    return []


def _face_in(square: tuple[int, int, int], shrink: float, small: tuple[int, int], size: tuple[int, int]) -> Box:
    """The face box that belongs to a cascade's square in a picture of `small` pixels, in one of `size` pixels."""
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
def _cascade(name: str):
    try:
        import cv2

        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "face detection needs OpenCV 4 (pip install 'opencv-python-headless<5'); or give the face box"
        ) from error
    return cascade


def _detections(name: str, hits: int, grey: np.ndarray, least: int) -> list[tuple[int, int, int]]:
    """(x, y, side) of the detections at least `least` pixels wide, the widest first."""
    cascade = _cascade(name)
    import cv2

    if min(grey.shape) < least:
        return []
    with _DETECTING:  # a classifier keeps state while it runs
        found = cascade.detectMultiScale(cv2.equalizeHist(grey), 1.08, hits, minSize=(least, least))
    return [tuple(int(v) for v in square[:3]) for square in sorted(found, key=lambda square: -square[2])]

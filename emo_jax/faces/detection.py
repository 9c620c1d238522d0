"""Detects frontal faces with OpenCV's Haar cascades."""

from __future__ import annotations

import functools
import math
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
TURNS = (30, -30, 60, -60, 90, -90, 180)
"""Angles in degrees by which a picture is turned if no upright face is detected; the cascades tolerate 20 degrees."""
MIN_TURNED_HITS = 9
"""Overlapping hits of the first cascade that make a tilted face.

Of 12 pictures turned by 8 angles, 80 of 96 faces were detected, and 5 wrong ones. With the faces painted over, there
was one false detection in 12 pictures.
"""
HAAR_TO_FACE = (0.07, 0.12, 0.93, 1.06)
"""Face box in units of a cascade's square, which cuts off the chin and is wider than the face."""
_DETECTION_LOCK = threading.Lock()


def find_face(image: np.ndarray) -> Box | None:
    """Detects the largest frontal face, upright or tilted; see `find_faces`.

    Args:
        image: uint8 RGB (height, width, 3).

    Returns:
        The face box, or None if no face was detected (`boxes.default_box` is a substitute).
    """
    faces = find_faces(image, tilted=True)
    return faces[0] if faces else None


def find_faces(image: np.ndarray, tilted: bool = False) -> list[Box]:
    """Detects all frontal faces in a copy of at most DETECTION_SIDE pixels. Needs OpenCV 4.

    Args:
        image: uint8 RGB (height, width, 3).
        tilted: whether to look for the clearest tilted face in turned copies (TURNS) if there is no upright face.

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
    box = _detect_tilted(np.asarray(grey), min_side) if tilted else None
    if box is None:
        return []
    scale_x, scale_y = width / grey.size[0], height / grey.size[1]
    return [(box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y)]


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


def _detect_tilted(grey: np.ndarray, min_side: int) -> Box | None:
    """Returns the box, in pixels of `grey`, of the face with the most hits, weighted by its size, in turned copies.

    A tilted face is assumed to be an ellipse with the axes of an upright face's box; the box is the ellipse's.
    """
    best, best_score = None, 0.0
    left, top, right, bottom = HAAR_TO_FACE
    rows, columns = grey.shape
    for angle in TURNS:
        turned, to_grey = _turn(grey, angle)
        for x, y, side, hits in _detect_hits(next(iter(CASCADES)), MIN_TURNED_HITS, turned, min_side):
            if hits * side <= best_score:
                continue
            best_score = hits * side
            centre_x, centre_y = to_grey[:, :2] @ (x + (left + right) / 2 * side, y + (top + bottom) / 2 * side)
            centre_x, centre_y = float(centre_x + to_grey[0, 2]), float(centre_y + to_grey[1, 2])
            half_width, half_height = (right - left) * side / 2, (bottom - top) * side / 2
            cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            reach_x = math.hypot(half_width * cosine, half_height * sine)
            reach_y = math.hypot(half_width * sine, half_height * cosine)
            best = (
                max(0.0, centre_x - reach_x),
                max(0.0, centre_y - reach_y),
                min(float(columns), centre_x + reach_x),
                min(float(rows), centre_y + reach_y),
            )
    return best


def _turn(grey: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns a grey image counterclockwise, with its edges repeated.

    Returns:
        The turned image, large enough for all of `grey`, and the (2, 3) affine matrix from its pixels to those of
        `grey`.
    """
    import cv2

    rows, columns = grey.shape
    cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    width, height = round(columns * cosine + rows * sine), round(columns * sine + rows * cosine)
    matrix = cv2.getRotationMatrix2D((columns / 2, rows / 2), angle, 1)
    matrix[:, 2] += (width - columns) / 2, (height - rows) / 2
    turned = cv2.warpAffine(grey, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return turned, cv2.invertAffineTransform(matrix)


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
    return [square[:3] for square in _detect_hits(name, min_neighbours, grey, min_side)]


def _detect_hits(name: str, min_neighbours: int, grey: np.ndarray, min_side: int) -> list[tuple[int, int, int, int]]:
    """Returns (x, y, side, number of hits) of the detections at least `min_side` pixels wide, the widest first."""
    cascade = _load_cascade(name)
    import cv2

    if min(grey.shape) < min_side:
        return []
    grey = cv2.equalizeHist(grey)
    with _DETECTION_LOCK:  # a classifier keeps state while it runs
        squares, hits = cascade.detectMultiScale2(grey, 1.08, min_neighbours, minSize=(min_side, min_side))
    found = [(int(x), int(y), int(side), int(count)) for (x, y, side, _), count in zip(squares, hits, strict=True)]
    return sorted(found, key=lambda square: -square[2])

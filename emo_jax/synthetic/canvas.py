"""Antialiased drawing of polygons and lines, in coordinates of image heights."""

from __future__ import annotations

import cv2
import numpy as np

SHIFT = 4
"""Number of fractional bits of polygon corners."""


class Brush:
    """Draws antialiased shapes on a square image.

    Coordinates are in image heights, colours are RGB in [0, 1].

    Args:
        image: uint8 (side, side, 3), drawn on in place.
    """

    def __init__(self, image: np.ndarray):
        self.image, self.side = image, image.shape[0]

    def corners(self, points: np.ndarray) -> np.ndarray:
        """Converts points (N, 2) to OpenCV's fixed-point pixel coordinates, int32 (N, 2)."""
        return np.rint((points * self.side - 0.5) * (1 << SHIFT)).astype(np.int32)

    def fill(self, points: np.ndarray, colour: np.ndarray) -> None:
        """Fills the polygon with corners (N, 2)."""
        cv2.fillPoly(self.image, [self.corners(points)], _to_levels(colour), cv2.LINE_AA, SHIFT)

    def line(self, points: np.ndarray, colour: np.ndarray, thickness: float, closed: bool = False) -> None:
        """Draws a line through points (N, 2), at least one pixel thick."""
        width = max(1, round(thickness * self.side))
        cv2.polylines(self.image, [self.corners(points)], closed, _to_levels(colour), width, cv2.LINE_AA, SHIFT)


def _to_levels(colour: np.ndarray) -> tuple[float, ...]:
    return tuple(float(c) for c in np.clip(colour, 0, 1) * 255)

"""Soft masks of a portrait's face, lips and surroundings, and the region of its face, as hallo makes them.

hallo (arXiv 2406.08801, section 3.3) weights three branches of its audio attention by masks of the lips, the face and
the pose (everything but the face). Its masks start as rectangles around the landmarks, in pixels of the portrait. These
are reduced to 64x64 pixels, blurred and stretched to the full range, and then reduced to each level of the UNet.
Every step rounds to 8 bits, and is repeated here exactly, because the released weights were trained with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from emo_jax.faces.boxes import Box, check_box, check_image

SILHOUETTE = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Indices of the landmarks around the face, clockwise from the middle of the forehead."""
OUTER_LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
"""Indices of the landmarks around the lips, from their right corner over the upper lip."""
FACE_GROWTH, LIP_GROWTH = 1.2, 2.0
"""Sides of the rectangles, relative to the landmarks' extent."""
BLUR_SIDE, FACE_KERNEL, LIP_KERNEL = 64, 51, 31
"""Side of the picture in which masks are blurred, and the sides of the Gaussian kernels, in its pixels."""
LIPS_IN_BOX = (0.31, 0.68, 0.69, 0.80)
"""The lips' extent in units of the face box: the median of 12 portraits, made symmetric."""


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one portrait.

    Attributes:
        face: uint8 (height, width) of the portrait: 255 in the rectangle around the face, else 0.
        lips: the same around the lips.
    """

    face: np.ndarray
    lips: np.ndarray

    def masks(self, sizes: Sequence[tuple[int, int]]) -> dict[str, list[np.ndarray]]:
        """Computes the masks of the three branches for each level of the UNet.

        A portrait that is not square is squashed, as hallo squashes it.

        Args:
            sizes: (height, width) of each level, for example ((64, 64), (32, 32), (16, 16), (8, 8)).

        Returns:
            "pose", "face" and "lip": float32 (height, width) in [0, 1] for each of `sizes`. "pose" is the complement of
            the blurred face, "face" the blurred face without the blurred lips, "lip" the blurred lips.
        """
        face, lips = _blur(self.face, FACE_KERNEL), _blur(self.lips, LIP_KERNEL)
        masks = {
            "pose": ((1 - face / 255.0) * 255).astype(np.uint8),  # truncated, as the original does
            "face": cv2.subtract(face, lips),
            "lip": lips,
        }
        return {name: [_resize(mask, size) for size in sizes] for name, mask in masks.items()}

    def face_region(self, size: tuple[int, int]) -> np.ndarray:
        """Returns the region of the face for the Face Locator, float32 (height, width) of `size`, in [0, 1]."""
        return _resize(self.face, size)


def regions_from_landmarks(landmarks: np.ndarray, height: int, width: int) -> Regions:
    """Returns the regions of a portrait from the landmarks of its face.

    Args:
        landmarks: (P, 2) of the face mesh in pixels of the portrait, P at least 468.
        height: height of the portrait in pixels.
        width: its width.

    Raises:
        ValueError: if there are fewer landmarks.
    """
    if landmarks.ndim != 2 or len(landmarks) < 468 or landmarks.shape[1] < 2:
        raise ValueError(f"landmarks are {landmarks.shape}; expected (468, 2) or more, of the face mesh")
    face, lips = (_extent(landmarks[list(indices), :2]) for indices in (SILHOUETTE, OUTER_LIPS))
    return _regions(face, lips, height, width)


def regions_from_box(box: Box, height: int, width: int) -> Regions:
    """Returns the regions of a portrait from its face box alone: the lips are assumed at `LIPS_IN_BOX`.

    Args:
        box: (x0, y0, x1, y1) in pixels of the portrait, from the forehead to the chin.
        height: height of the portrait in pixels.
        width: its width.

    Raises:
        ValueError: if the box is not inside the portrait.
    """
    x0, y0, x1, y1 = check_box(box, height, width)
    left, top, right, bottom = LIPS_IN_BOX
    face_width, face_height = x1 - x0, y1 - y0
    lips = (x0 + left * face_width, y0 + top * face_height, x0 + right * face_width, y0 + bottom * face_height)
    return _regions((x0, y0, x1, y1), lips, height, width)


def draw_masks(image: np.ndarray, regions: Regions) -> np.ndarray:
    """Draws the masks over a portrait for inspection.

    Args:
        image: uint8 RGB (height, width, 3).
        regions: its regions.

    Returns:
        uint8 RGB of the same size: lips in red, the face in green, the pose in blue, and the face's rectangle.
    """
    height, width = check_image(image)
    masks = regions.masks([(height, width)])
    colours = np.stack([masks[name][0] for name in ("lip", "face", "pose")], 2) * 255
    drawn = np.round(0.55 * image + 0.45 * colours).astype(np.uint8)
    rows, columns = np.nonzero(regions.face)
    if len(rows):
        corners = (int(columns.min()), int(rows.min())), (int(columns.max()), int(rows.max()))
        cv2.rectangle(drawn, *corners, (255, 255, 255), max(1, height // 256))
    return drawn


def _regions(face: Box, lips: Box, height: int, width: int) -> Regions:
    return Regions(_rectangle(face, FACE_GROWTH, height, width), _rectangle(lips, LIP_GROWTH, height, width))


def _extent(points: np.ndarray) -> Box:
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _rectangle(extent: Box, growth: float, height: int, width: int) -> np.ndarray:
    """Draws an extent that has grown around its middle; middle and half sides are rounded down to pixels."""
    low, high = np.round(extent[:2]), np.round(extent[2:])
    middle, half = (low + high) // 2, (high - low) * growth // 2
    left, top = np.maximum(middle - half, 0).astype(int)
    right, bottom = np.minimum(middle + half, (width, height)).astype(int)
    mask = np.zeros((height, width), np.uint8)
    mask[top : max(bottom, 0), left : max(right, 0)] = 255
    return mask


def _blur(mask: np.ndarray, kernel: int) -> np.ndarray:
    """Returns the blurred mask (64, 64) uint8, stretched to [0, 255]; an empty mask stays empty."""
    small = cv2.GaussianBlur(cv2.resize(mask, (BLUR_SIDE, BLUR_SIDE)), (kernel, kernel), 0)
    return cv2.normalize(small, np.empty_like(small), 0, 255, cv2.NORM_MINMAX) if np.ptp(small) else small


def _resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32) / 255

"""Restores the detail that a portrait has beyond the resolution of the networks.

The networks work on a small square of a portrait, which does not show hairs, lashes or the texture of the skin. This
module computes that detail from the portrait, moves it along with the face, and adds it to each generated frame.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from emo_jax.media.optical_flow import dense_flow

Region = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels."""

_AGREES = 10.0
"""Largest difference of a colour, in [0, 255], between a frame and the moved portrait that counts as the same."""
_DIFFERS = 30.0
"""Difference from which a pixel is something new, such as the inside of a mouth, and gets no detail."""
_SMOOTH = 2.0
"""Standard deviation in pixels by which differences are averaged: noise is not something new."""


class PortraitDetail:
    """The difference between a portrait and its reduced square, and how it moves with generated frames.

    Args:
        crop: the square that the networks see.
        portrait: the same part of the portrait, at the size of the video.
        enlarged: `crop`, enlarged to the size of `portrait` as generated frames are.
        source: the region of `crop` that `portrait` shows.
    """

    def __init__(
        self,
        crop: UInt8[np.ndarray, "height width 3"],
        portrait: UInt8[np.ndarray, "rows columns 3"],
        enlarged: UInt8[np.ndarray, "rows columns 3"],
        source: Region,
    ):
        rows, columns = portrait.shape[:2]
        x0, y0, x1, y1 = source
        self._crop = crop
        self._lost = portrait.astype(np.float32) - enlarged
        self._per_pixel = np.array(((x1 - x0) / columns, (y1 - y0) / rows), np.float32)
        x, y = (np.arange(n, dtype=np.float32) for n in (columns, rows))
        self._positions = np.stack(np.meshgrid(x, y), axis=-1)
        self._in_crop = (self._positions + 0.5) * self._per_pixel + np.array((x0, y0), np.float32) - 0.5
        height, width = crop.shape[:2]
        self._pixels = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (width, height))), axis=-1)

    def of(self, frame: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "rows columns 3"]:
        """Returns what to add to a frame, after it has been enlarged to the size of the video.

        It is zero where the frame shows something that the portrait does not.
        """
        flow = dense_flow(frame, self._crop)
        moved = _sample(self._crop, self._pixels + flow)
        difference = np.abs(moved.astype(np.float32) - frame).max(axis=-1)
        difference = cv2.GaussianBlur(difference, (0, 0), _SMOOTH)
        same = np.clip((_DIFFERS - difference) / (_DIFFERS - _AGREES), 0, 1)
        fields = _sample(np.dstack((flow, same)), self._in_crop)
        return _sample(self._lost, self._positions + fields[..., :2] / self._per_pixel) * fields[..., 2:]


def _sample(image: np.ndarray, positions: Float[np.ndarray, "rows columns 2"]) -> np.ndarray:
    """Samples an image at (x, y) positions, by bilinear interpolation."""
    return cv2.remap(image, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore[reportCallIssue, reportArgumentType]

"""Places a portrait for generation, and pastes generated frames back into it.

The networks make a square around the face. With the framing "portrait" that square goes back to its place in the
picture; with "crop" it is the video.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from emo_jax.faces.boxes import Box, crop_around, crop_window, mask_from_box
from emo_jax.generation.detail import PortraitDetail

FRAMINGS = ("portrait", "crop")
"""What a video shows: the portrait at its size, or the square around the face."""
MAX_SIZE = 1080
"""Default limit of the shorter side of a video in pixels."""
MAX_LONG_SIDE = 4096
"""Limit of the longer side, up to which H.264 decoders in hardware reach."""
BORDER = 1 / 16
"""Width of the border that is held to the portrait, as a share of the side of the square; at least one latent."""
_GRID = 32
"""Side of the grid on which colours are compared."""
_SPREAD = 6
"""Standard deviation, in cells of that grid, by which differences at the border spread into the square."""
_MAX_SHIFT = 24
"""Largest correction of a colour; a larger difference is something that moved."""


class Placement(NamedTuple):
    """A portrait as the networks take it.

    Attributes:
        crop: the square (or rectangle) around the face.
        mask: 1 where the face may move.
        window: the place of the crop in the portrait, (x0, y0, x1, y1) in pixels; it may exceed a small portrait.
        face: the face in the portrait.
    """

    crop: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width 1"]
    window: Box
    face: Box


def place(image: UInt8[np.ndarray, "rows columns 3"], face: Box, clip: ConfigDict) -> Placement:
    """Crops a portrait so that its face is where the faces of the training clips are.

    The crop stays inside the image, so the face is off its training position where the image does not reach far enough.

    Args:
        image: the portrait.
        face: the face in it.
        clip: the config's `clip`, which holds the size of the crop and the position of the face.
    """
    height, width = size = tuple(clip.image_size)
    where = (size, clip.face.height, tuple(clip.face.centre))
    crop, box = crop_around(image, face, *where, inside=True)
    x, y, scale = crop_window(image.shape[:2], face, *where, inside=True)
    face_width, face_height = box[2] - box[0], box[3] - box[1]
    left, top, right, bottom = clip.face.growth
    region = (
        box[0] - left * face_width,
        box[1] - top * face_height,
        box[2] + right * face_width,
        box[3] + bottom * face_height,
    )
    window = (x, y, x + width * scale, y + height * scale)
    return Placement(crop, mask_from_box(region, height, width), window, face)


class Canvas:
    """The portrait at the size of the video, into which frames of the square are pasted.

    Args:
        image: the portrait.
        placement: where the square is in it.
        latent_size: (height, width) of the square in latents.
        max_size: limit of the shorter side of the video in pixels; a larger portrait is reduced to it.

    Attributes:
        picture: the portrait at the size of the video; both sides are even.
        scale: pixels of the video per pixel of the portrait in x and y.
        hold: 1 at the latents that stay those of the portrait: the border, except at sides that the square shares with
            the portrait.
    """

    def __init__(
        self,
        image: UInt8[np.ndarray, "rows columns 3"],
        placement: Placement,
        latent_size: tuple[int, int],
        max_size: int = MAX_SIZE,
    ):
        self.picture, self.scale = _fit(image, max_size)
        scale_x, scale_y = self.scale
        rows, columns = self.picture.shape[:2]
        x0, y0, x1, y1 = placement.window
        seams_x = (x0 > 0.5, x1 < image.shape[1] - 0.5)  # which sides of the square are inside the portrait
        seams_y = (y0 > 0.5, y1 < image.shape[0] - 0.5)
        held_y, held_x = _held(latent_size[0], seams_y), _held(latent_size[1], seams_x)
        self.hold: Float[np.ndarray, "latent_height latent_width 1"]
        self.hold = (held_y[:, None] | held_x[None]).astype(np.float32)[..., None]
        x0, x1, y0, y1 = x0 * scale_x, x1 * scale_x, y0 * scale_y, y1 * scale_y
        left, right = _whole_pixels(x0, x1, columns)
        top, bottom = _whole_pixels(y0, y1, rows)
        self._place = np.s_[top:bottom, left:right]
        height, width = placement.crop.shape[:2]
        per_x, per_y = width / (x1 - x0), height / (y1 - y0)
        source = ((left - x0) * per_x, (top - y0) * per_y, (right - x0) * per_x, (bottom - y0) * per_y)
        self._source = tuple(np.clip(source, 0, [width, height, width, height]).tolist())
        across = _ramp((np.arange(left, right) + 0.5 - x0) / (x1 - x0), _border(latent_size[1]), seams_x)
        down = _ramp((np.arange(top, bottom) + 0.5 - y0) / (y1 - y0), _border(latent_size[0]), seams_y)
        self._alpha = (down[:, None] * across[None])[..., None].astype(np.float32)
        self._weight = cv2.resize(self.hold[..., 0], (_GRID, _GRID), interpolation=cv2.INTER_AREA)[..., None]
        self._colors = _grid(placement.crop)
        self._detail = self._lost_detail(placement.crop) if max(per_x, per_y) < 1 and self._alpha.size else None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the video in pixels."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def alpha(self) -> Float[np.ndarray, "rows columns"]:
        """Share of the generated frame in each pixel of the video: 0 where the portrait stays as it is."""
        alpha = np.zeros(self.size, np.float32)
        alpha[self._place] = self._alpha[..., 0]
        return alpha

    def paste(self, frames: UInt8[np.ndarray, "n height width 3"]) -> UInt8[np.ndarray, "n rows columns 3"]:
        """Returns the portrait with generated frames at their place: colours matched, edges feathered.

        What the portrait shows beyond the resolution of the frames moves with them, see `PortraitDetail`.
        """
        pasted = np.repeat(self.picture[None], len(frames), axis=0)
        rows, columns = self._alpha.shape[:2]
        if not rows or not columns:
            return pasted
        under = self.picture[self._place].astype(np.float32)
        for frame, into in zip(frames, pasted, strict=True):
            patch = self._enlarge(self._match_colors(frame)).astype(np.float32)
            if self._detail is not None:
                patch = np.clip(patch + self._detail.of(frame), 0, 255)
            into[self._place] = np.round(under + self._alpha * (patch - under)).astype(np.uint8)
        return pasted

    def _enlarge(self, frame: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """Resizes a frame to its place in the video."""
        rows, columns = self._alpha.shape[:2]
        resized = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC, box=self._source)
        return np.asarray(resized)

    def _lost_detail(self, crop: UInt8[np.ndarray, "height width 3"]) -> PortraitDetail:
        return PortraitDetail(crop, self.picture[self._place], self._enlarge(crop), self._source)

    def _match_colors(self, frame: np.ndarray) -> np.ndarray:
        """Shifts colours by the smooth difference between the portrait and the frame at the held border.

        The border shows the same in both, so that it differs only by the errors of the autoencoder.
        """
        if not self._weight.any():
            return frame
        difference = np.clip(self._colors - _grid(frame), -_MAX_SHIFT, _MAX_SHIFT)
        shift = _spread(self._weight * difference) / np.maximum(_spread(self._weight), 1e-6)[..., None]
        height, width = frame.shape[:2]
        shifted = frame + cv2.resize(shift, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(np.round(shifted), 0, 255).astype(np.uint8)


def check_framing(framing: object, max_size: object) -> None:
    """Checks the arguments `framing` and `max_size` of a generation.

    Raises:
        ValueError: an unknown framing, or a limit below 16 pixels or above MAX_LONG_SIDE.
    """
    if framing not in FRAMINGS:
        raise ValueError(f"framing is {framing!r}; expected {' or '.join(FRAMINGS)}")
    if not isinstance(max_size, int) or not 16 <= max_size <= MAX_LONG_SIDE:
        raise ValueError(f"max_size is {max_size!r}; expected 16 to {MAX_LONG_SIDE} pixels")


def _fit(image: np.ndarray, max_size: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns the picture with even sides within the limits, and its pixels per pixel of the image in x and y.

    A picture within the limits is not resampled: it loses its last row or column if their number is odd.
    """
    rows, columns = image.shape[:2]
    factor = min(1.0, max_size / min(rows, columns), MAX_LONG_SIDE / max(rows, columns))
    if factor == 1:
        image = np.pad(image, ((0, rows == 1), (0, columns == 1), (0, 0)), mode="edge")
        return np.ascontiguousarray(image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]), (1.0, 1.0)
    width, height = (max(2, 2 * round(side * factor / 2)) for side in (columns, rows))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    return np.array(resized), (width / columns, height / rows)


def _border(latents: int) -> float:
    """Returns the width of the held border as a share of a side of so many latents."""
    return max(1, round(latents * BORDER)) / latents


def _held(latents: int, seams: tuple[bool, bool]) -> np.ndarray:
    """Returns which latents along a side belong to the held border at its two ends."""
    places, cells = np.arange(latents), round(_border(latents) * latents)
    return (places < cells) & seams[0] | (places >= latents - cells) & seams[1]


def _ramp(position: np.ndarray, border: float, seams: tuple[bool, bool]) -> np.ndarray:
    """Returns the opacity along a side: 0 at a seam, 1 inside, smooth over the border."""
    opacity = np.ones_like(position)
    for distance, seam in ((position, seams[0]), (1 - position, seams[1])):
        if seam:
            part = np.clip(distance / border, 0, 1)
            opacity *= part * part * (3 - 2 * part)
    return opacity


def _whole_pixels(start: float, end: float, limit: int) -> tuple[int, int]:
    """Returns the range of the pixels that are entirely inside an interval and inside [0, limit)."""
    first = min(max(0, int(np.ceil(start - 1e-6))), limit)
    return first, max(first, min(limit, int(np.floor(end + 1e-6))))


def _grid(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA).astype(np.float32)


def _spread(values: np.ndarray) -> np.ndarray:
    side = 2 * _GRID + 1
    return cv2.GaussianBlur(values, (side, side), _SPREAD, borderType=cv2.BORDER_CONSTANT)

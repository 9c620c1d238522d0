"""Where the face is: detection, boxes given by hand, and the crop of a portrait around its face.

A face box is a plain tuple (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, from the brows or forehead to the chin and
about as wide as the face.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def default_box(height: int, width: int) -> Box:
    """Where a portrait's face is when none is found: a third of the shorter side wide, 1.25 times as high, its
    centre in the middle of the width and at 45 % of the height."""
    wide = min(height, width) / 3
    high = 1.25 * wide
    return (width - wide) / 2, 0.45 * height - high / 2, (width + wide) / 2, 0.45 * height + high / 2


def parse_box(text: str) -> Box:
    """'x0,y0,x1,y1' in pixels to a box; ValueError unless it is four finite numbers with x0 < x1 and y0 < y1."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[2] or values[1] >= values[3]:
        raise ValueError(f"face box {text!r}; expected four pixel numbers x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return values


def check_box(box: Box, height: int, width: int) -> Box:
    """The box as floats; ValueError unless it is four finite numbers, not empty, and inside a height x width image."""
    values = tuple(float(value) for value in box)
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[2] or values[1] >= values[3]:
        raise ValueError(f"face box {box} is empty or no box; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
    if values[0] < 0 or values[1] < 0 or values[2] > width or values[3] > height:
        raise ValueError(
            f"face box {box} lies outside the image; expected 0 <= x <= {width} and 0 <= y <= {height} (pixels)"
        )
    return values


def crop_around(
    image: np.ndarray,
    box: Box,
    size: tuple[int, int],
    face_height: float = 0.47,
    centre: tuple[float, float] = (0.5, 0.47),
    inside: bool = False,
) -> tuple[np.ndarray, Box]:
    """Crop of `size` = (height, width) with the face where a talking head has it, and the face's box in the crop.

    The face box takes `face_height` of the crop's height and its centre lies at `centre` = (x, y), shares of width and
    height. The window has the crop's aspect ratio and may reach beyond the image, whose edge pixels are repeated there.
    With `inside` it is made smaller and moved until it lies in the image, as far as that keeps the whole face box: no
    repeated edges, but a larger face in a portrait that is framed tightly. Averages over areas when shrinking, cubic
    when enlarging. The returned box is clipped to the crop.
    """
    rows, columns = _check_image(image)
    x0, y0, x1, y1 = check_box(box, rows, columns)
    height, width = size
    if height < 1 or width < 1 or face_height <= 0:
        raise ValueError(f"crop of {size} pixels with face_height {face_height}; expected positive numbers")
    scale = (y1 - y0) / (face_height * height)  # image pixels per crop pixel
    if inside:
        whole_face = max((x1 - x0) / width, (y1 - y0) / height)
        scale = max(min(scale, columns / width, rows / height), whole_face)
    left = (x0 + x1) / 2 - centre[0] * width * scale
    top = (y0 + y1) / 2 - centre[1] * height * scale
    if inside:
        left = _moved_inside(left, width * scale, columns, (x0, x1))
        top = _moved_inside(top, height * scale, rows, (y0, y1))
    # Only what lies inside the image is resampled; the rest repeats the crop's own edge, however far out it is.
    a, b = _inside(left, scale, width, columns)
    c, d = _inside(top, scale, height, rows)
    region = tuple(
        min(max(value, 0.0), limit)
        for value, limit in zip(
            (left + a * scale, top + c * scale, left + b * scale, top + d * scale),
            (columns, rows, columns, rows),
            strict=True,
        )
    )
    method = Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC
    crop = np.asarray(Image.fromarray(image).resize((b - a, d - c), method, box=region))
    crop = np.pad(crop, ((c, height - d), (a, width - b), (0, 0)), mode="edge")
    moved = [(x0 - left) / scale, (y0 - top) / scale, (x1 - left) / scale, (y1 - top) / scale]
    return crop, tuple(min(max(v, 0.0), float(m)) for v, m in zip(moved, (width, height) * 2, strict=True))


def mask_from_box(box: Box, height: int, width: int, pad: float = 0.0) -> np.ndarray:
    """uint8 (height, width, 1): 1 in every pixel the box touches, grown by `pad` of its size on each side, else 0."""
    x0, y0, x1, y1 = box
    grow_x, grow_y = pad * (x1 - x0), pad * (y1 - y0)
    mask = np.zeros((height, width, 1), np.uint8)
    top, left = max(0, math.floor(y0 - grow_y)), max(0, math.floor(x0 - grow_x))
    mask[top : max(0, math.ceil(y1 + grow_y)), left : max(0, math.ceil(x1 + grow_x))] = 1
    return mask


def _moved_inside(start: float, length: float, limit: int, keep: tuple[float, float]) -> float:
    """Start of the interval after the least move that covers `keep` in [0, limit), or centred where it is longer."""
    start = min(max(start, keep[1] - length), keep[0])
    return min(max(start, 0.0), limit - length) if length <= limit else (limit - length) / 2


def _inside(start: float, scale: float, size: int, limit: int) -> tuple[int, int]:
    """First and last + 1 of `size` crop pixels that lie wholly inside [0, limit); at least one."""
    first = min(max(math.ceil(-start / scale - 1e-6), 0), size - 1)
    last = min(max(math.floor((limit - start) / scale + 1e-6), first + 1), size)
    return first, last


def _check_image(image: np.ndarray) -> tuple[int, int]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 RGB (height, width, 3)")
    return image.shape[0], image.shape[1]

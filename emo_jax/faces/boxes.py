"""Face boxes: parsing, checking, and the crop and mask of a portrait around its face.

A face box is a plain tuple (x0, y0, x1, y1) in pixels, x1 and y1 exclusive. It reaches from the brows or forehead to
the chin and is about as wide as the face.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def default_box(height: int, width: int) -> Box:
    """Returns the box to assume for a portrait in which no face was detected.

    It is a third of the shorter side wide and 1.25 times as high. Its centre is in the middle of the width and at 45 %
    of the height.
    """
    box_width = min(height, width) / 3
    box_height = 1.25 * box_width
    return (
        (width - box_width) / 2,
        0.45 * height - box_height / 2,
        (width + box_width) / 2,
        0.45 * height + box_height / 2,
    )


def parse_box(text: str) -> Box:
    """Parses 'x0,y0,x1,y1' in pixels.

    Raises:
        ValueError: unless `text` is four finite numbers with x0 < x1 and y0 < y1.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[2] or values[1] >= values[3]:
        raise ValueError(f"face box {text!r}; expected four pixel numbers x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return values


def check_box(box: Box, height: int, width: int) -> Box:
    """Checks a face box against an image of `height` x `width` pixels.

    Returns:
        The box as floats.

    Raises:
        ValueError: unless it is four finite numbers, not empty, and inside the image.
    """
    try:
        values = tuple(float(value) for value in box)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[2] or values[1] >= values[3]:
        raise ValueError(f"face box {box!r} is empty or not a box; expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
    if values[0] < 0 or values[1] < 0 or values[2] > width or values[3] > height:
        raise ValueError(
            f"face box {box} is outside the image; expected 0 <= x <= {width} and 0 <= y <= {height} (pixels)"
        )
    return values


def overlap(first: Box, second: Box) -> float:
    """Computes the intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(first) + _area(second) - width * height)


def crop_around(
    image: np.ndarray,
    box: Box,
    size: tuple[int, int],
    face_height: float = 0.47,
    centre: tuple[float, float] = (0.5, 0.47),
    inside: bool = False,
) -> tuple[np.ndarray, Box]:
    """Crops an image so that the face has the given height and position.

    The crop window has the aspect ratio of `size`. It may exceed the image; the edge pixels are repeated there.
    Pixels are averaged over areas when the crop is smaller than the window, and interpolated cubically when larger.

    Args:
        image: uint8 RGB (height, width, 3).
        box: the face in `image`.
        size: (height, width) of the crop in pixels.
        face_height: height of the face box as a share of the crop's height.
        centre: (x, y) of the face box's centre as shares of the crop's width and height.
        inside: if True, the window is shrunk and moved into the image as far as it still contains the face box. Then no
            edge is repeated, but the face in a tightly framed portrait is larger than `face_height`.

    Returns:
        (crop, box): uint8 RGB of `size`, and the face box in the crop, clipped to it.

    Raises:
        ValueError: if `image` is not uint8 RGB, `box` exceeds it, or `size` or `face_height` is not positive.
    """
    rows, columns = check_image(image)
    x0, y0, x1, y1 = check_box(box, rows, columns)
    height, width = size
    left, top, scale = crop_window((rows, columns), box, size, face_height, centre, inside)
    # Only the part inside the image is resampled. The rest repeats the crop's own edge, however far it extends.
    a, b = _pixels_inside(left, scale, width, columns)
    c, d = _pixels_inside(top, scale, height, rows)
    region = (
        min(max(left + a * scale, 0.0), columns),
        min(max(top + c * scale, 0.0), rows),
        min(max(left + b * scale, 0.0), columns),
        min(max(top + d * scale, 0.0), rows),
    )
    method = Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC
    crop = np.asarray(Image.fromarray(image).resize((b - a, d - c), method, box=region))
    crop = np.pad(crop, ((c, height - d), (a, width - b), (0, 0)), mode="edge")
    return crop, (
        min(max((x0 - left) / scale, 0.0), float(width)),
        min(max((y0 - top) / scale, 0.0), float(height)),
        min(max((x1 - left) / scale, 0.0), float(width)),
        min(max((y1 - top) / scale, 0.0), float(height)),
    )


def crop_window(
    image_size: tuple[int, int],
    box: Box,
    size: tuple[int, int],
    face_height: float = 0.47,
    centre: tuple[float, float] = (0.5, 0.47),
    inside: bool = False,
) -> tuple[float, float, float]:
    """Computes which part of an image `crop_around` takes; the arguments are those of that function.

    Returns:
        (left, top, scale): the corner of the window in pixels of the image, and image pixels per pixel of the crop.

    Raises:
        ValueError: if `size` or `face_height` is not positive.
    """
    (rows, columns), (x0, y0, x1, y1), (height, width) = image_size, box, size
    if height < 1 or width < 1 or face_height <= 0:
        raise ValueError(f"crop of {size} pixels with face_height {face_height}; expected positive numbers")
    scale = (y1 - y0) / (face_height * height)
    if inside:
        face_fills_crop = max((x1 - x0) / width, (y1 - y0) / height)
        scale = max(min(scale, columns / width, rows / height), face_fills_crop)
    left = (x0 + x1) / 2 - centre[0] * width * scale
    top = (y0 + y1) / 2 - centre[1] * height * scale
    if inside:
        left = _move_inside(left, width * scale, columns, (x0, x1))
        top = _move_inside(top, height * scale, rows, (y0, y1))
    return left, top, scale


def mask_from_box(box: Box, height: int, width: int, pad: float = 0.0) -> np.ndarray:
    """Draws a box as a mask.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        height: height of the mask.
        width: width of the mask.
        pad: share of the box's size by which it grows on each side.

    Returns:
        uint8 (height, width, 1): 1 in every pixel that the box touches, else 0.
    """
    x0, y0, x1, y1 = box
    grow_x, grow_y = pad * (x1 - x0), pad * (y1 - y0)
    mask = np.zeros((height, width, 1), np.uint8)
    top, left = max(0, math.floor(y0 - grow_y)), max(0, math.floor(x0 - grow_x))
    mask[top : max(0, math.ceil(y1 + grow_y)), left : max(0, math.ceil(x1 + grow_x))] = 1
    return mask


def check_image(image: np.ndarray) -> tuple[int, int]:
    """Returns (height, width) of a uint8 RGB image.

    Raises:
        ValueError: unless `image` is uint8 (height, width, 3) and not empty.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 RGB (height, width, 3)")
    return image.shape[0], image.shape[1]


def _move_inside(start: float, length: float, limit: int, keep: tuple[float, float]) -> float:
    """Moves an interval as little as possible so that it covers `keep` and is inside [0, limit).

    An interval longer than `limit` is centred. Returns its new start.
    """
    start = min(max(start, keep[1] - length), keep[0])
    return min(max(start, 0.0), limit - length) if length <= limit else (limit - length) / 2


def _pixels_inside(start: float, scale: float, size: int, limit: int) -> tuple[int, int]:
    """Returns the range of the `size` crop pixels that are entirely inside [0, limit); at least one pixel."""
    first = min(max(math.ceil(-start / scale - 1e-6), 0), size - 1)
    last = min(max(math.floor((limit - start) / scale + 1e-6), first + 1), size)
    return first, last


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])

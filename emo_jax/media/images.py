"""Pictures in: any format Pillow reads, told apart by its bytes, to upright uint8 RGB."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Largest picture decoded (8000x8000): about 0.5 GB at work. Above it `load_image` refuses before decoding."""
_OPENING = threading.Lock()
_REFUSED = {"EPS", "WMF"}  # vector formats, which Pillow hands to other programs


def load_image(path: str | os.PathLike) -> np.ndarray:
    """The picture as uint8 RGB (height, width, 3), in the size of the file, so that boxes measured on it hold.

    The format is found from the bytes, whatever the name says. EXIF orientation is applied, transparency is laid on
    white, palettes, grey, CMYK and 16-bit values become 8-bit RGB; of an animation the first frame is taken.

    Raises ValueError, one line that names the file: missing, a directory, empty, no picture, cut off, or more than
    MAX_PIXELS pixels.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a directory; give an image file")
    if not file.is_file():
        raise ValueError(f"{path} does not exist; give the path of an image file")
    if not file.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes); export or download it again")
    with _open(file, path) as image:
        width, height = image.size
        if image.format in _REFUSED:
            raise ValueError(f"{path} is {image.format}, a vector format; convert it to PNG or JPEG")
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{path} has {width}x{height} pixels; expected at most {MAX_PIXELS // 1_000_000} million: shrink it"
            )
        try:
            image.load()
            return from_pil(image)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged or cut off ({reason}); export or download it again") from error


def from_pil(image: Image.Image) -> np.ndarray:
    """A Pillow image as `load_image` gives it: upright uint8 RGB (height, width, 3)."""
    return np.array(_to_rgb(_upright(image)))


def _open(file: Path, path) -> Image.Image:
    """Header only. Pillow's own limit warns or fails without telling the size; ours, which follows, is stricter."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        except Exception as error:
            raise ValueError(
                f"{path} is not an image that can be read (PNG, JPEG, WebP, ...); convert it to PNG or JPEG"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data says nothing about the picture itself
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits: integers are taken as 16-bit unless all fit 8, floats as [0, 1] unless one is above."""
    peak = np.nanmax(values)
    full = (255 if peak <= 255 else 65535) if values.dtype.kind in "iu" else (1.0 if peak <= 1 else 255.0)
    if values.dtype == np.uint16:
        full = 65535
    return np.clip(np.nan_to_num(values) * (255.0 / full) + 0.5, 0, 255).astype(np.uint8)

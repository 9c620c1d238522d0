"""Loads pictures of any format that Pillow reads as upright uint8 RGB."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from emo_jax.media.paths import check_input_file

MAX_PIXELS = 64_000_000
"""Largest picture that `load_image` decodes (8000x8000), which takes about 0.5 GB."""
VECTOR_FORMATS = {"EPS", "WMF"}
"""Formats that are refused, because Pillow passes them to external programs."""
_OPEN_LOCK = threading.Lock()


def load_image(path: str | os.PathLike) -> np.ndarray:
    """Loads a picture as RGB in the size of the file, so that boxes measured on the file hold.

    The format is detected from the bytes and not from the name. EXIF orientation is applied, transparency is blended
    with white, and palettes, grey, CMYK and 16-bit values are converted to 8-bit RGB. Of an animation the first frame
    is taken.

    Args:
      path: an image file.

    Returns:
      uint8 RGB (height, width, 3).

    Raises:
      ValueError: if the file is missing, a directory, empty, not a picture, truncated, or has more than MAX_PIXELS.
    """
    file = check_input_file(path, "an image file")
    with _open(file, path) as image:
        width, height = image.size
        if image.format in VECTOR_FORMATS:
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
            raise ValueError(f"{path} is damaged or truncated ({reason}); export or download it again") from error


def from_pil(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image to upright uint8 RGB (height, width, 3), as `load_image` does."""
    return np.array(_to_rgb(_apply_orientation(image)))


def _open(file: Path, path: str | os.PathLike) -> Image.Image:
    """Reads the header. Pillow's own pixel limit is off: it is laxer, and its message does not give the size."""
    with _OPEN_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        except Exception as error:
            raise ValueError(
                f"{path} is not an image that can be read (PNG, JPEG, WebP, ...); convert it to PNG or JPEG"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data does not make the picture unusable
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
    """Converts grey of more than 8 bits to uint8.

    Integers count as 16-bit unless all fit into 8 bits; floats count as [0, 1] unless one is larger.
    """
    peak = np.nanmax(values)
    full_scale = (255 if peak <= 255 else 65535) if values.dtype.kind in "iu" else (1.0 if peak <= 1 else 255.0)
    if values.dtype == np.uint16:
        full_scale = 65535
    return np.clip(np.nan_to_num(values) * (255.0 / full_scale) + 0.5, 0, 255).astype(np.uint8)

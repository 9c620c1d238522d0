"""Loads pictures of any format that Pillow reads as upright uint8 RGB."""

from __future__ import annotations

import io
import math
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from emo_jax.media.paths import check_input_file

MAX_PIXELS = 64_000_000
"""Largest picture that is returned (8000x8000). Larger ones are reduced."""
MAX_DECODED_PIXELS = 256_000_000
"""Largest picture in a format that can only be decoded in full size, which takes up to 1 GB."""
MAX_DRAFT = 8
"""Largest factor by which a JPEG can be reduced while it is decoded."""
VECTOR_FORMATS = {"EPS", "WMF"}
"""Formats that are refused, because Pillow passes them to external programs."""
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""File types (bytes 8 to 12) of HEIC and HEIF pictures."""
_OPEN_LOCK = threading.Lock()


class Picture(NamedTuple):
    """A picture and its scale.

    Attributes:
        image: upright uint8 RGB (height, width, 3).
        scale: pixels of the file per pixel of `image`; 1 unless the file has more than MAX_PIXELS.
    """

    image: np.ndarray
    scale: float


def load_image(path: str | os.PathLike) -> np.ndarray:
    """Loads a picture as upright uint8 RGB (height, width, 3); returns the image of `load_picture`."""
    return load_picture(path).image


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns the (width, height) in the header of a picture, however large it is.

    Raises:
        ValueError: if the file is missing, not a regular file, empty, or not a picture.
    """
    with _open(check_input_file(path, "an image file"), path) as image:
        return image.size


def load_picture(path: str | os.PathLike) -> Picture:
    """Loads a picture as RGB, in the size of the file if that has at most MAX_PIXELS.

    The format is detected from the bytes and not from the name. EXIF orientation is applied, colours are converted from
    the embedded profile to sRGB, transparency is blended with white, and palettes, grey, CMYK and 16-bit values are
    converted to 8-bit RGB. Of an animation the first frame is taken. HEIC needs the extra `heif`.

    Args:
        path: an image file.

    Raises:
        ValueError: if the file is missing, not a regular file, empty, not a picture, truncated, too large, or HEIC
            without the extra.
    """
    file = check_input_file(path, "an image file")
    with _open(file, path) as image:
        width, height = image.size
        if image.format in VECTOR_FORMATS:
            raise ValueError(f"{path} is {image.format}, a vector format; convert it to PNG or JPEG")
        jpeg = image.format in ("JPEG", "MPO")
        limit = MAX_PIXELS * MAX_DRAFT**2 if jpeg else MAX_DECODED_PIXELS
        if width * height > limit:
            raise ValueError(
                f"{path} has {width}x{height} pixels; expected at most {limit // 1_000_000} million: shrink it"
            )
        try:
            if jpeg and width * height > MAX_PIXELS:
                factor = _reduction(width * height)
                image.draft(None, (width // factor, height // factor))  # pyright: ignore[reportArgumentType]
            image.load()
            pixels = image.size[0] * image.size[1]
            loaded = from_pil(image, 1 if pixels <= MAX_PIXELS else _reduction(pixels))
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged or truncated ({reason}); export or download it again") from error
    return Picture(loaded, max(width, height) / max(loaded.shape[:2]))


def from_pil(image: Image.Image, reduction: int = 1) -> np.ndarray:
    """Converts a Pillow image to upright uint8 RGB (height, width, 3), as `load_picture` does.

    Args:
        image: an image of any mode.
        reduction: factor by which the sides are reduced.
    """
    profile = image.info.get("icc_profile")
    return np.array(_to_rgb(_apply_orientation(image), profile, reduction))


def _reduction(pixels: int) -> int:
    """Returns the smallest integer factor that brings a number of pixels to at most MAX_PIXELS."""
    return math.ceil(math.sqrt(pixels / MAX_PIXELS))


def _open(file: Path, path: str | os.PathLike) -> Image.Image:
    """Reads the header. Pillow's own pixel limit is off: it is laxer, and its message does not give the size."""
    with _OPEN_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with open(file, "rb") as data:
                head = data.read(12)
            if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
                _register_heif(path)
            return Image.open(file)
        except Exception as error:
            if isinstance(error, ValueError):
                raise
            raise ValueError(
                f"{path} is not an image that can be read (PNG, JPEG, WebP, ...); convert it to PNG or JPEG"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _register_heif(path: str | os.PathLike) -> None:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path} is HEIC: pip install -c constraints.txt -e '.[heif]', or convert it to PNG or JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data does not make the picture unusable
        return image


def _to_rgb(image: Image.Image, profile: bytes | None, reduction: int) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        grey = image.mode in ("LA", "La")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB").convert("L") if grey else image.convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if reduction > 1:
        image = image.reduce(reduction)
        alpha = alpha and alpha.reduce(reduction)
    if profile:
        image = _to_srgb(image, profile)
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white.convert("RGB")
    return image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts an L, RGB or CMYK image from its ICC profile to sRGB; an unusable profile is ignored.

    An RGB image whose profile equals sRGB, whatever the profile's name, is returned unchanged.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent(ImageCms.getDefaultIntent(source)),
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if image.mode == "RGB":
            levels = np.arange(0, 256, 51, dtype=np.uint8)
            grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
            changed = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform), np.int16)
            if np.abs(changed - grid).max() <= 1:
                return image
        return ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Converts grey of more than 8 bits to uint8.

    Integers count as 16-bit unless all fit into 8 bits; floats count as [0, 1] unless one is larger.
    """
    peak = np.nanmax(values)
    full_scale = (255 if peak <= 255 else 65535) if values.dtype.kind in "iu" else (1.0 if peak <= 1 else 255.0)
    if values.dtype == np.uint16:
        full_scale = 65535
    return np.clip(np.nan_to_num(values) * (255.0 / full_scale) + 0.5, 0, 255).astype(np.uint8)

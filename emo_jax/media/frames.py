"""Converts decoded video frames to what a player shows: upright RGB with square pixels in BT.709 colours."""

from __future__ import annotations

import collections
import threading
from fractions import Fraction

import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter

MAX_FRAME_PIXELS = 64_000_000
"""Largest frame that is converted, 8000x8000."""
WIDE_PRIMARIES = {ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432}
HDR_TRANSFERS = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}  # PQ and HLG
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
# A converter keeps the tables of its last colour transform, which take seconds to compute, and serves one thread.
_LOCAL = threading.local()


def to_rgb(frame: VideoFrame, aspect: Fraction | None = None) -> np.ndarray:
    """Converts a frame to upright RGB with square pixels.

    HDR (PQ and HLG) is tone-mapped to BT.709 with a reference white of 203 nits (ITU-R BT.2408), and wide colour
    gamuts are mapped to BT.709. Without a colour tag, frames of at least 720 rows or 1280 columns are BT.709 and
    smaller ones BT.601, as players assume. Pixels that are not square are stretched, never shrunk. The display matrix
    is applied up to the nearest of its eight mirrored quarter turns.

    Args:
        frame: a decoded frame.
        aspect: width of a pixel divided by its height; None or 0 if unknown.

    Returns:
        uint8 RGB (height, width, 3).

    Raises:
        ValueError: if the frame is larger than MAX_FRAME_PIXELS, or its colours cannot be converted.
    """
    height, width = square_size(frame.height, frame.width, aspect)
    if height * width > MAX_FRAME_PIXELS:
        raise ValueError(
            f"frames have {width}x{height} pixels; expected at most {MAX_FRAME_PIXELS // 1_000_000} million"
        )
    options, transform = {}, None
    if (height, width) != (frame.height, frame.width):
        options |= dict(height=height, width=width, interpolation=Interpolation.BICUBIC)
    if frame.colorspace == UNSPECIFIED and not frame.format.is_rgb:
        if frame.color_primaries == ColorPrimaries.BT2020:
            options |= dict(src_colorspace=Colorspace.BT2020)
        elif frame.height >= 720 or frame.width >= 1280:
            options |= dict(src_colorspace=Colorspace.ITU709)
    if frame.color_trc in HDR_TRANSFERS or frame.color_primaries in WIDE_PRIMARIES:
        options |= dict(dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709)
        transform = frame.color_trc, frame.color_primaries
    try:
        image = _reformatter(transform).reformat(frame, format="rgb24", **options).to_ndarray()
    except FFmpegError as error:
        raise ValueError(
            f"frames have colours that cannot be converted (matrix {frame.colorspace}, transfer {frame.color_trc}, "
            f"primaries {frame.color_primaries}): {error.strerror}; convert the video to BT.709"
        ) from error
    return apply_display_matrix(image, _display_matrix(frame))


def square_size(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """Computes the size of a frame with square pixels.

    Args:
        height: rows of the frame.
        width: columns of the frame.
        aspect: width of a pixel divided by its height. Ratios within 1 % of 1 and beyond 10 are ignored: they are
            rounding errors and damaged headers.

    Returns:
        (height, width), of which one is enlarged.
    """
    if not aspect or not Fraction(1, 10) <= aspect <= 10 or abs(aspect - 1) < Fraction(1, 100):
        return height, width
    return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)


def apply_display_matrix(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turns and mirrors an image as a display matrix says.

    Args:
        image: (height, width, 3).
        matrix: (3, 3) integers, which map (x, y, 1) of the image to the display (ISO/IEC 14496-12, 6.2.2); or None.

    Returns:
        The image, contiguous. Angles between quarter turns are rounded.
    """
    if matrix is None:
        return np.ascontiguousarray(image)
    (a, b), (c, d) = matrix[0, :2].tolist(), matrix[1, :2].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):  # x of the display depends on y of the image
        image, a, d = image.transpose(1, 0, 2), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _display_matrix(frame: VideoFrame) -> np.ndarray | None:
    data = frame.side_data.get(Type.DISPLAYMATRIX)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if data is None or len(data := bytes(data)) != 36:
        return None
    return np.frombuffer(data, np.int32).reshape(3, 3)


def _reformatter(transform: tuple[int, int] | None) -> VideoReformatter:
    """Returns this thread's converter for a colour transform; None is for frames that need none."""
    if not hasattr(_LOCAL, "reformatters"):
        _LOCAL.reformatters = collections.defaultdict(VideoReformatter)
    return _LOCAL.reformatters[transform]

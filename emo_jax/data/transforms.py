"""From one decoded record to one training sample: pure numpy functions, every draw from an explicit generator."""

import math

import cv2
import numpy as np
from PIL import Image

from emo_jax.media.timing import audio_context, context_samples, cut, window_bounds

Window = tuple[int, int, int, int]  # top, left, height, width in pixels
PICTURES = ("reference", "motion", "frames")
_LUMA, _MIDDLE_GREY = (0.299, 0.587, 0.114), 128  # what contrast turns around


def choose_start(rng: np.random.Generator, total: int, frames: int, motion_frames: int) -> int:
    """First of `frames` contiguous frames of a record of `total`; uniform over all with `motion_frames` before them.

    Raises ValueError if the record is too short.
    """
    if total < frames + motion_frames:
        raise ValueError(
            f"a record has {total} frames, expected at least {frames} + {motion_frames} motion frames: "
            "shorten the clip or drop the record"
        )
    return int(rng.integers(motion_frames, total - frames + 1))


def choose_reference(rng: np.random.Generator, total: int, start: int, frames: int, gap: int) -> int:
    """Index of the reference frame; uniform over those at least `gap` frames from all of [start, start + frames).

    If there is none, uniform over the frames outside the clip; if there is none either, over all `total` frames.
    """
    for distance in (max(gap, 1), 1):
        before, after = max(0, start - distance + 1), max(0, total - (start + frames - 1 + distance))
        if before + after:
            pick = int(rng.integers(before + after))
            return pick if pick < before else total - (before + after) + pick
    return int(rng.integers(total))


def gap_frames(seconds: float, fps: float) -> int:
    """Frames in a gap of at least `seconds`."""
    return math.ceil(seconds * fps - 1e-6)


def choose_window(
    rng: np.random.Generator, frame_size: tuple[int, int], image_size: tuple[int, int], scale: tuple[float, float]
) -> Window:
    """A crop window of the shape of `image_size` (height, width) somewhere inside a frame of `frame_size`.

    Its side is a uniform draw from `scale` times the side of the largest such window; its place is uniform.
    """
    height, width = _window_size(frame_size, image_size, rng.uniform(*scale))
    top, left = rng.integers(frame_size[0] - height + 1), rng.integers(frame_size[1] - width + 1)
    return int(top), int(left), height, width


def middle_window(frame_size: tuple[int, int], image_size: tuple[int, int], scale: float) -> Window:
    """The window of that scale in the middle of the frame, see `choose_window`."""
    height, width = _window_size(frame_size, image_size, scale)
    return (frame_size[0] - height) // 2, (frame_size[1] - width) // 2, height, width


def _window_size(frame_size, image_size, scale):
    fit = min(frame_size[0] / image_size[0], frame_size[1] / image_size[1]) * scale
    return tuple(min(max(1, round(fit * want)), have) for want, have in zip(image_size, frame_size, strict=True))


def crop(frames: np.ndarray, window: Window, image_size: tuple[int, int]) -> np.ndarray:
    """Cuts `window` out of frames (F, h, w, 3) uint8; resized to `image_size`, antialiased, if the sizes differ."""
    top, left, height, width = window
    if (height, width) == tuple(image_size):
        return frames[:, top : top + height, left : left + width]
    out = np.empty((len(frames), *image_size, 3), np.uint8)
    size, box = (image_size[1], image_size[0]), (left, top, left + width, top + height)
    for i, frame in enumerate(frames):
        out[i] = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box=box)
    return out


def union_mask(boxes: np.ndarray, window: Window, image_size: tuple[int, int]) -> np.ndarray:
    """Where the face may be (EMO 3.2, Face Locator): the hull of boxes (F, 4), seen through `window`.

    Returns (height, width, 1) uint8 in {0, 1}; every pixel that a box touches is 1.
    """
    top, left, height, width = window
    scale_x, scale_y = image_size[1] / width, image_size[0] / height
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    rows = slice(max(0, math.floor((y0 - top) * scale_y)), max(0, math.ceil((y1 - top) * scale_y)))
    columns = slice(max(0, math.floor((x0 - left) * scale_x)), max(0, math.ceil((x1 - left) * scale_x)))
    mask = np.zeros((*image_size, 1), np.uint8)
    mask[rows, columns] = 1
    return mask


def audio_window_samples(clip) -> int:
    """Samples of the waveform of one clip: frames + 2 * audio_window frames, with margin and context on both sides."""
    length = window_bounds(0, clip.frames + 2 * clip.audio_window, clip.fps)[1]
    return length + 2 * context_samples(audio_context(clip))


def audio_window(
    audio: np.ndarray, start: int, frames: int, reach: int, fps: float, context: float = 0.0
) -> np.ndarray:
    """The waveform of frames [start - reach, start + frames + reach) with margins; (W,) float32 in [-1, 1].

    `audio` is the whole record's, int16; samples outside it are zero. `context`: seconds more on both sides.
    """
    begin, length = window_bounds(start - reach, frames + 2 * reach, fps)
    more = context_samples(context)
    return cut(audio, begin - more, length + 2 * more).astype(np.float32) / 32768


def speed_window(speed: np.ndarray, start: int, frames: int, reach: int) -> np.ndarray:
    """Speeds of frames [start - reach, start + frames + reach), degrees per frame; the record's end values repeat."""
    at = np.clip(np.arange(start - reach, start + frames + reach), 0, len(speed) - 1)
    return speed[at].astype(np.float32)


def flip_horizontally(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mirrors all pictures of a sample and its mask; the sound stays, and so does the speed, which has no sign."""
    mirrored = (*PICTURES, "mask")
    return {name: value[..., ::-1, :] if name in mirrored else value for name, value in sample.items()}


def choose_colors(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """A change of brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength].

    Returns (matrix (3, 3), offset (3,)): the new colour is matrix @ colour + offset, for RGB in [0, 255].
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    grey = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    return matrix, np.full(3, brightness * (1 - contrast) * _MIDDLE_GREY)


def change_colors(sample: dict[str, np.ndarray], matrix: np.ndarray, offset: np.ndarray) -> dict[str, np.ndarray]:
    """Changes the colours of all pictures of a sample alike, see `choose_colors`; missing motion frames stay 0."""
    change = np.hstack([matrix, offset[:, None]])
    changed = dict(sample)
    for name in PICTURES:
        if sample[name].size and (name != "motion" or sample["has_motion"]):
            rows = sample[name].reshape(-1, sample[name].shape[-2], 3)  # frames below each other: one call for all
            changed[name] = cv2.transform(rows, change).reshape(sample[name].shape)
    return changed

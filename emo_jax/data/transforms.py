"""Transforms from one decoded record to one training sample: numpy functions with explicit random generators."""

from __future__ import annotations

import math

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from emo_jax.faces.boxes import Box, crop_window
from emo_jax.media.timing import audio_context, context_samples, cut, window_bounds

Window = tuple[int, int, int, int]
"""A crop window: top, left, height and width in pixels."""
IMAGES = ("reference", "motion", "frames")
"""The fields of a sample that hold images."""
_LUMA, _MID_GREY = (0.299, 0.587, 0.114), 128  # contrast is scaled about mid-grey


def choose_start(rng: np.random.Generator, total: int, frames: int, motion_frames: int) -> int:
    """Draws the first frame of a clip, uniformly over all positions that leave room for the motion frames before it.

    Args:
        rng: random generator.
        total: number of frames of the record.
        frames: number of frames of the clip.
        motion_frames: number of frames needed before the clip.

    Returns:
        The index of the clip's first frame.

    Raises:
        ValueError: if the record is too short.
    """
    if total < frames + motion_frames:
        raise ValueError(
            f"a record has {total} frames, expected at least {frames} + {motion_frames} motion frames: "
            "shorten the clip or drop the record"
        )
    return int(rng.integers(motion_frames, total - frames + 1))


def choose_reference(
    rng: np.random.Generator, total: int, start: int, frames: int, gap: int, motion_frames: int = 0
) -> int:
    """Draws the reference frame, uniformly over the frames at least `gap` frames away from every frame of the clip.

    If no frame is that far away, the gap is halved until there is one. If the clip and its motion frames fill the
    record, a frame of the clip is drawn. A motion frame is never the reference.

    Args:
        rng: random generator.
        total: number of frames of the record.
        start: first frame of the clip.
        frames: number of frames of the clip.
        gap: minimum distance in frames.
        motion_frames: number of motion frames before the clip.

    Returns:
        The index of the reference frame.
    """
    gap = max(gap, 1)
    while gap:
        before = max(0, start - max(gap - 1, motion_frames))
        after = max(0, total - (start + frames - 1 + gap))
        if before + after:
            choice = int(rng.integers(before + after))
            return choice if choice < before else total - (before + after) + choice
        gap //= 2
    return start + int(rng.integers(frames))


def gap_frames(seconds: float, fps: float) -> int:
    """Returns the smallest number of frames that last at least `seconds`."""
    return math.ceil(seconds * fps - 1e-6)


def choose_window(
    rng: np.random.Generator, frame_size: tuple[int, int], image_size: tuple[int, int], scale: tuple[float, float]
) -> Window:
    """Draws a crop window with the aspect ratio of `image_size`.

    Args:
        rng: random generator.
        frame_size: (height, width) of the frame.
        image_size: (height, width) of the image that the crop is resized to.
        scale: range of the side of the window, relative to the largest window that fits; drawn uniformly.

    Returns:
        The window, at a uniformly drawn position.
    """
    height, width = _window_size(frame_size, image_size, rng.uniform(*scale))
    top, left = rng.integers(frame_size[0] - height + 1), rng.integers(frame_size[1] - width + 1)
    return int(top), int(left), height, width


def choose_face_window(
    rng: np.random.Generator,
    frame_size: tuple[int, int],
    image_size: tuple[int, int],
    scale: tuple[float, float],
    box: Box,
    face: tuple[float, tuple[float, float]],
) -> Window:
    """Draws a crop window in which a face is about where generation places that of a portrait.

    Args:
        rng: random generator.
        frame_size: (height, width) of the frame.
        image_size: (height, width) of the image that the crop is resized to.
        scale: range of the side of the window, relative to the largest; generation's window is in the middle.
        box: the face in the frame.
        face: height and (x, y) of the centre of the face in generation's window, as shares of its sides.

    Returns:
        The window; it stays inside the frame, so that a large face may be larger than `face` says.
    """
    face_height, centre = face
    left, top, pixels = crop_window(frame_size, box, image_size, face_height * sum(scale) / 2, centre, inside=True)
    height, width = (min(side, round(length * pixels)) for side, length in zip(frame_size, image_size, strict=True))
    inner_top, inner_left, rows, columns = choose_window(rng, (height, width), image_size, scale)
    first_row = min(max(round(top), 0), frame_size[0] - height)
    first_column = min(max(round(left), 0), frame_size[1] - width)
    return first_row + inner_top, first_column + inner_left, rows, columns


def middle_window(
    frame_size: tuple[int, int], image_size: tuple[int, int], data: ConfigDict, clip: ConfigDict, box: Box
) -> Window:
    """Returns the window without random draws that is most like those of training.

    Args:
        frame_size: (height, width) of the frame.
        image_size: (height, width) of the image that the crop is resized to.
        data: the `data` config.
        clip: the `clip` config.
        box: the face in the frame.
    """
    if data.get("face_crop"):
        face = clip.face.height, tuple(clip.face.centre)
        return choose_face_window(np.random.default_rng(0), frame_size, image_size, (1.0, 1.0), box, face)
    return center_window(frame_size, image_size, sum(data["crop_scale"]) / 2)


def place_points(points: np.ndarray, window: Window, image_size: tuple[int, int]) -> np.ndarray:
    """Returns where points (..., 2) of a frame, (x, y) in pixels, are in the crop of a window."""
    top, left, rows, columns = window
    return (points + 0.5 - (left, top)) * (image_size[1] / columns, image_size[0] / rows) - 0.5


def mirror_points(points: np.ndarray, width: int) -> np.ndarray:
    """Returns where points (..., 2) of an image are when it is mirrored, see `flip_horizontally`."""
    return np.stack([width - 1 - points[..., 0], points[..., 1]], axis=-1)


def tighter_scale(scale: tuple[float, float]) -> tuple[float, float]:
    """Returns the range of `choose_window` for a reference that is a frame of the clip itself.

    Its window is always smaller than that of the clip, so that the model cannot copy the target pixel for pixel.
    """
    return 0.75 * scale[0], 0.9 * scale[0]


def center_window(frame_size: tuple[int, int], image_size: tuple[int, int], scale: float) -> Window:
    """Returns the centered window of the given scale; see `choose_window`."""
    height, width = _window_size(frame_size, image_size, scale)
    return (frame_size[0] - height) // 2, (frame_size[1] - width) // 2, height, width


def _window_size(frame_size: tuple[int, int], image_size: tuple[int, int], scale: float) -> tuple[int, int]:
    factor = min(frame_size[0] / image_size[0], frame_size[1] / image_size[1]) * scale
    height, width = (min(max(1, round(factor * i)), f) for i, f in zip(image_size, frame_size, strict=True))
    return height, width


def crop(frames: np.ndarray, window: Window, image_size: tuple[int, int]) -> np.ndarray:
    """Crops frames, and resizes them with antialiasing if the sizes differ.

    Args:
        frames: (frames, height, width, 3) uint8.
        window: the crop window.
        image_size: (height, width) of the result.

    Returns:
        Frames of that size, uint8 (frames, height, width, 3).
    """
    top, left, height, width = window
    if (height, width) == tuple(image_size):
        return frames[:, top : top + height, left : left + width]
    out = np.empty((len(frames), *image_size, 3), np.uint8)
    size, box = (image_size[1], image_size[0]), (left, top, left + width, top + height)
    for i, frame in enumerate(frames):
        out[i] = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box=box))
    return out


def union_mask(boxes: np.ndarray, window: Window, image_size: tuple[int, int]) -> np.ndarray:
    """Computes the face region of a clip: the bounding box of all face boxes (EMO 3.2, Face Locator).

    Args:
        boxes: (frames, 4) face boxes in pixels of the uncropped frames.
        window: the crop window.
        image_size: (height, width) of the mask.

    Returns:
        (height, width, 1) uint8; 1 for every pixel that the bounding box touches, 0 elsewhere.
    """
    top, left, height, width = window
    scale_x, scale_y = image_size[1] / width, image_size[0] / height
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    rows = slice(max(0, math.floor((y0 - top) * scale_y)), max(0, math.ceil((y1 - top) * scale_y)))
    columns = slice(max(0, math.floor((x0 - left) * scale_x)), max(0, math.ceil((x1 - left) * scale_x)))
    mask = np.zeros((*image_size, 1), np.uint8)
    mask[rows, columns] = 1
    return mask


def audio_window_samples(clip: ConfigDict) -> int:
    """Returns the length in samples of the waveform of one clip; see `audio_window`."""
    length = window_bounds(0, clip.frames + 2 * clip.audio_window, clip.fps)[1]
    return length + 2 * context_samples(audio_context(clip))


def audio_window(
    audio: np.ndarray, start: int, frames: int, reach: int, fps: float, context: float = 0.0
) -> np.ndarray:
    """Cuts out the waveform of a clip, with margins on both sides.

    Args:
        audio: (samples,) int16, the audio of the record. Samples outside of it are zero.
        start: first frame of the clip.
        frames: number of frames of the clip.
        reach: frames of audio on each side of the clip.
        fps: frames per second.
        context: seconds of additional audio on each side.

    Returns:
        (window samples,) float32 in [-1, 1], for the frames [start - reach, start + frames + reach).
    """
    begin, length = window_bounds(start - reach, frames + 2 * reach, fps)
    extra = context_samples(context)
    return cut(audio, begin - extra, length + 2 * extra).astype(np.float32) / 32768


def speed_window(speed: np.ndarray, start: int, frames: int, reach: int) -> np.ndarray:
    """Returns the speeds of the frames [start - reach, start + frames + reach), in degrees per frame.

    The first and last value of `speed` (total frames,) are repeated outside of the record.
    """
    indices = np.clip(np.arange(start - reach, start + frames + reach), 0, len(speed) - 1)
    return speed[indices].astype(np.float32)


def flip_horizontally(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mirrors the images and the mask of a sample. Audio and speed are unchanged: the speed has no sign."""
    return {name: value[..., ::-1, :] if name in (*IMAGES, "mask") else value for name, value in sample.items()}


def choose_colors(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws a change of brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength].

    Returns:
        matrix (3, 3) and offset (3,): the new color is matrix @ color + offset, for RGB in [0, 255].
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    grey = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    return matrix, np.full(3, brightness * (1 - contrast) * _MID_GREY)


def change_colors(sample: dict[str, np.ndarray], matrix: np.ndarray, offset: np.ndarray) -> dict[str, np.ndarray]:
    """Applies one color change (see `choose_colors`) to all images of a sample; absent motion frames stay zero."""
    affine = np.hstack([matrix, offset[:, None]])
    changed = dict(sample)
    for name in IMAGES:
        if sample[name].size and (name != "motion" or sample["has_motion"]):
            rows = sample[name].reshape(-1, sample[name].shape[-2], 3)  # one OpenCV call for all frames
            changed[name] = cv2.transform(rows, affine).reshape(sample[name].shape)
    return changed

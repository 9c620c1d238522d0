"""Measures of motion: seams between clips, head rotation speed, and the position of the face."""

from __future__ import annotations

import numpy as np

from emo_jax.faces.rotation import rotation_speed

SMOOTH = 7
"""Number of frames over which measured poses are averaged before differencing, because single readings are noisy."""


def seam_ratio(frames: np.ndarray, clip: int) -> float:
    """Returns the mean absolute difference of successive frames at clip borders divided by that inside clips.

    Args:
        frames: videos from their first frame on, uint8 (..., N, H, W, 3).
        clip: number of frames in a clip.

    Raises:
        ValueError: there is less than one border, or a clip has only one frame.
    """
    frames = np.asarray(frames)
    count = frames.shape[-4]
    if count <= clip or clip < 2:
        raise ValueError(f"{count} frames in clips of {clip} have no border and inside to compare; give more frames")
    flat = frames.reshape(-1, *frames.shape[-4:])
    change = np.array([[_change(video[t - 1], video[t]) for t in range(1, count)] for video in flat])
    border = np.arange(1, count) % clip == 0
    return float(change[:, border].mean() / max(change[:, ~border].mean(), 1e-9))


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after.astype(np.int16) - before).mean())


def measured_speed(rotation: np.ndarray) -> np.ndarray:
    """Returns head rotation speed (..., N) in degrees per frame from measured poses.

    Poses are averaged over SMOOTH frames and then treated as the training labels are (`rotation_speed`).

    Args:
        rotation: yaw, pitch and roll in degrees, (..., N, 3).
    """
    flat = np.asarray(rotation, np.float64).reshape(-1, *rotation.shape[-2:])
    kernel = np.hanning(SMOOTH + 2)[1:-1]
    kernel, reach = kernel / kernel.sum(), SMOOTH // 2
    speeds = []
    for angles in flat:
        padded = np.pad(angles, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
        smoothed = np.stack([np.convolve(column, kernel, "valid") for column in padded.T], 1)
        speeds.append(rotation_speed(smoothed))
    return np.stack(speeds).reshape(rotation.shape[:-1])


def mask_centres(masks: np.ndarray) -> np.ndarray:
    """Returns the centre (x, y) of the marked rectangle of each mask, as fractions of the image, (..., 2).

    Args:
        masks: (..., H, W, 1), nonzero inside the rectangle.

    Raises:
        ValueError: a mask is empty.
    """
    height, width = masks.shape[-3:-1]
    marked = masks.reshape(-1, height, width) > 0
    if not marked.any((1, 2)).all():
        raise ValueError("a mask marks nothing: the face is outside the image; shift it less")
    centres = []
    for mask in marked:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        centres.append(((columns[0] + columns[-1] + 1) / 2 / width, (rows[0] + rows[-1] + 1) / 2 / height))
    return np.array(centres).reshape(*masks.shape[:-3], 2)


def following_slope(moved: np.ndarray, found: np.ndarray) -> float:
    """Returns the slope of a linear fit of `found` on `moved`, each person centred on their own mean.

    A slope of 1 means that the face follows the mask, 0 that it ignores the mask.

    Args:
        moved: positions of the mask, (S, P): S settings for each of P people.
        found: measured positions of the face, (S, P).

    Raises:
        ValueError: the shapes differ, or the mask was not moved.
    """
    moved, found = (np.asarray(a, np.float64) - np.mean(a, 0) for a in (moved, found))
    if moved.shape != found.shape or (moved**2).sum() < 1e-12:
        raise ValueError(f"cannot fit a slope to shapes {moved.shape} and {found.shape}, or the mask was not moved")
    return float((moved * found).sum() / (moved**2).sum())

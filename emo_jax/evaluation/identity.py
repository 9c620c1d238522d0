"""Identity measures: upright face thumbnails, the directions in which people differ, and drift over a long video."""

from __future__ import annotations

import cv2
import numpy as np
import scipy.linalg

SIDE = 16
"""Height and width of a face thumbnail in pixels."""
GROW = 1.2
"""Size of the region that a thumbnail shows, relative to the face box: hairline and jaw, hardly any background."""
_AXIS = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
OVAL = _AXIS[:, None] ** 2 + _AXIS**2 <= 1
"""The pixels of a thumbnail that are used."""
FEATURES = 3 * int(OVAL.sum())


def thumbnail(frame: np.ndarray, centre: np.ndarray, size: np.ndarray, roll: float) -> np.ndarray:
    """Returns the upright face thumbnail of a frame, float32 (FEATURES,) in [0, 1].

    Args:
        frame: uint8 (H, W, 3).
        centre: centre (x, y) of the face box, as fractions of the frame.
        size: width and height of the face box, as fractions of the frame.
        roll: head roll in degrees, clockwise.
    """
    scale = np.array([frame.shape[1], frame.shape[0]])
    step = np.maximum(GROW * size * scale, SIDE) / SIDE  # frame pixels per thumbnail pixel
    turn = np.deg2rad(roll)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * step
    offset = centre * scale - 0.5 - matrix @ np.full(2, (SIDE - 1) / 2)
    soft = cv2.GaussianBlur(frame, (0, 0), float(step.mean()) / 2.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    small = cv2.warpAffine(soft, np.column_stack([matrix, offset]), (SIDE, SIDE), flags=flags,
                           borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    return small[OVAL].reshape(-1).astype(np.float32) / 255


def discriminants(views: np.ndarray, count: int, shrink: float = 0.05) -> np.ndarray:
    """Returns the directions in which people differ most relative to how one person's views differ (Fisher 1936).

    Args:
        views: several views of each person, (people, views, D).
        count: number of directions.
        shrink: weight of the diagonal in the covariance of one person's views.

    Returns:
        (D, count). After `views @ discriminants` the views of one person have unit variance.

    Raises:
        ValueError: there are fewer than two views of each person, or no more people than directions.
    """
    if views.ndim != 3 or views.shape[1] < 2 or len(views) <= count:
        raise ValueError(
            f"views have shape {views.shape}; expected (people, views, features), two views or more of each of more "
            f"than {count} people"
        )
    means = views.mean(1, keepdims=True, dtype=np.float64)
    within = (views - means).reshape(-1, views.shape[-1])
    within = within.T @ within / (len(views) * (views.shape[1] - 1))
    between = np.cov(means[:, 0].T) - within / views.shape[1]
    within = (1 - shrink) * within + shrink * np.diag(np.diag(within))
    within += 1e-5 * np.trace(within) / len(within) * np.eye(len(within))
    size = len(within)
    vectors = scipy.linalg.eigh(between, within, subset_by_index=(size - count, size - 1))[1]
    return vectors[:, ::-1].astype(np.float32)


def distances(found: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns Euclidean distances (..., R) between identities (..., K) and those of references (R, K)."""
    return np.linalg.norm(found[..., None, :] - references, axis=-1)


def nearest(found: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns the index of the reference (R, K) nearest to each identity (..., K)."""
    return distances(found, references).argmin(-1)


def retrieval(found: np.ndarray, references: np.ndarray) -> float:
    """Returns the fraction of frames whose nearest reference is their own.

    Args:
        found: identities of N frames of B people, (B, N, K).
        references: identities of R >= B references, (R, K); person b belongs to reference b.
    """
    return float((nearest(found, references) == np.arange(len(found))[:, None]).mean())


def colour_distance(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns the colour distance between frames and a reference, in levels of 255, (...,).

    The distance is the mean over red, green and blue of the Wasserstein-1 distance of the histograms. Head motion
    hardly changes it; a tint, fading or growing contrast does.

    Args:
        frames: uint8 (..., H, W, 3).
        reference: uint8 (H, W, 3).
    """
    frames = np.asarray(frames)
    own = _cumulative(reference)
    flat = frames.reshape(-1, *frames.shape[-3:])
    return np.array([np.abs(_cumulative(f) - own).sum() / 3 for f in flat]).reshape(frames.shape[:-3])


def _cumulative(image: np.ndarray) -> np.ndarray:
    """Returns the fraction of pixels up to each level, (3, 256)."""
    counts = np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])
    return np.cumsum(counts, 1) / image[..., 0].size


def drift(distance: np.ndarray, window: int) -> float:
    """Returns the mean of the last `window` distances divided by the mean of the first `window`; 1 is no drift.

    Args:
        distance: distances over time, (..., N).
        window: number of frames at each end.

    Raises:
        ValueError: the two windows would overlap (N < 2 * window).
    """
    if distance.shape[-1] < 2 * window or window < 1:
        raise ValueError(
            f"{distance.shape[-1]} frames cannot be compared, first {window} with last; make the video longer"
        )
    first, last = distance[..., :window].mean(), distance[..., -window:].mean()
    return float(last / max(first, 1e-9))

"""Who is who: faces cut out and turned upright, what tells people apart in them, and drift over a long video."""

from __future__ import annotations

import cv2
import numpy as np
import scipy.linalg

SIDE = 16  # of a face's thumbnail
GROW = 1.2  # of the face box that it shows: with the hairline and the jaw, hardly any background
_AXIS = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
OVAL = _AXIS[:, None] ** 2 + _AXIS**2 <= 1
"""The pixels of a thumbnail that count."""
FEATURES = 3 * int(OVAL.sum())


def thumbnail(frame: np.ndarray, centre: np.ndarray, size: np.ndarray, roll: float) -> np.ndarray:
    """The face in a frame uint8 (H, W, 3), upright and small: float32 (FEATURES,) in [0, 1].

    Args:
        centre, size: of the face box (2,), x and y in shares of the frame. roll: degrees, clockwise.
    """
    scale = np.array([frame.shape[1], frame.shape[0]])
    step = np.maximum(GROW * size * scale, SIDE) / SIDE  # pixels of the frame for one of the thumbnail
    turn = np.deg2rad(roll)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * step
    offset = centre * scale - 0.5 - matrix @ np.full(2, (SIDE - 1) / 2)
    soft = cv2.GaussianBlur(frame, (0, 0), float(step.mean()) / 2.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    small = cv2.warpAffine(soft, np.column_stack([matrix, offset]), (SIDE, SIDE), flags=flags,
                           borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    return small[OVAL].reshape(-1).astype(np.float32) / 255


def discriminants(views: np.ndarray, count: int, shrink: float = 0.05) -> np.ndarray:
    """The `count` directions in which people differ most, for how much one person's views differ (Fisher 1936).

    Args:
        views: (people, views, D), several views of each person.
        shrink: how far the covariance of one person's views is drawn towards its diagonal.

    Returns:
        (D, count): one person's views scatter with unit variance after `views @ discriminants`.

    Raises:
        ValueError: fewer than two views of each person, or not more people than directions.
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
    """Euclidean distances (..., R) of identities (..., K) from those of references (R, K)."""
    return np.linalg.norm(found[..., None, :] - references, axis=-1)


def nearest(found: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The number of the reference nearest to each of (..., K)."""
    return distances(found, references).argmin(-1)


def retrieval(found: np.ndarray, references: np.ndarray) -> float:
    """Share of frames (B, N, K) whose nearest reference, of (R, K) with R >= B, is number b, their own."""
    return float((nearest(found, references) == np.arange(len(found))[:, None]).mean())


def colour_distance(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How far the colours of frames uint8 (..., H, W, 3) are from a reference's (H, W, 3), in levels of 255: (...,).

    The mean over red, green and blue of the distance between the sorted levels (Wasserstein-1 of the histograms): a
    head that moves hardly changes it, a tint, fading or growing contrast does.
    """
    frames = np.asarray(frames)
    own = _cumulative(reference)
    flat = frames.reshape(-1, *frames.shape[-3:])
    return np.array([np.abs(_cumulative(f) - own).sum() / 3 for f in flat]).reshape(frames.shape[:-3])


def _cumulative(image: np.ndarray) -> np.ndarray:
    """(3, 256): share of pixels up to each level."""
    counts = np.stack([np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)])
    return np.cumsum(counts, 1) / image[..., 0].size


def drift(distance: np.ndarray, window: int) -> float:
    """Mean of the last `window` of (..., N) distances over the mean of the first `window`; 1 is no drift.

    Raises ValueError where N < 2 * window, as the two would overlap.
    """
    if distance.shape[-1] < 2 * window or window < 1:
        raise ValueError(
            f"{distance.shape[-1]} frames cannot be compared, first {window} with last; make the video longer"
        )
    first, last = distance[..., :window].mean(), distance[..., -window:].mean()
    return float(last / max(first, 1e-9))

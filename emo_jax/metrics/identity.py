"""Who is who, from measured appearances: distances, nearest references, and drift over a long video."""

from __future__ import annotations

import numpy as np


def whitening(views: np.ndarray, shrink: float = 0.1) -> np.ndarray:
    """The matrix (K, K) after which an error of measurement is as likely in every direction.

    Args:
        views: measured appearances (people, views, K), several views of each person: their scatter around the
            person's mean is the error, and attributes that are badly measured come to count little.
        shrink: how far the error's covariance is drawn towards its diagonal.

    Returns:
        the inverse square root of that covariance; distances are Euclidean after `views @ whitening`.

    Raises:
        ValueError: fewer than two views of each person.
    """
    if views.ndim != 3 or views.shape[1] < 2:
        raise ValueError(f"views have shape {views.shape}; expected (people, views, attributes) with two views or more")
    within = (views - views.mean(1, keepdims=True)).reshape(-1, views.shape[-1]).astype(np.float64)
    covariance = within.T @ within / (len(views) * (views.shape[1] - 1))
    floor = 1e-3 * np.trace(covariance) / len(covariance)
    covariance = (1 - shrink) * covariance + shrink * np.diag(np.diag(covariance)) + floor * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(np.maximum(values, 1e-12)) @ vectors.T).astype(np.float32)


def distances(found: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Euclidean distances (..., R) of whitened appearances (..., K) from those of references (R, K)."""
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

"""Measures of whether the lips follow the voice: the measured mouth opening against the voice's mouth track."""

from __future__ import annotations

import numpy as np

SILENT, VOICED = 0.05, 0.2
"""A frame is silent if its true mouth opening is below SILENT, voiced if it is above VOICED, otherwise neither."""
STRETCH = 5
"""Minimum length of a silent stretch in frames; its first and last frame are not counted."""


def lip_correlation(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns Pearson's r between measured and true mouth opening.

    Args:
        found: measured openings (..., N).
        truth: true openings (..., N).

    Returns:
        The correlation over time, (...,); 0 where either track is constant.

    Raises:
        ValueError: the shapes differ.
    """
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape:
        raise ValueError(f"openings have shapes {found.shape} and {truth.shape}; expected one value a frame in both")
    found, truth = (a - a.mean(-1, keepdims=True) for a in (found, truth))
    norm = np.linalg.norm(found, axis=-1) * np.linalg.norm(truth, axis=-1)
    return np.where(norm > 1e-9, (found * truth).sum(-1) / np.maximum(norm, 1e-9), 0.0)


def silent_frames(truth: np.ndarray) -> np.ndarray:
    """Returns a boolean (..., N): the frames inside a silent stretch, by the true opening (..., N)."""
    flat = np.asarray(truth).reshape(-1, truth.shape[-1])
    inside = np.zeros(flat.shape, bool)
    for row, values in zip(inside, flat, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], values < SILENT, [0]])))
        for start, end in edges.reshape(-1, 2):
            if end - start >= STRETCH:
                row[start + 1 : end - 1] = True
    return inside.reshape(truth.shape)


def silence_ratio(found: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean measured opening in silent stretches divided by that in voiced frames.

    Negative readings count as 0; no floor is subtracted.

    Args:
        found: measured openings (..., N) of all videos.
        truth: true openings (..., N).

    Returns:
        The ratio, or NaN if there are no silent or no voiced frames.
    """
    silent, voiced = silent_frames(truth), np.asarray(truth) > VOICED
    if not silent.any() or not voiced.any():
        return float("nan")
    opening = np.maximum(found, 0)
    return float(opening[silent].mean() / max(opening[voiced].mean(), 1e-9))

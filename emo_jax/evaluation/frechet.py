"""Frechet distance between two sets of features, each taken as a normal distribution (Heusel et al. 2017, FID).

``d = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))``, with unbiased covariances, as in pytorch-fid and TF-GAN.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Computes the Frechet distance between two sets of features.

    The trace of the root is the sum of the singular values of R1 R2^T, where S = R^T R. Neither a matrix root nor a
    constant on the diagonal is needed, so that it is as accurate with fewer samples than features, where pytorch-fid
    adds 1e-6 to the diagonal if its root is not finite.

    Args:
        first: (N, D) features.
        second: (M, D) features.

    Returns:
        The distance, at least 0 up to rounding.

    Raises:
        ValueError: the sets differ in D, have fewer than two samples, or hold values that are not finite.
    """
    first, second = (np.asarray(features, np.float64) for features in (first, second))
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[1]:
            raise ValueError(
                f"features have shapes {first.shape} and {second.shape}; expected two sets of at least 2 samples each, "
                "with equally many features"
            )
        if not np.isfinite(features).all():
            raise ValueError("features are not finite; check the weights of the network and the videos")
    (mean1, root1), (mean2, root2) = _moments(first), _moments(second)
    cross = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    return float(((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * cross)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean (D,) and R (min(N, D), D), for which R^T R is the covariance."""
    mean = features.mean(0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root

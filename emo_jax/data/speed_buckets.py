"""Centres and radii of the speed buckets (EMO 3.2, w^f), fitted to the speeds that a data set holds."""

from __future__ import annotations

import numpy as np

LEAST_RADIUS = 0.02  # degrees per frame: below it a bucket would answer to noise alone


def fit_buckets(speeds: np.ndarray, count: int) -> tuple[list[float], list[float]]:
    """(centres, radii) of `count` buckets in degrees per frame: each holds about as many of the speeds as any other.

    Centres are the middle quantiles of equal shares, at least LEAST_RADIUS apart; radii the mean distance to the
    neighbours, so that where one bucket has faded the next has risen. speeds: (N,), not negative.

    Raises ValueError where there are fewer than two buckets or fewer speeds than buckets.
    """
    speeds = np.asarray(speeds, np.float64)
    if count < 2 or len(speeds) < count:
        raise ValueError(f"{count} buckets of {len(speeds)} speeds; expected 2 or more buckets, and a speed for each")
    centres = np.quantile(speeds, (np.arange(count) + 0.5) / count)
    for k in range(1, count):
        centres[k] = max(centres[k], centres[k - 1] + LEAST_RADIUS)
    gaps = np.diff(centres)
    radii = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
    return [round(float(value), 3) for value in centres], [round(float(value), 3) for value in radii]


def config_lines(centres: list[float], radii: list[float]) -> str:
    """The buckets as lines of `emo train`'s command line."""
    join = ", ".join
    return (
        f"--config.model.speed.centres='({join(f'{value:g}' for value in centres)})'\n"
        f"--config.model.speed.radii='({join(f'{value:g}' for value in radii)})'"
    )

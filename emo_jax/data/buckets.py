"""Buckets of image sizes, so that frames of other aspect ratios than the square are not cut to one.

All samples of a batch have the size of one bucket, and batches of all buckets follow each other. A training step is
compiled once for each bucket.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

_BATCHES = 2**40


def nearest_bucket(aspects: np.ndarray, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the number of the bucket whose aspect ratio is nearest to each of the given ones.

    Args:
        aspects: width / height of frames, (records,).
        sizes: (height, width) of the buckets.

    Returns:
        (records,) integers; of equally near buckets, the first.
    """
    ratios = np.array([width / height for height, width in sizes])
    return np.abs(np.log(aspects)[:, None] - np.log(ratios)).argmin(axis=1)


class BucketedSamples(grain.MapDataset):
    """Sample i is row i % batch_size of batch i // batch_size; the samples of a batch come from one bucket."""

    def __init__(self, buckets: Sequence[grain.MapDataset], weights: Sequence[float], batch_size: int):
        """Initializes the dataset.

        Args:
            buckets: the samples of each bucket; they are drawn again in another order when all are used up.
            weights: how often a batch comes from each bucket, relative to the others.
            batch_size: samples per batch, over all processes.
        """
        super().__init__(buckets)
        self._batch_size = batch_size
        batches = [
            grain.MapDataset.range(_BATCHES).map(functools.partial(_pair, bucket)) for bucket in range(len(buckets))
        ]
        self._batches = grain.MapDataset.mix(batches, weights)

    def __len__(self) -> int:
        return sum(map(len, self._parents))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._batch_size)
        bucket, number = self._batches[batch]
        return self._parents[bucket][number * self._batch_size + row]


def _pair(bucket: int, number: int) -> tuple[int, int]:
    return bucket, int(number)

"""Batches whose place in the data is one number, whatever the number of processes, workers and clips a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain


class ElasticDataset(grain.IterDataset):
    """The share of one process of batches of `batch_size` samples, one batch behind the other.

    An iterator's state is the number of samples that all processes have taken so far, the same in all of them. So any
    one's state serves all, and other numbers of processes, workers or clips a batch go on where these stopped. Grain's
    own ElasticIterator deals samples out in turns: a step's batch would be in another order with more processes.

    Args:
        samples: not batched; sample i depends on i only.
        batch_size: samples per batch of all processes together.
        rows: which of them this process makes, in this order.
        workers: processes that make the batches; 0: threads of this one.
        ahead: batches made ahead, per worker.
    """

    def __init__(self, samples: grain.MapDataset, batch_size: int, rows: Sequence[int], *, workers: int, ahead: int):
        super().__init__()
        self._samples, self.batch_size, self._rows = samples, batch_size, rows
        self._workers, self._ahead = workers, ahead

    def starting_at(self, sample: int) -> grain.IterDataset:
        """This process's batches from that sample on."""
        # The share is cut last: draws then depend on the place in the epoch, and no two processes draw alike.
        share = _Rows(self._samples[sample:], self.batch_size, self._rows)
        threads = 1 if self._workers else min(4, self._ahead)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._ahead)
        result = share.batch(len(self._rows), drop_remainder=True).to_iter_dataset(options)
        if self._workers:
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._ahead)
            result = result.mp_prefetch(options)
        return result

    def __iter__(self) -> ElasticIterator:
        return ElasticIterator(self)


class _Rows(grain.MapDataset):
    """The samples at some rows of each whole batch, one batch's behind the other's."""

    def __init__(self, samples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(samples)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[row]]


class ElasticIterator(grain.DatasetIterator):
    """See `ElasticDataset`. Close it after use if there are workers."""

    def __init__(self, dataset: ElasticDataset):
        super().__init__()
        self._dataset, self._taken, self._batches = dataset, 0, None

    def __next__(self) -> Any:
        if self._closed:
            raise ValueError("this iterator over the data is closed; make another")
        batch = next(self._started())
        self._taken += self._dataset.batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"samples": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where the iterator was, perhaps one of other processes and workers, whose state this is."""
        self._stop()
        self._taken = state["samples"] if "samples" in state else _steps(state) * self._dataset.batch_size

    def start_prefetch(self) -> None:
        self._started().start_prefetch()

    def close(self) -> None:
        self._stop()
        self._closed = True

    def _started(self) -> grain.DatasetIterator:
        if self._batches is None:
            self._batches = iter(self._dataset.starting_at(self._taken))
        return self._batches

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _steps(state: dict[str, Any]) -> int:
    """Batches taken, from what Grain's own iterators saved before there was this one: without and with workers.

    How large these were they did not say: they are taken to have been as large as now.
    """
    if "next_index" in state:
        return state["next_index"]
    return sum(worker["next_index"] for worker in state["iterators_in_use_states"])

"""Resumable batches whose state is one number, whatever the number of processes, workers and samples per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain


class ElasticDataset(grain.IterDataset):
    """Iterates over one process's rows of consecutive global batches.

    The state of an iterator is the number of samples that all processes have consumed together. It is equal in all
    processes, so a run can resume with another number of processes, workers or samples per batch. Grain's own
    ElasticIterator deals samples to processes in turn, which makes the content of a global batch depend on the number
    of processes.
    """

    def __init__(
        self,
        samples: grain.MapDataset,
        batch_size: int,
        rows: Sequence[int],
        *,
        workers: int,
        prefetch: int,
        aligned: bool = False,
    ):
        """Initializes the dataset.

        Args:
            samples: unbatched samples; sample i may depend on i only.
            batch_size: samples per global batch, over all processes.
            rows: rows of each global batch that this process reads, in this order.
            workers: number of worker processes; 0 reads in threads of this process.
            prefetch: batches read ahead, per worker.
            aligned: whether batches begin at multiples of `batch_size` only. After a change of `batch_size`, up to one
                batch of samples is then left out.
        """
        super().__init__()
        self._samples, self.batch_size, self._rows = samples, batch_size, rows
        self._workers, self._prefetch, self._aligned = workers, prefetch, aligned

    def batches_from(self, sample: int) -> grain.IterDataset:
        """Returns this process's batches from the given global sample on."""
        if self._aligned:
            sample = -(-sample // self.batch_size) * self.batch_size
        # Rows are selected last: random draws then depend on the position in the epoch alone.
        rows = _SelectRows(self._samples[sample:], self.batch_size, self._rows)
        threads = 1 if self._workers else min(4, self._prefetch)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch)
        batches = rows.batch(len(self._rows), drop_remainder=True).to_iter_dataset(options)
        if self._workers:
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._prefetch)
            batches = batches.mp_prefetch(options)
        return batches

    def __iter__(self) -> ElasticIterator:
        return ElasticIterator(self)


class _SelectRows(grain.MapDataset):
    """Keeps the given rows of each complete batch."""

    def __init__(self, samples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(samples)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[row]]


class ElasticIterator(grain.DatasetIterator):
    """Iterator over an `ElasticDataset`. Close it after use if it has worker processes."""

    def __init__(self, dataset: ElasticDataset):
        """Starts before the first batch; workers start with the first read."""
        super().__init__()
        self._dataset = dataset
        self._samples_read = 0
        self._batches: grain.DatasetIterator | None = None

    def __next__(self) -> Any:
        if self._closed:
            raise ValueError("the data iterator is closed; make a new one")
        batch = next(self._open())
        self._samples_read += self._dataset.batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the number of samples that all processes have consumed."""
        return {"samples": self._samples_read}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a state of any iterator over the same samples, also one saved by Grain's own iterators."""
        self._stop()
        if "samples" in state:
            self._samples_read = state["samples"]
        else:
            self._samples_read = _batches_in_grain_state(state) * self._dataset.batch_size

    def start_prefetch(self) -> None:
        """Starts to read ahead before the first batch is requested."""
        self._open().start_prefetch()

    def close(self) -> None:
        """Stops the workers; the iterator cannot be used afterwards."""
        self._stop()
        self._closed = True

    def _open(self) -> grain.DatasetIterator:
        if self._batches is None:
            self._batches = iter(self._dataset.batches_from(self._samples_read))
        return self._batches

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _batches_in_grain_state(state: dict[str, Any]) -> int:
    """Returns the number of batches consumed in a state of Grain's iterators, without or with workers.

    These states do not contain the batch size; it is assumed to be the current one.
    """
    if "next_index" in state:
        return state["next_index"]
    return sum(worker["next_index"] for worker in state["iterators_in_use_states"])

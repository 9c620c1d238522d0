"""Batches whose place in the data is one number, whatever the number of processes, workers and clips a batch."""

from __future__ import annotations

from typing import Any

import grain


class ElasticDataset(grain.IterDataset):
    """The share of one process of batches of `batch_size * process_count` samples, one batch behind the other.

    An iterator's state is the number of samples that all processes have taken so far, the same in all of them. So any
    one's state serves all, and other numbers of processes, workers or clips a batch go on where these stopped. Grain's
    own ElasticIterator deals samples out in turns: a step's batch would be in another order with more processes.

    Args:
        samples: not batched; sample i depends on i only.
        batch_size: samples per batch of this process.
        whole: end all processes at the same step; to be left out where `samples` has no end.
        workers: processes that make the batches; 0: threads of this one.
        ahead: batches made ahead, per worker.
    """

    def __init__(
        self,
        samples: grain.MapDataset,
        batch_size: int,
        process_index: int,
        process_count: int,
        *,
        whole: bool,
        workers: int,
        ahead: int,
    ):
        super().__init__()
        self._samples, self._batch_size, self._whole = samples, batch_size, whole
        self._process, self._processes = process_index, process_count
        self._workers, self._ahead = workers, ahead

    @property
    def step_size(self) -> int:
        """Samples that all processes take in one step."""
        return self._batch_size * self._processes

    def starting_at(self, sample: int) -> grain.IterDataset:
        """This process's batches from that sample on."""
        # The share is cut last: draws then depend on the place in the epoch, and no two processes draw alike.
        batches = self._samples[sample:].batch(self._batch_size, drop_remainder=True)
        if self._whole:
            batches = batches[: len(batches) // self._processes * self._processes]
        batches = batches[self._process :: self._processes]
        threads = 1 if self._workers else min(4, self._ahead)
        result = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._ahead))
        if self._workers:
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._ahead)
            result = result.mp_prefetch(options)
        return result

    def __iter__(self) -> ElasticIterator:
        return ElasticIterator(self)


class ElasticIterator(grain.DatasetIterator):
    """See `ElasticDataset`. Close it after use if there are workers."""

    def __init__(self, dataset: ElasticDataset):
        super().__init__()
        self._dataset, self._taken, self._batches = dataset, 0, None

    def __next__(self) -> Any:
        if self._closed:
            raise ValueError("this iterator over the data is closed; make another")
        batch = next(self._started())
        self._taken += self._dataset.step_size
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"samples": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where the iterator was, perhaps one of other processes and workers, whose state this is."""
        self._stop()
        self._taken = state["samples"] if "samples" in state else _steps(state) * self._dataset.step_size

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

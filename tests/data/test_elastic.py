"""The iterator state is one number: processes, workers and batch size may change in the middle of an epoch."""

import itertools

import numpy as np
import pytest

from emo_jax.data import pipeline, records
from tests.data.clips import assert_same, configs, plain_record, record_number, samples

RECORDS = 24


@pytest.fixture(scope="module")
def small_records(tmp_path_factory):
    """24 records of 8 frames, which are identified by their speed, 100 times their number."""

    def record(k):
        frames = np.full((8, 32, 32, 3), 10 * k, np.uint8)
        return plain_record(f"small-{k}", frames, 25, (8, 8, 24, 24), 100 * k + np.arange(8))

    directory = tmp_path_factory.mktemp("elastic") / "records"
    records.write_records(directory, {"train": lambda: map(record, range(RECORDS))}, progress=False)
    return directory


def batches(directory, processes, batch_size, steps, state=None, **options):
    """Returns the samples that all processes read in `steps` steps, and the state of the last process."""
    data, clip = configs(directory, image_size=(16, 16), frames=2, flip_prob=0.5, num_workers=options.pop("workers", 0))
    options |= dict(batch_size=processes * batch_size, seed=5)
    shares = [range(p * batch_size, (p + 1) * batch_size) for p in range(processes)]
    iterators = [pipeline.make_iterator(data, clip, rows=rows, **options) for rows in shares]
    for iterator in iterators:
        if state is not None:
            iterator.set_state(state)
        iterator.start_prefetch()
    shares = [list(itertools.islice(iterator, steps)) for iterator in iterators]
    after = iterators[-1].get_state()
    for iterator in iterators:
        iterator.close()
    return samples(itertools.chain(*zip(*shares, strict=True))), after


@pytest.mark.parametrize("first, then", [
    (dict(processes=2, batch_size=2, steps=3), dict(processes=1, batch_size=4, steps=3)),
    (dict(processes=1, batch_size=4, steps=3), dict(processes=4, batch_size=1, steps=3)),
    (dict(processes=2, batch_size=2, steps=3), dict(processes=1, batch_size=3, steps=4)),  # another batch size
    (dict(processes=2, batch_size=5, steps=1), dict(processes=2, batch_size=1, steps=7)),
])  # fmt: skip
def test_another_number_of_processes_resumes(small_records, first, then):
    uninterrupted, _ = batches(small_records, 1, 24, 2)
    head, state = batches(small_records, **first)
    tail, state = batches(small_records, **then, state=state)
    assert sorted(map(record_number, head + tail)) == list(range(RECORDS))  # exactly one epoch
    more, state = batches(small_records, **first, state=state)  # into the next epoch
    assert_same(uninterrupted[: len(head + tail + more)], head + tail + more)
    assert state == {"samples": len(head + tail + more)}


@pytest.mark.slow
def test_workers_do_not_change_batches_and_resume(small_records):
    """Two processes with two workers each, then one process with one worker, then one without workers."""
    uninterrupted, _ = batches(small_records, processes=1, batch_size=4, steps=6)
    head, state = batches(small_records, processes=2, batch_size=2, steps=2, workers=2)
    middle, state = batches(small_records, processes=1, batch_size=4, steps=2, workers=1, state=state)
    tail, _ = batches(small_records, processes=1, batch_size=4, steps=2, state=state)
    assert sorted(map(record_number, head + middle + tail)) == list(range(RECORDS))
    assert_same(uninterrupted, head + middle + tail)


@pytest.mark.parametrize("state", [
    {"next_index": 3},
    {"next_index_in_cycle": 1, "iterators_in_use_states": [{"next_index": 2}, {"next_index": 1}], "exhausted": [0, 0]},
])  # fmt: skip
def test_states_of_grain_iterators_are_accepted(small_records, state):
    uninterrupted, _ = batches(small_records, processes=1, batch_size=4, steps=5)
    rest, after = batches(small_records, processes=2, batch_size=2, steps=2, state=state)
    assert_same(uninterrupted[12:], rest)
    assert after == {"samples": 20}


def test_finite_epoch_ends_after_resuming(small_records):
    head, state = batches(small_records, processes=1, batch_size=5, steps=2, epochs=1)
    tail, state = batches(small_records, processes=2, batch_size=2, steps=99, state=state, epochs=1)
    assert len(head) == 10 and len(tail) == 12  # two of the 24 fill no batch
    assert len(set(map(record_number, head + tail))) == 22
    tail, state = batches(small_records, processes=1, batch_size=2, steps=99, state=state, epochs=1)
    assert len(tail) == 2 and state == {"samples": 24}
    assert batches(small_records, processes=1, batch_size=2, steps=99, state=state, epochs=1)[0] == []


def test_state_can_be_set_back_and_closed_iterator_raises(small_records):
    iterator = pipeline.make_iterator(*configs(small_records, image_size=(16, 16)), batch_size=3, seed=1)
    start = iterator.get_state()
    first = [next(iterator), next(iterator)]
    iterator.set_state(start)
    assert_same(first, [next(iterator), next(iterator)])
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)

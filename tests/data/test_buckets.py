"""Buckets: every batch has the size of one bucket, and each record goes to the nearest one."""

import itertools
import json
import shutil
import types

import numpy as np
import pytest

from emo_jax.data import pipeline, records
from emo_jax.data.buckets import nearest_bucket
from tests.data.clips import assert_same, configs, plain_record, record_number, samples

SIZES = ((32, 32), (24, 48), (48, 24))
FRAMES = [(32, 32)] * 6 + [(32, 60)] * 4 + [(60, 34)] * 2
"""(height, width) of the records' frames."""
NEAREST = [0] * 6 + [1] * 4 + [2] * 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Records of three shapes, which are identified by their speed, 100 times their number."""

    def record(k):
        frames = np.full((8, *FRAMES[k], 3), 20 * k, np.uint8)
        return plain_record(f"shape-{k}", frames, 25, (8, 8, 24, 24), 100 * k + np.arange(8))

    directory = tmp_path_factory.mktemp("buckets") / "records"
    records.write_records(directory, {"train": lambda: map(record, range(len(FRAMES)))}, progress=False)
    return directory


def batches(directory, count, batch_size=2, rows=None, state=None, **changes):
    data, clip = configs(directory, image_size=(32, 32), frames=2, **changes)
    data.buckets = SIZES
    iterator = pipeline.make_iterator(data, clip, batch_size=batch_size, seed=3, rows=rows)
    if state is not None:
        iterator.set_state(state)
    found = list(itertools.islice(iterator, count))
    after = iterator.get_state()
    iterator.close()
    return found, after


def test_the_nearest_bucket_is_by_the_ratio_of_the_aspects():
    sizes = ((64, 64), (64, 128), (128, 64))
    aspects = np.array([1.0, 1.4, 1.42, 3.0, 0.71, 0.7, 0.1])
    assert nearest_bucket(aspects, sizes).tolist() == [0, 0, 1, 1, 0, 2, 2]


def test_batches_have_the_size_of_the_bucket_of_all_their_records(directory):
    found, _ = batches(directory, 24)
    counts = np.zeros(3, int)
    for batch in found:
        size = batch["frames"].shape[2:4]
        assert batch["mask"].shape[1:3] == batch["reference"].shape[1:3] == batch["motion"].shape[2:4] == size
        assert {NEAREST[record_number(sample)] for sample in samples([batch])} == {SIZES.index(size)}
        counts[SIZES.index(size)] += 1
    assert counts.tolist() == [12, 8, 4]  # as the records are divided
    drawn = [record_number(sample) for sample in samples(found)]
    assert np.bincount(drawn).tolist() == [4] * len(FRAMES)  # once in each of four epochs


def test_processes_share_batches_and_a_run_resumes_exactly(directory):
    complete, _ = batches(directory, 6)
    for row in (0, 1):
        part, _ = batches(directory, 6, rows=[row])
        assert_same(samples(part), samples(complete)[row::2])
    _, state = batches(directory, 2)
    rest, _ = batches(directory, 4, state=state)
    assert_same(samples(rest), samples(complete[2:]))
    with_workers, _ = batches(directory, 6, num_workers=1)
    assert_same(samples(with_workers), samples(complete))


def test_another_batch_size_begins_at_a_complete_batch(directory):
    _, state = batches(directory, 3)  # six samples
    found, after = batches(directory, 2, batch_size=4, state=state)
    expected, _ = batches(directory, 4, batch_size=4)
    assert_same(samples(found), samples(expected[2:]))
    following, _ = batches(directory, 1, batch_size=4, state=after)
    assert_same(samples(following), samples(batches(directory, 5, batch_size=4)[0][4:]))


def test_records_without_stored_aspects_are_read(directory, tmp_path):
    source = records.open_records(directory, "train")
    expected = sorted(width / height for height, width in FRAMES)
    np.testing.assert_allclose(sorted(source.aspects()), expected)
    older = shutil.copytree(directory, tmp_path / "older")
    index = json.loads((older / "index.json").read_text())
    del index["train"]["aspect"]
    (older / "index.json").write_text(json.dumps(index))
    np.testing.assert_allclose(records.open_records(older, "train").aspects(), source.aspects())


def test_latents_have_one_size_only(directory, monkeypatch):
    monkeypatch.setattr(pipeline, "common_layout", lambda *arguments: types.SimpleNamespace())
    with pytest.raises(ValueError, match=r"data\.buckets needs records"):
        batches(directory, 1)

import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from emo_jax.data import records


def test_round_trip(record_dir, make_record):
    source = records.open_records(record_dir, "train")
    found = {record["id"]: record for record in (source[i] for i in range(len(source)))}
    assert sorted(found) == [f"head-{k}" for k in range(6)]
    for k in range(6):
        want = dataclasses.asdict(make_record(k))
        got = found[f"head-{k}"]
        assert set(got) == set(want)
        for name in ("id", "source", "licence", "video"):
            assert got[name] == want[name] and type(got[name]) is type(want[name])
        for name in ("audio", "boxes", "rotation", "speed", "mouth", "appearance", "fps"):
            np.testing.assert_array_equal(got[name], want[name])
        assert got["audio"].dtype == np.int16 and got["boxes"].dtype == np.float32


def test_landmarks_come_back_in_half_precision(tmp_path, make_record):
    marks = np.random.default_rng(0).uniform(0, 64, (48, 5, 2)).astype(np.float32)
    record = dataclasses.replace(make_record(2), landmarks=marks)
    records.write_records(tmp_path / "out", {"train": lambda: [record]}, progress=False)
    got = records.open_records(tmp_path / "out", "train")[0]["landmarks"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, marks, atol=0.02)
    with pytest.raises(ValueError, match=r"landmarks have shape \(47, 5, 2\), expected \(48, P, 2\)"):
        records.record_example(dataclasses.replace(record, landmarks=marks[1:]))


def test_records_of_version_1_0_0_still_open(tmp_path, make_record, monkeypatch):
    later, features, example = records._LATER_FIELDS, records.record_features(), records.record_example
    old = tfds.features.FeaturesDict({name: features[name] for name in features if name not in later})
    with monkeypatch.context() as patch:
        patch.setattr(records, "record_features", lambda: old)
        patch.setattr(records, "record_example", lambda record: {name: example(record)[name] for name in old})
        patch.setattr(records, "write_index", lambda _: None)
        records.write_records(tmp_path / "old", {"train": lambda: [make_record(2)]}, progress=False)
    got, want = records.open_records(tmp_path / "old", "train")[0], dataclasses.asdict(make_record(2))
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert records.open_records(tmp_path / "old", "train").index()["frames"].tolist() == [48]


def test_source_pickles_by_path(record_dir):
    source = records.open_records(record_dir, "train")
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert pickle.loads(data)[3]["id"] == source[3]["id"]


def test_index_agrees_with_the_records(record_dir):
    source = records.open_records(record_dir, "train")
    index = source.index()
    for i in range(len(source)):
        k = int(source[i]["id"][-1])
        assert (index["frames"][i], index["fps"][i], index["sound"][i]) == (40 + 4 * k, 25, k not in (1, 4))


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train[1:-1]", "train[50%:]+test"])
def test_the_index_of_a_slice_is_cut_out_of_the_stored_one(record_dir, monkeypatch, split):
    source = records.open_records(record_dir, split)
    true = records._scan(source)
    monkeypatch.setattr(records, "_scan", None)  # which reads every video
    found = source.index()
    assert found.keys() == true.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, true[name])
    monkeypatch.setattr(records, "INDEX_FILE", "away")
    assert source.index() is found and len(pickle.dumps(source)) < 1000


def test_without_an_index_every_record_is_read_once(tmp_path, make_record, monkeypatch):
    records.write_records(tmp_path / "out", {"train": lambda: [make_record(0), make_record(1)]}, progress=False)
    (tmp_path / "out" / records.INDEX_FILE).unlink()
    source, scan, calls = records.open_records(tmp_path / "out", "train[1:]"), records._scan, []
    monkeypatch.setattr(records, "_scan", lambda source: calls.append(source) or scan(source))
    for _ in range(2):
        assert source.index()["frames"].tolist() == [len(source[0]["boxes"])]
    assert calls == [source]


def test_a_failed_run_leaves_nothing(tmp_path, make_record):
    def stops():
        yield make_record(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(tmp_path / "out", {"train": stops}, progress=False)
    assert os.listdir(tmp_path) == []


def test_writing_is_reproducible_and_quiet(tmp_path, make_record, capfd):
    made = [make_record(0), make_record(1)]
    for name in "ab":
        records.write_records(tmp_path / name, {"train": lambda: made}, shards=9, progress=False)
    ids = [[records.open_records(tmp_path / name, "train")[i]["id"] for i in range(2)] for name in "ab"]
    assert ids[0] == ids[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"audio": np.zeros(5, np.int16)}, r"audio is int16\(5,\), expected int16\(25600,\)"),
        ({"audio": np.zeros(25600, np.float32)}, "audio is float32"),
        ({"speed": np.zeros(39)}, r"speed has shape \(39,\), expected \(40,\)"),
        ({"boxes": np.full((40, 4), np.nan)}, "boxes holds values that are not finite"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"video": b"x"}, "no video"),
    ],
)
def test_malformed_records_are_refused(make_record, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        records.record_example(dataclasses.replace(make_record(0), **change))
    assert "\n" not in str(caught.value)


def test_bad_directories_are_one_line(tmp_path, record_dir, make_record):
    (tmp_path / "empty").mkdir()
    record = make_record(0)
    for call, message in [
        (lambda: records.open_records(tmp_path / "nowhere", "train"), "is not a directory"),
        (lambda: records.open_records(tmp_path / "empty", "train"), "holds no records"),
        (lambda: records.open_records(record_dir, "dev"), "no split 'dev'; it has: test, train"),
        (lambda: records.write_records(record_dir, {"train": list}), "exists already"),
        (lambda: records.write_records(tmp_path / "x", {"a": list}, progress=False), "holds no record"),
        (lambda: records.write_records(tmp_path / "x", {}), "at least one"),
        (
            lambda: records.write_records(tmp_path / "x", {"a": lambda: [record, record]}, progress=False),
            "two records with the id 'head-0'",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["empty"]


def test_no_tensorflow_and_no_jax(record_dir):
    code = (
        "import sys; from emo_jax.data import records; "
        f"records.open_records({str(record_dir)!r}, 'train')[0]; "
        "print([m for m in ('jax', 'tensorflow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

"""Writing, reading and indexing of records."""

import dataclasses
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from emo_jax.data import records
from emo_jax.media.moments import audio_moments


def test_round_trip(record_dir, make_record):
    source = records.open_records(record_dir, "train")
    by_id = {record["id"]: record for record in (source[i] for i in range(len(source)))}
    assert sorted(by_id) == [f"head-{k}" for k in range(6)]
    for k in range(6):
        want = dataclasses.asdict(make_record(k))
        got = by_id[f"head-{k}"]
        assert set(got) == set(want)
        for name in ("id", "source", "licence", "video"):
            assert got[name] == want[name] and type(got[name]) is type(want[name])
        for name in ("audio", "boxes", "rotation", "speed", "mouth", "appearance", "fps"):
            np.testing.assert_array_equal(got[name], want[name])
        np.testing.assert_array_equal(got["audio_moments"], audio_moments(want["audio"]))
        assert got["audio"].dtype == np.int16 and got["boxes"].dtype == np.float32


def test_landmarks_are_stored_in_half_precision(tmp_path, make_record):
    marks = np.random.default_rng(0).uniform(0, 64, (48, 5, 2)).astype(np.float32)
    record = dataclasses.replace(make_record(2), landmarks=marks)
    records.write_records(tmp_path / "out", {"train": lambda: [record]}, progress=False)
    got = records.open_records(tmp_path / "out", "train")[0]["landmarks"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, marks, atol=0.02)
    with pytest.raises(ValueError, match=r"landmarks .*\(47, 5, 2\).*\(48, P, 2\)"):
        records.record_example(dataclasses.replace(record, landmarks=marks[1:]))


def test_records_of_version_1_0_0_can_be_read(tmp_path, make_record, monkeypatch):
    later, features, example = records._LATER_FIELDS, records.record_features(), records.record_example
    old = tfds.features.FeaturesDict({name: features[name] for name in features if name not in later})
    with monkeypatch.context() as patch:
        patch.setattr(records, "record_features", lambda: old)
        patch.setattr(records, "record_example", lambda record: {name: example(record)[name] for name in old})
        patch.setattr(records, "write_index", lambda _: None)
        records.write_records(tmp_path / "old", {"train": lambda: [make_record(2)]}, progress=False)
    got, want = records.open_records(tmp_path / "old", "train")[0], dataclasses.asdict(make_record(2))
    assert set(got) == set(want)
    want["audio_moments"] = audio_moments(want["audio"])
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert records.open_records(tmp_path / "old", "train").index()["frames"].tolist() == [48]


def test_source_pickles_as_its_path(record_dir):
    source = records.open_records(record_dir, "train")
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert pickle.loads(data)[3]["id"] == source[3]["id"]


def test_index_matches_the_records(record_dir):
    source = records.open_records(record_dir, "train")
    index = source.index()
    for i in range(len(source)):
        k = int(source[i]["id"][-1])
        assert (index["frames"][i], index["fps"][i], index["sound"][i]) == (40 + 4 * k, 25, k not in (1, 4))


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train[1:-1]", "train[50%:]+test"])
def test_index_of_a_slice_comes_from_the_stored_index(record_dir, monkeypatch, split):
    source = records.open_records(record_dir, split)
    true = records._scan(source)
    monkeypatch.setattr(records, "_scan", None)  # it would read every record
    index = source.index() | {"reliable_speed": source.reliable_speed(), "aspect": source.aspects()}
    assert index.keys() == true.keys()
    for name, value in index.items():
        np.testing.assert_array_equal(value, true[name])
    monkeypatch.setattr(records, "INDEX_FILE", "away")
    assert source.index().keys() < index.keys() and len(pickle.dumps(source)) < 1000


def test_missing_index_reads_every_record_once(tmp_path, make_record, monkeypatch):
    records.write_records(tmp_path / "out", {"train": lambda: [make_record(0), make_record(1)]}, progress=False)
    (tmp_path / "out" / records.INDEX_FILE).unlink()
    source, scan, calls = records.open_records(tmp_path / "out", "train[1:]"), records._scan, []
    monkeypatch.setattr(records, "_scan", lambda source: calls.append(source) or scan(source))
    for _ in range(2):
        assert source.index()["frames"].tolist() == [len(source[0]["boxes"])]
    assert calls == [source]


def test_failed_run_leaves_no_files(tmp_path, make_record):
    def stops():
        yield make_record(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(tmp_path / "out", {"train": stops}, progress=False)
    assert os.listdir(tmp_path) == []


def test_writing_is_reproducible_and_prints_nothing(tmp_path, make_record, capfd):
    made = [make_record(0), make_record(1)]
    for name in "ab":
        records.write_records(tmp_path / name, {"train": lambda: made}, shards=9, progress=False)
    ids = [[records.open_records(tmp_path / name, "train")[i]["id"] for i in range(2)] for name in "ab"]
    assert ids[0] == ids[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"audio": np.zeros(5, np.int16)}, r"audio is int16\(5,\).*25600"),
        ({"audio": np.zeros(25600, np.float32)}, "audio is float32"),
        ({"speed": np.zeros(39)}, r"speed .*\(39,\).*\(40,\)"),
        ({"boxes": np.full((40, 4), np.nan)}, "boxes .*not finite"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"video": b"x"}, "no video"),
    ],
)
def test_malformed_records_raise(make_record, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        records.record_example(dataclasses.replace(make_record(0), **change))
    assert "\n" not in str(caught.value)


def test_invalid_directories_raise(tmp_path, record_dir, make_record):
    (tmp_path / "empty").mkdir()
    record = make_record(0)
    for call, message in [
        (lambda: records.open_records(tmp_path / "nowhere", "train"), "nowhere"),
        (lambda: records.open_records(tmp_path / "empty", "train"), "empty"),
        (lambda: records.open_records(record_dir, "dev"), "'dev'.*test, train"),
        (lambda: records.write_records(record_dir, {"train": list}), "exists"),
        (lambda: records.write_records(tmp_path / "x", {"a": list}, progress=False), "split 'a'"),
        (lambda: records.write_records(tmp_path / "x", {}), "splits"),
        (
            lambda: records.write_records(tmp_path / "x", {"a": lambda: [record, record]}, progress=False),
            "head-0",
        ),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["empty"]


@pytest.mark.parametrize("file, field, value, name", [
    ("index.json", ("train", "frames", 0), 1.5, r"train.frames\[0\] is 1.5"),
    ("index.json", ("train", "frames"), 40, "train.frames"),
    ("index.json", ("train", "fps", 1), -25, r"train.fps\[1\]"),
    ("dataset_info.json", ("splits", 0, "shardLengths", 0), "-3", r"splits\[0\].shardLengths\[0\]"),
    ("dataset_info.json", ("splits", 0, "shardLengths", 0), 3, r"splits\[0\].shardLengths\[0\]"),
    ("dataset_info.json", ("splits", 0, "shardLengths", 0), str(10**30), r"splits\[0\].shardLengths\[0\]"),
    ("dataset_info.json", ("splits", 0, "shardLengths", 0), "7", "dataset_info.json"),
    ("dataset_info.json", ("splits",), {}, "splits"),
    ("dataset_info.json", ("version",), [], "version"),
    ("features.json", ("featuresDict", "features", "audio", "tensor", "dtype"), "int8", "audio"),
    ("features.json", ("featuresDict", "features", "boxes", "tensor", "shape"), 4, "boxes"),
    ("features.json", ("featuresDict",), None, "featuresDict"),
])  # fmt: skip
def test_damaged_json_error_names_the_field(record_dir, tmp_path, file, field, value, name):
    shutil.copytree(record_dir, tmp_path / "out")
    content = json.loads((tmp_path / "out" / file).read_text())
    parent = content
    for key in field[:-1]:
        parent = parent[key]
    parent[field[-1]] = value
    (tmp_path / "out" / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=name) as caught:
        records.open_records(tmp_path / "out", "train").index()
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_missing_shard_is_named(record_dir, tmp_path):
    shutil.copytree(record_dir, tmp_path / "out")
    (tmp_path / "out" / "emo_records-train.array_record-00001-of-00002").unlink()
    with pytest.raises(ValueError, match="00001-of-00002 is missing"):
        records.open_records(tmp_path / "out", "train")


@pytest.mark.parametrize("size", [1000, -1])
def test_damaged_shard_is_named(record_dir, tmp_path, size):
    shutil.copytree(record_dir, tmp_path / "out")
    shard = tmp_path / "out" / "emo_records-train.array_record-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match="00001-of-00002 is damaged"):
        records.open_records(tmp_path / "out", "train")

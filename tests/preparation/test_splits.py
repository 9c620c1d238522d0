"""Videos are held out by person, and people in both splits are found."""

import json

import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.data.records import open_records
from emo_jax.preparation.prepare import prepare_videos
from emo_jax.preparation.splits import compare_people, held_out_videos, same_people
from tests.faces import heads
from tests.preparation.conftest import SMALL

NAMES = [f"id{person:02d}_{take}.mp4" for person in range(20) for take in range(3)]


def test_all_videos_of_a_person_are_in_one_split():
    found = held_out_videos(NAMES, 0.1, r"^(id\d+)_")
    assert len(found) == 6 and len({name[:4] for name in found}) == 2
    assert found == held_out_videos(NAMES[::-1], 0.1, r"id\d+")  # neither the order nor a group matters
    assert len(held_out_videos(NAMES, 0.1)) == 6 and held_out_videos(NAMES, 0.0) == set()
    assert len({n[:4] for n in held_out_videos(NAMES[:6], 0.001, r"id\d+")}) == 1
    assert len({n[:4] for n in held_out_videos(NAMES[:6], 0.999, r"id\d+")}) == 1


@pytest.mark.parametrize("names, share, expression, word", [
    (NAMES, 1.0, "", "--held-out is 1.0"), (NAMES, -0.1, "", "--held-out is -0.1"),
    (NAMES, 0.1, "(", "regular expression"), (NAMES, 0.1, r"^(person\d+)", "id00_0.mp4"),
    (NAMES, 0.0, r"id\d+", "--identity-from"), (NAMES[:3], 0.5, r"id\d+", "one person"),
])  # fmt: skip
def test_invalid_settings_are_named(names, share, expression, word):
    with pytest.raises(ValueError, match=word.replace("(", r"\(")):
        held_out_videos(names, share, expression)


def test_records_are_written_to_two_splits(videos, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--size", "64", "--min-seconds", "1", "--min-face", "40", "--workers", "1", "--held-out", "0.3"]
    assert cli.main(["prepare", "videos", "--input", str(videos / "*.mp4"), "-o", str(out), *options]) == 0
    assert "emo models download" in capsys.readouterr().err
    found = {split: [r["source"] for r in map(open_records(out, split).__getitem__, range(n))]
             for split, n in (("train", 2), ("validation", 1))}  # fmt: skip
    assert found["validation"] == sorted(held_out_videos(["0.mp4", "1.mp4", "2.mp4"], 0.3))
    assert sorted(found["train"] + found["validation"]) == ["0.mp4", "1.mp4", "2.mp4"]
    index = json.loads((out / "index.json").read_text())
    assert {split: len(rows["frames"]) for split, rows in index.items()} == {"train": 2, "validation": 1}
    with pytest.raises(ValueError, match="exists"):
        prepare_videos([str(videos / "*.mp4")], str(out), **SMALL)


def test_a_person_in_both_splits_is_a_warning(face_models, tmp_path, capsys):
    people = dict(a0=2, a1=2, b0=8, c0=11)
    for name, person in people.items():
        heads.write(tmp_path / f"{name}.mp4", heads.heads(30, person=person, size=160))
    held_out = held_out_videos([f"{name}.mp4" for name in people], 0.25)
    assert held_out < {"a0.mp4", "a1.mp4"}  # otherwise choose other names
    options = dict(SMALL, size=128, held_out=0.25)
    prepare_videos([str(tmp_path / "*.mp4")], str(tmp_path / "mixed"), **options)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert "a0.mp4" in line and "a1.mp4" in line and "b0.mp4" not in line
    [match] = map(json.loads, (tmp_path / "mixed" / "same_people.jsonl").read_text().splitlines())
    assert match["similarity"] > 0.5
    prepare_videos([str(tmp_path / "*.mp4")], str(tmp_path / "by_person"), **options, identity_from="^(.)")
    assert same_people(tmp_path / "by_person") == [] and not (tmp_path / "by_person" / "same_people.jsonl").exists()


def people(count, common, seed=0):
    """Embeddings (count, 128) of people who share a direction that is `common` times as long as their own."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 1, (count, 128)) / np.sqrt(128)
    return own + common * rng.normal(0, 1, 128) / np.sqrt(128)


@pytest.mark.parametrize("common", [0.0, 1.0])  # as real people, and as rendered ones, whose raw cosines are about 0.5
@pytest.mark.parametrize("count", [12, 300])
def test_people_of_one_manner_are_told_apart(common, count):
    everyone, rng = people(count, common), np.random.default_rng(1)
    held_out, trained = everyone[: count // 4], everyone[count // 4 :]
    similarity, threshold = compare_people(held_out, trained)
    assert similarity.max() < threshold
    twin = held_out[:1] + 0.4 * rng.normal(0, 1, (1, 128)) / np.sqrt(128)
    similarity, threshold = compare_people(held_out, np.concatenate([trained, twin]))
    assert similarity[0, -1] > threshold and (similarity > threshold).sum() == 1


def test_a_data_set_of_one_person_is_recognized():
    views = people(1, 0.0) + 0.3 * people(10, 0.0, seed=1)
    similarity, threshold = compare_people(views[:3], views[3:])
    assert (similarity > threshold).all()

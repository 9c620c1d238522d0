"""Several sources mixed by weight: films, silent ones and single pictures."""

import itertools
import json

import numpy as np
import pytest
from emo_jax.configs import tiny
from ml_collections import ConfigDict

from emo_jax import config as config_lib
from emo_jax.data import pipeline, records
from emo_jax.training.stages import clip_of, get_stage
from tests.data.test_pipeline import assert_same, configs, plain_record, record_number, samples, take

PICTURES = 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three records of a single picture, told apart by their speed: 900, 1000, 1100."""

    def record(k):
        picture = np.full((1, 48, 64, 3), 80 * k, np.uint8)  # of which 30 frames a second say nothing
        return plain_record(f"picture-{k}", picture, 30, (12, 8, 30, 28), [900 + 100 * k])

    directory = tmp_path_factory.mktemp("pictures") / "records"
    records.write_records(directory, {"train": lambda: map(record, range(PICTURES))}, progress=False)
    return directory


@pytest.fixture
def mixed(record_dir, pictures):
    """(data, clip) of single frames: three of four from films (some silent), one from pictures."""
    films = str(record_dir), "train", 3
    return configs("", sources=(films, (str(pictures), "train", 1.0)), frames=1, motion_frames=0)


def test_sources_have_their_turns_by_weight_and_epochs_of_their_own(mixed):
    drawn = [record_number(sample) for sample in samples(take(12, *mixed, batch_size=4, seed=3))]
    assert (np.reshape(drawn, (12, 4)) >= 9).sum(axis=1).tolist() == [1] * 12
    films, shown = [k for k in drawn if k < 9], [k for k in drawn if k >= 9]
    assert [sorted(films[i : i + 6]) for i in range(0, 36, 6)] == [[0, 1, 2, 3, 4, 5]] * 6
    assert [sorted(shown[i : i + 3]) for i in range(0, 12, 3)] == [[9, 10, 11]] * 4
    assert len({tuple(shown[i : i + 3]) for i in range(0, 12, 3)}) > 1  # shuffled anew


def test_a_picture_is_its_own_reference(mixed):
    for sample in samples(take(6, *mixed, batch_size=4, seed=3)):
        if record_number(sample) >= 9:
            np.testing.assert_array_equal(sample["frames"][0], sample["reference"])
            assert sample["mask"].any() and not sample["audio"].any()


def test_a_source_alone_is_drawn_as_a_directory(record_dir):
    alone = take(3, *configs(record_dir), batch_size=3, seed=3)
    assert_same(alone, take(3, *configs("", sources=((str(record_dir), "train", 0.5),)), batch_size=3, seed=3))


def test_equal_sources_are_drawn_apart(record_dir):
    twice = ((str(record_dir), "train", 1), (str(record_dir), "train", 1))
    drawn = samples(take(6, *configs("", sources=twice), batch_size=2, seed=3))
    keys = [(record_number(sample), sample["speed"].tobytes()) for sample in drawn]
    assert keys[::2] != keys[1::2]


def test_a_mixture_resumes_with_other_processes(mixed):
    whole = samples(take(6, *mixed, batch_size=6, seed=3))
    head = pipeline.make_iterator(*mixed, batch_size=6, seed=3)
    assert_same(whole[:18], samples([next(head) for _ in range(3)]))
    rest = []
    for process in range(3):
        iterator = pipeline.make_iterator(*mixed, batch_size=6, seed=3, rows=range(2 * process, 2 * process + 2))
        iterator.set_state(json.loads(json.dumps(head.get_state())))
        rest.append([next(iterator) for _ in range(3)])
    assert_same(whole[18:], samples(itertools.chain(*zip(*rest, strict=True))))


@pytest.mark.parametrize("stage, numbers", [
    ("image", {0, 1, 2, 3, 4, 5, 9, 10, 11}), ("video", {0, 2, 3, 5}), ("speed", {0, 2, 3, 5}),
])  # fmt: skip
def test_stages_take_what_they_can_use(mixed, stage, numbers):
    data, clip = mixed
    clip.update(frames=4, motion_frames=2)
    stage = get_stage(stage)
    clip = clip_of(ConfigDict(dict(clip=clip)), stage)
    drawn = samples(take(16, data, clip, batch_size=4, seed=3, needs_sound=stage.sound))
    assert {record_number(sample) for sample in drawn} == numbers


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_sources_can_be_given_on_the_command_line(record_dir, pictures):
    given = f"(('{record_dir}','train',3),('{pictures}','train',0.5))"
    config = config_lib.parse([f"--config={tiny.__file__}:image", f"--config.data.sources={given}"])
    again = config_lib.from_json(config_lib.to_json(config))
    for data in (config.data, again.data):
        found = pipeline.open_sources(data)
        assert [(source.directory, weight) for source, weight in found] == [(str(record_dir), 3), (str(pictures), 0.5)]


@pytest.mark.parametrize("changes, message", [
    (dict(directory="data/mine"), "data.directory is 'data/mine' and data.sources names others"),
    (dict(sources=(("data/mine", "train", 0),)), "data.sources holds .*weight above 0"),
    (dict(sources=("data/mine", "train", 3)), "data.sources holds 'data/mine'; expected"),
    (dict(sources=(("data/mine", "train"),)), "data.sources holds .*; expected"),
    (dict(sources=(("/nowhere", "train", 1),)), "/nowhere is not a directory"),
])  # fmt: skip
def test_bad_sources_are_one_line(mixed, changes, message):
    data, clip = mixed
    data.update(changes)
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.make_dataset(data, clip, batch_size=2, seed=0)
    assert "\n" not in str(caught.value)


def test_too_few_records_name_all_sources(mixed, pictures):
    with pytest.raises(ValueError, match=f"{pictures}, split train: 9 records fit .* at least 10"):
        pipeline.make_dataset(*mixed, batch_size=10, seed=0)

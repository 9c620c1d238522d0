"""Several sources mixed by weight: videos, silent videos and single pictures."""

import itertools
import json
import threading

import numpy as np
import pytest
from emo_jax.configs import small
from ml_collections import ConfigDict

from emo_jax import config as config_lib
from emo_jax.data import clip_sampler, pipeline, records, sources, transforms
from emo_jax.models.config_schema import config_from_fields
from emo_jax.training.stages import clip_of, get_stage
from tests.data.clips import assert_same, configs, plain_record, record_number, samples, take

PICTURES = 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three records of a single picture, identified by their speed: 900, 1000, 1100."""

    def record(k):
        # A ramp, so that crops differ. The frame rate has no meaning.
        picture = np.broadcast_to(80 * k + np.arange(64, dtype=np.uint8)[:, None], (1, 48, 64, 3))
        return plain_record(f"picture-{k}", picture, 30, (12, 8, 30, 28), [900 + 100 * k])

    directory = tmp_path_factory.mktemp("pictures") / "records"
    records.write_records(directory, {"train": lambda: map(record, range(PICTURES))}, progress=False)
    return directory


@pytest.fixture
def mixed(record_dir, pictures):
    """Configs (data, clip) of single frames: three of four from videos (some silent), one from pictures."""
    videos = str(record_dir), "train", 3
    return configs("", sources=(videos, (str(pictures), "train", 1.0)), frames=1, motion_frames=0)


def test_sources_are_mixed_by_weight_and_have_separate_epochs(mixed):
    drawn = [record_number(sample) for sample in samples(take(12, *mixed, batch_size=4, seed=3))]
    assert (np.reshape(drawn, (12, 4)) >= 9).sum(axis=1).tolist() == [1] * 12
    videos, stills = [k for k in drawn if k < 9], [k for k in drawn if k >= 9]
    assert [sorted(videos[i : i + 6]) for i in range(0, 36, 6)] == [[0, 1, 2, 3, 4, 5]] * 6
    assert [sorted(stills[i : i + 3]) for i in range(0, 12, 3)] == [[9, 10, 11]] * 4
    assert len({tuple(stills[i : i + 3]) for i in range(0, 12, 3)}) > 1  # shuffled again


@pytest.mark.parametrize("crop_scale, same_window_prob", [((1.0, 1.0), 0.0), ((1.0, 1.0), 1.0), ((0.8, 1.0), 1.0)])
def test_reference_of_a_picture_is_cropped_differently(mixed, monkeypatch, crop_scale, same_window_prob):
    mixed[0].update(crop_scale=crop_scale, same_window_prob=same_window_prob)
    windows, crop, here = [], transforms.crop, threading.get_ident()

    def recording_crop(frames, window, size):
        if threading.get_ident() == here:  # iterators of other tests may still read ahead
            windows.append(window)
        return crop(frames, window, size)

    _, (pictures, _) = sources.open_sources(mixed[0])
    monkeypatch.setattr(transforms, "crop", recording_crop)
    sampler = clip_sampler.make_clip_sampler(pictures, *mixed)
    for seed in range(10):
        windows.clear()
        sample = sampler(0, np.random.default_rng(seed))
        target, reference = windows
        assert 0.74 * crop_scale[0] * 48 < reference[2] < 0.91 * crop_scale[0] * 48 < target[2] <= 48
        assert sample["mask"].any() and not sample["audio"].any()


def test_single_source_equals_a_directory(record_dir):
    alone = take(3, *configs(record_dir), batch_size=3, seed=3)
    assert_same(alone, take(3, *configs("", sources=((str(record_dir), "train", 0.5),)), batch_size=3, seed=3))


def test_equal_sources_are_drawn_independently(record_dir):
    twice = ((str(record_dir), "train", 1), (str(record_dir), "train", 1))
    drawn = samples(take(6, *configs("", sources=twice), batch_size=2, seed=3))
    keys = [(record_number(sample), sample["speed"].tobytes()) for sample in drawn]
    assert keys[::2] != keys[1::2]


def test_mixture_resumes_with_another_number_of_processes(mixed):
    uninterrupted = samples(take(6, *mixed, batch_size=6, seed=3))
    head = pipeline.make_iterator(*mixed, batch_size=6, seed=3)
    assert_same(uninterrupted[:18], samples([next(head) for _ in range(3)]))
    rest = []
    for process in range(3):
        iterator = pipeline.make_iterator(*mixed, batch_size=6, seed=3, rows=range(2 * process, 2 * process + 2))
        iterator.set_state(json.loads(json.dumps(head.get_state())))
        rest.append([next(iterator) for _ in range(3)])
    assert_same(uninterrupted[18:], samples(itertools.chain(*zip(*rest, strict=True))))


@pytest.mark.parametrize("stage, numbers", [
    ("image", {0, 1, 2, 3, 4, 5, 9, 10, 11}), ("video", {0, 2, 3, 5}), ("speed", {0, 2, 3, 5}),
])  # fmt: skip
def test_stages_use_suitable_records(mixed, stage, numbers):
    data, clip = mixed
    clip.update(frames=4, motion_frames=2)
    stage = get_stage(stage)
    clip = clip_of(ConfigDict(dict(clip=clip)), stage)
    drawn = samples(take(16, data, clip, batch_size=4, seed=3, needs_sound=stage.sound))
    assert {record_number(sample) for sample in drawn} == numbers


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_sources_on_the_command_line(record_dir, pictures):
    given = f"(('{record_dir}','train',3),('{pictures}','train',0.5))"
    config = config_lib.parse([f"--config={small.__file__}:image", f"--config.data.sources={given}"])
    again = config_from_fields(json.loads(config_lib.to_json(config)))
    for data in (config.data, again.data):
        opened = sources.open_sources(data)
        assert [(source.directory, weight) for source, weight in opened] == [(str(record_dir), 3), (str(pictures), 0.5)]


@pytest.mark.parametrize("changes, message", [
    (dict(directory="data/mine"), "data.directory.*data.sources"),
    (dict(sources=(("data/mine", "train", 0),)), "data.sources .*weight above 0"),
    (dict(sources=("data/mine", "train", 3)), "data.sources contains 'data/mine'"),
    (dict(sources=(("data/mine", "train"),)), "data.sources contains"),
    (dict(sources=(("/nowhere", "train", 1),)), "/nowhere"),
])  # fmt: skip
def test_invalid_sources_raise(mixed, changes, message):
    data, clip = mixed
    data.update(changes)
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.make_dataset(data, clip, batch_size=2, seed=0)
    assert "\n" not in str(caught.value)


def test_too_few_records_error_names_all_sources(mixed, pictures):
    with pytest.raises(ValueError, match=f"{pictures}, split train: 9 records .* 10"):
        pipeline.make_dataset(*mixed, batch_size=10, seed=0)


@pytest.mark.parametrize("without_sound, chosen", [
    ("none", set()), ("videos", {*range(6)}), ("all", {*range(6), 9, 10, 11}),
])  # fmt: skip
def test_records_without_sound_join_the_stages_with_sound(record_dir, pictures, without_sound, chosen):
    both = (str(record_dir), "train", 1), (str(pictures), "train", 1)
    data, clip = configs("", sources=both, without_sound=without_sound, max_speed=0.0)
    found = [sources.select_records(source, clip, True, False, 0.0, without_sound) for source, _ in
             sources.open_sources(data)]  # fmt: skip
    videos = sources.open_sources(data)[0][0]
    sound = {int(videos[int(k)]["speed"][0]) // 100 for k in np.flatnonzero(videos.index()["sound"])}
    assert sum(map(len, found)) == len(chosen | sound) and len(sound) == 4
    drawn = samples(take(9, data, clip, batch_size=2, seed=3, needs_sound=True))
    assert {record_number(sample) for sample in drawn} == chosen | sound
    for sample in drawn:
        assert sample["has_sound"] == (record_number(sample) in sound)
        assert sample["has_sound"] or not sample["audio"].any()
        if record_number(sample) >= 9:  # a picture stands still, also after motion frames
            still = np.concatenate([sample["motion"][: 2 * sample["has_motion"]], sample["frames"]])
            assert (still == still[:1]).all() and not np.array_equal(sample["reference"], still[0])
            assert sample["mask"].any() and sample["frames"].shape == (4, 48, 64, 3)


def test_pictures_join_the_stage_speed_whose_videos_need_speeds(pictures):
    source, (_, clip) = sources.open_sources(configs(pictures)[0])[0][0], configs(pictures)
    assert len(sources.select_records(source, clip, True, True, 0.1, "all")) == PICTURES
    assert not len(sources.select_records(source, clip, True, True, 0.1, "videos"))


def test_unknown_choice_of_records_without_sound_is_named(record_dir):
    with pytest.raises(ValueError, match="data.without_sound.*pictures"):
        take(1, *configs(record_dir, without_sound="pictures"), batch_size=1, seed=0)

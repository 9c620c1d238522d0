"""Clips, batches and epochs of the input pipeline."""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest

from emo_jax.data import clip_sampler, pipeline, records, sources, transforms
from emo_jax.media import mp4
from tests.data.clips import assert_same, configs, frame_numbers, plain_record, record_number, samples, take


@pytest.mark.parametrize("fps", [25, 30])
def test_fields_of_a_sample_agree(fps, request):
    directory = request.getfixturevalue("record_dir" if fps == 25 else "record_dir_30")
    data, clip = configs(directory, fps)
    source = records.open_records(directory, "train")
    stored = [source[position] for position in range(len(source))]
    moments = {int(record["speed"][0]) // 100: record["audio_moments"] for record in stored}
    drawn = samples(take(30, data, clip, batch_size=6, seed=3))
    firsts = 0
    for sample in drawn:
        k = record_number(sample)
        total = 40 + 4 * k
        numbers = frame_numbers(sample["frames"])
        s = numbers[0]
        assert numbers == list(range(s, s + 4)) and 0 <= s and s + 4 <= total
        for picture in (*sample["frames"], sample["reference"]):  # the left third identifies the record
            assert abs(picture[:, :16].mean() - 40 * k) < 10
        if sample["has_motion"]:
            assert frame_numbers(sample["motion"]) == [s - 2, s - 1]
        else:
            firsts += 1
            assert not sample["motion"].any()
        np.testing.assert_array_equal(sample["speed"], 100 * k + np.clip(np.arange(s - 2, s + 6), 0, total - 1))
        at = round((s - 2) * 16000 / fps) - 256 + np.arange(-(-8 * 16000 // fps) + 512)
        inside = (at >= 0) & (at < round(total * 16000 / fps)) & (k not in (1, 4))
        np.testing.assert_array_equal(sample["audio"] * 32768, np.where(inside, at - 20000, 0))
        np.testing.assert_array_equal(sample["audio_moments"], moments[k])
        (reference,) = frame_numbers(sample["reference"][None])
        gap = 0.4 * fps
        assert reference <= s - gap or reference >= s + 3 + gap
    assert 0.15 < firsts / len(drawn) < 0.45


def test_batches_match_their_spec(record_dir):
    for changes in (
        {},
        dict(frames=1, motion_frames=0),
        dict(audio_context=0.3),
        dict(image_size=(64, 32), crop_scale=(0.5, 1.0), flip_prob=0.5),
    ):
        data, clip = configs(record_dir, **changes)
        (batch,) = take(1, data, clip, batch_size=3, seed=0)
        assert {name: (value.shape, value.dtype) for name, value in batch.items()} == pipeline.element_spec(clip, 3)


def test_audio_context_extends_both_sides(record_dir):
    plain, more = (samples(take(2, *configs(record_dir, audio_context=c), batch_size=6, seed=3)) for c in (0.0, 0.3))
    for a, b in zip(plain, more, strict=True):
        np.testing.assert_array_equal(a["audio"], b["audio"][4800:-4800])
        np.testing.assert_array_equal(a["frames"], b["frames"])
        start = round((frame_numbers(b["frames"])[0] - 2) * 640) - 256 - 4800
        total = 25600 + 2560 * record_number(b)
        at = start + np.arange(len(b["audio"]))
        inside = (at >= 0) & (at < total) & (record_number(b) not in (1, 4))
        np.testing.assert_array_equal(b["audio"] * 32768, np.where(inside, at - 20000, 0))


def test_masks_cover_every_box_of_the_clip(record_dir):
    data, clip = configs(record_dir)
    for sample in samples(take(4, data, clip, batch_size=6, seed=5)):
        mask, s = sample["mask"][..., 0], frame_numbers(sample["frames"])[0]
        x0, y0, x1, y1 = 12 + s / 4, 8 + s / 4, 30 + (s + 3) / 4, 28 + (s + 3) / 4
        want = np.zeros((48, 64), np.uint8)
        want[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = 1
        np.testing.assert_array_equal(mask, want)


@pytest.mark.parametrize("probability, least, most", [(0.0, 0, 2), (0.5, 5, 19), (1.0, 24, 24)])
def test_same_window_prob(record_dir, monkeypatch, probability, least, most):
    windows, crop, here = [], transforms.crop, threading.get_ident()

    def recording_crop(frames, window, size):
        if threading.get_ident() == here:  # iterators of other tests may still read ahead
            windows.append(window)
        return crop(frames, window, size)

    monkeypatch.setattr(transforms, "crop", recording_crop)
    data, clip = configs(record_dir, same_window_prob=probability, crop_scale=(0.6, 0.9))
    sampler = clip_sampler.make_clip_sampler(records.open_records(data.directory, data.split), data, clip)
    for seed in range(24):
        sampler(0, np.random.default_rng(seed))
    assert least <= sum(a == b for a, b in zip(windows[::2], windows[1::2], strict=True)) <= most


def test_color_jitter_changes_only_images(record_dir):
    plain, changed = (take(2, *configs(record_dir, color_jitter=j), batch_size=6, seed=3) for j in (0.0, 0.4))
    for a, b in zip(samples(plain), samples(changed), strict=True):
        for name in ("mask", "audio", "speed", "has_motion"):
            np.testing.assert_array_equal(a[name], b[name])
        assert not np.array_equal(a["frames"], b["frames"])
        assert b["has_motion"] or not b["motion"].any()


def test_equal_seeds_give_equal_batches(record_dir):
    args = configs(record_dir, crop_scale=(0.5, 0.9), flip_prob=0.5)
    first = take(4, *args, batch_size=3, seed=1)
    assert_same(first, take(4, *args, batch_size=3, seed=1))
    other = take(4, *args, batch_size=3, seed=2)
    assert any(not np.array_equal(a["frames"], b["frames"]) for a, b in zip(first, other, strict=True))


def test_epochs_contain_every_record_once_and_differ(record_dir):
    drawn = samples(take(10, *configs(record_dir), batch_size=3, seed=1))
    epochs = [drawn[i : i + 6] for i in range(0, 30, 6)]
    for epoch in epochs:
        assert sorted(record_number(sample) for sample in epoch) == [0, 1, 2, 3, 4, 5]
    assert len({tuple(record_number(sample) for sample in epoch) for epoch in epochs}) > 1
    starts = [{record_number(x): frame_numbers(x["frames"])[0] for x in epoch} for epoch in epochs]
    assert all(len({start[k] for start in starts}) > 1 for k in range(6))


def test_finite_epochs_end(record_dir):
    assert len(list(pipeline.make_dataset(*configs(record_dir), batch_size=2, seed=0, epochs=2))) == 6


def test_processes_divide_the_batch_of_one_process(record_dir):
    args = configs(record_dir)
    alone = take(4, *args, batch_size=6, seed=1)
    rows = [0, 1, 5], [2, 3, 4]  # rows need not be contiguous
    shares = [take(4, *args, batch_size=6, seed=1, rows=share) for share in rows]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(map(record_number, samples(parts))) == [0, 1, 2, 3, 4, 5]
        for name in batch:
            for share, part in zip(rows, parts, strict=True):
                np.testing.assert_array_equal(batch[name][share], part[name])
    alone = take(5, *args, batch_size=4, seed=1)  # 6 records: a batch may span two epochs
    uneven = [take(5, *args, batch_size=4, seed=1, rows=[row]) for row in range(4)]
    for batch, *parts in zip(alone, *uneven, strict=True):
        np.testing.assert_array_equal(batch["frames"], np.concatenate([part["frames"] for part in parts]))


def test_processes_end_at_the_same_step(record_dir):
    options = dict(batch_size=4, seed=0, epochs=1)  # six records
    counts = [len(list(pipeline.make_dataset(*configs(record_dir), rows=rows, **options))) for rows in ([0, 1], [2, 3])]
    assert counts == [1, 1]


def test_resumed_iterator_continues_exactly(record_dir):
    args, options = configs(record_dir), dict(batch_size=3, seed=7)
    uninterrupted = take(7, *args, **options)
    iterator = pipeline.make_iterator(*args, **options)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    resumed = pipeline.make_iterator(*args, **options)
    resumed.set_state(state)
    assert_same(uninterrupted[3:], [next(resumed) for _ in range(4)])


def test_needs_sound_leaves_out_silent_records(record_dir):
    drawn = samples(take(12, *configs(record_dir), batch_size=4, seed=1, needs_sound=True))
    assert {record_number(sample) for sample in drawn} == {0, 2, 3, 5}
    assert all(sample["audio"].any() for sample in drawn)


@pytest.fixture(scope="module")
def unreliable_dir(tmp_path_factory, make_record):
    """Records 0 to 3: exact speeds, reliable ones, a low confidence, and the flag roll-only."""
    confidences = np.zeros(0), np.full(44, 0.6), np.full(48, 0.4), np.full(52, 0.6)
    flags = "", "no-sound", "", "roll-only"
    directory = tmp_path_factory.mktemp("unreliable") / "records"
    rows = [
        dataclasses.replace(
            make_record(k), speed_confidence=confidences[k], flags=flags[k], audio=make_record(0).audio[:0]
        )
        for k in range(4)
    ]
    records.write_records(directory, {"train": lambda: rows, "roll": lambda: rows[2:]}, progress=False)
    return directory


@pytest.mark.parametrize("indexed", [True, False])
def test_needs_speed_leaves_out_unreliable_speeds(unreliable_dir, tmp_path, indexed):
    directory = tmp_path / "records"
    shutil.copytree(unreliable_dir, directory)
    if not indexed:  # as records before this was part of the index
        index = json.loads((directory / records.INDEX_FILE).read_text())
        assert [row.pop("reliable_speed") for row in index.values()]
        (directory / records.INDEX_FILE).write_text(json.dumps(index))
    drawn = samples(take(6, *configs(directory), batch_size=2, seed=1, needs_speed=True))
    assert {record_number(sample) for sample in drawn} == {0, 1}
    drawn = samples(take(6, *configs(directory), batch_size=2, seed=1))
    assert {record_number(sample) for sample in drawn} == {0, 1, 2, 3}


def test_max_speed_leaves_out_fast_heads(tmp_path):
    frames, box = np.zeros((8, 64, 64, 3), np.uint8), (8, 8, 40, 40)
    speeds = {"still": np.zeros(8), "calm": np.linspace(0, 0.7, 8), "fast": np.linspace(0, 0.9, 8)}
    made = [plain_record(name, frames, 25, box, speed) for name, speed in speeds.items()]
    records.write_records(tmp_path, {"train": lambda: made}, shards=1, progress=False)
    data, clip = configs(tmp_path, max_speed=0.4)
    [(source, _)] = sources.open_sources(data)
    assert len(sources.select_records(source, clip)) == 3
    selected = sources.select_records(source, clip, max_speed=data.max_speed)
    assert {source[int(position)]["id"] for position in selected} == {"still", "calm"}  # by the average
    pipeline.make_dataset(data, clip, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="data.max_speed, 0.4"):
        pipeline.make_dataset(data, clip, batch_size=3, seed=0)


def test_too_few_records_error_names_the_cause(unreliable_dir):
    data, clip = configs(unreliable_dir, split="roll")
    with pytest.raises(ValueError, match="speed.*--faces"):
        pipeline.make_dataset(data, clip, batch_size=2, seed=0, needs_speed=True)
    with pytest.raises(ValueError, match="sound"):
        pipeline.make_dataset(data, clip, batch_size=2, seed=0, needs_sound=True)
    with pytest.raises(ValueError, match="train.batch_size"):
        pipeline.make_dataset(data, clip, batch_size=3, seed=0)


def test_records_that_are_too_short_are_left_out(record_dir):
    data, clip = configs(record_dir, frames=50)
    drawn = samples(take(4, data, clip, batch_size=3, seed=1))
    assert {record_number(sample) for sample in drawn} == {3, 4, 5}  # of 52, 56 and 60 frames: 50 + 2 are needed


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"directory": "/nowhere"}, {}, "/nowhere"),
        ({"fps": 30}, {}, "clip.fps is 30"),
        ({}, {"batch_size": 7}, "6 records.*7"),
        ({}, {"batch_size": 5, "needs_sound": True}, "4 records.*5"),
        ({}, {"rows": [1, 2]}, r"rows is \[1, 2\]"),
        ({"crop_scale": (0.9, 0.8)}, {}, "data.crop_scale"),
        ({"max_speed": -1.0}, {}, "data.max_speed is -1.0"),
        ({"first_clip_prob": 1.5}, {}, "data.first_clip_prob is 1.5"),
        ({"color_jitter": 1.0}, {}, "data.color_jitter is 1.0"),
        ({"audio_context": -0.1}, {}, "clip.audio_context is -0.1"),
    ],
)
def test_invalid_settings_raise(record_dir, changes, options, message):
    data, clip = configs(**{"directory": record_dir} | changes)
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.make_dataset(data, clip, **{"batch_size": 2, "seed": 0} | options)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def damaged_dir(tmp_path_factory, make_record):
    """One record whose video data is half zeros, and one intact record."""
    record, directory = make_record(0), tmp_path_factory.mktemp("damaged") / "records"
    start = record.video.find(b"mdat") + 4
    half = len(record.video[start:]) // 2
    video = record.video[:start] + bytes(half) + record.video[start + half :]
    made = [dataclasses.replace(record, id="broken", video=video), make_record(2)]
    records.write_records(directory, {"train": lambda: made}, shards=1, progress=False)
    return directory


def test_damaged_video_error_names_the_record(damaged_dir):
    source = records.open_records(damaged_dir, "train")
    position = [source[i]["id"] for i in range(2)].index("broken")
    with pytest.raises(ValueError) as caught:
        take(8, *configs(damaged_dir), batch_size=1, seed=0)
    message = str(caught.value)
    assert message.startswith(f"{damaged_dir}, split train, record {position} (broken): ") and "\n" not in message
    data, clip = configs(damaged_dir, split=f"train[{position}:{position + 1}]")
    with pytest.raises(ValueError, match=rf"split train\[{position}:{position + 1}\], record 0 \(broken\): "):
        take(1, data, clip, batch_size=1, seed=0)


def test_damaged_file_error_names_the_record(make_record, tmp_path):
    records.write_records(tmp_path / "two", {"train": lambda: map(make_record, (0, 2))}, shards=1, progress=False)
    (path,) = (tmp_path / "two").glob("*array_record*")
    data = bytearray(path.read_bytes())
    data[2**16 + 2000] ^= 255  # in the second record, which starts a block of 64 KiB
    path.write_bytes(data)
    with pytest.raises(ValueError, match="two, split train, record 1: .*hash mismatch") as caught:
        take(4, *configs(tmp_path / "two"), batch_size=1, seed=0)
    assert "\n" not in str(caught.value)


def test_sampler_decodes_only_the_frames_it_needs(record_dir, monkeypatch):
    calls, decode, here = [], mp4.decode_video, threading.get_ident()

    def recording_decode(data, start, count):
        if threading.get_ident() == here:  # iterators of other tests may still read ahead
            calls.append(count)
        return decode(data, start, count)

    monkeypatch.setattr(mp4, "decode_video", recording_decode)
    data, clip = configs(record_dir, first_clip_prob=0.0)
    sampler = clip_sampler.make_clip_sampler(records.open_records(data.directory, data.split), data, clip)
    sampler(0, np.random.default_rng(0))
    assert sorted(calls) == [1, 6]

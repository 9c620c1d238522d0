"""From intact and damaged videos to records; the boxes and rotations of the rendered heads are known."""

import dataclasses
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.data import records
from emo_jax.data.record import MIN_SPEED_CONFIDENCE
from emo_jax.faces.boxes import overlap
from emo_jax.faces.detection import find_faces
from emo_jax.faces.tracking import HaarTracker
from emo_jax.media import mp4
from emo_jax.media.audio import load_audio
from emo_jax.media.loudness import normalise
from emo_jax.preparation import video_records
from emo_jax.preparation.prepare import find_inputs, prepare_videos
from emo_jax.preparation.shots import Rules
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box
from emo_jax.synthetic.world import Track
from tests.faces import heads
from tests.preparation.conftest import SMALL


def prepare(folder, output, **options):
    """Prepares all videos of a folder; returns (report, records, {name of a rejected video: reason})."""
    try:
        report = prepare_videos([str(folder)], str(output), **SMALL | options)
    except ValueError:
        report = json.loads((output / "report.json").read_text())
    lines = (output / "rejected.jsonl").read_text().splitlines()
    rejected = {line["source"]: line["reason"] for line in map(json.loads, lines)}
    if not report["records"]:
        return report, [], rejected
    source = records.open_records(output, "train")
    return report, [source[i] for i in range(len(source))], rejected


def add_flash(frames, index):
    """Returns the frames with a white band above the head in one frame."""
    frames = frames.copy()
    frames[index, 12:26] = 255
    return frames


@pytest.mark.parametrize("fps", [25, 30, "variable"])
def test_click_and_flash_stay_together(tmp_path, fps):
    (tmp_path / "in").mkdir()
    rate = 30 if fps == "variable" else fps
    frames = add_flash(heads.heads(2 * rate, fps=rate), rate)
    keep = np.ones(len(frames), bool)
    if fps == "variable":
        keep[np.random.default_rng(0).choice(len(frames), 20, replace=False)] = False
        keep[[0, rate, rate + 1, -2, -1]] = True
    times = np.flatnonzero(keep) / rate
    sound = heads.voice(2.0, 44100) * 0.05
    sound[44100 : 44100 + 40] = 0.9  # at the same time as the flash
    heads.write(tmp_path / "in" / "a.mp4", frames[keep], rate, sound, 44100, times)
    _, [record], rejected = prepare(tmp_path / "in", tmp_path / "out")
    assert rejected == {} and record["fps"] == 25
    assert len(record["boxes"]) == 50 and record["audio"].shape == (32000,)
    assert record["span"].tolist() == [0, 2]
    pictures = mp4.decode_video(record["video"], 0, 50)
    flash = pictures[:, :10].astype(float).mean(axis=(1, 2, 3)).argmax()
    click = np.abs(record["audio"].astype(int)).argmax() / 640
    assert flash == 25 and abs(click - 25) < 1


class CornerLandmarks(HaarTracker):
    """Returns two corners and the center of each face box as landmarks."""

    def detect(self, image):
        return [
            dataclasses.replace(
                face, landmarks=np.float32([face.box[:2], face.box[2:], np.reshape(face.box, (2, 2)).mean(axis=0)])
            )
            for face in super().detect(image)
        ]


def test_landmarks_are_cropped_with_the_face(tmp_path):
    frames = np.pad(heads.heads(50), ((0, 0), (0, 0), (120, 0), (0, 0)), mode="edge")
    heads.write(tmp_path / "a.mp4", frames, 25, heads.voice(2))
    settings = video_records.Settings(Rules(10.0, 1.0, 40.0, 64))
    examples = video_records.video_records(tmp_path / "a.mp4", "a.mp4", settings, CornerLandmarks(), lambda _: None)
    example, _ = next(examples)
    points, boxes = np.frombuffer(example["landmarks"], np.float16).reshape(50, 3, 2), example["boxes"]
    np.testing.assert_allclose(points[:, 0], boxes[:, :2], atol=2)  # pixels of 64; boxes are smoothed
    np.testing.assert_allclose(points[:, 1], boxes[:, 2:], atol=2)
    np.testing.assert_allclose(points[:, 2], (boxes[:, :2] + boxes[:, 2:]) / 2, atol=2)


def test_frames_of_another_aspect_hold_the_face_at_the_same_height(tmp_path):
    (tmp_path / "in").mkdir()
    frames = np.pad(heads.heads(50), ((0, 0), (60, 60), (0, 0), (0, 0)), mode="edge")
    heads.write(tmp_path / "in" / "a.mp4", frames, 25, heads.voice(2))
    boxes = []
    for aspect, shape in ((1.0, (64, 64)), (0.75, (86, 64))):
        _, [record], rejected = prepare(tmp_path / "in", tmp_path / f"out{aspect}", size=64, aspect=aspect)
        assert rejected == {}
        pictures = mp4.decode_video(record["video"], 0, 50)
        assert pictures.shape[1:3] == shape
        found = next(box for picture in pictures for box in find_faces(picture))
        assert overlap(found, record["boxes"][0]) > 0.5
        boxes.append(np.median(record["boxes"][:, 3] - record["boxes"][:, 1]) / shape[0])
        index = records.open_records(tmp_path / f"out{aspect}", "train").aspects()
        assert index.tolist() == [shape[1] / shape[0]]
    assert boxes[0] == pytest.approx(boxes[1], rel=0.15)


def test_boxes_and_roll_match_the_rendered_head(tmp_path):
    (tmp_path / "in").mkdir()
    frames = np.pad(heads.heads(75), ((0, 0), (0, 0), (120, 0), (0, 0)), mode="edge")
    heads.write(tmp_path / "in" / "a.mp4", frames, 25, heads.voice(3))
    _, [record], _ = prepare(tmp_path / "in", tmp_path / "out", licence="CC-BY-4.0")
    person, time = Identity.sample(heads.PERSON), np.arange(75) / 25
    true = np.array(
        [
            face_box(person, State(yaw=6 * np.sin(2 * t), roll=8 * np.sin(1.5 * t), pitch=3 * np.cos(t)), heads.SIZE)
            for t in time
        ]
    )
    center = (record["boxes"][:, :2] + record["boxes"][:, 2:]) / 2
    path, true_path = center - center.mean(0), (true[:, :2] + true[:, 2:]) / 2
    true_path = (true_path - true_path.mean(0)) * np.mean(np.diff(record["boxes"][:, ::2]) / np.diff(true[:, ::2]))
    assert np.abs(path - true_path).max() < 3  # pixels of 64
    assert 0.4 < np.mean(record["boxes"][:, 3] - record["boxes"][:, 1]) / 64 < 0.65
    roll = 8 * np.sin(1.5 * time)
    assert np.corrcoef(record["rotation"][:, 2], roll)[0, 1] > 0.95 and not record["rotation"][:, :2].any()
    assert 0.5 < record["rotation"][:, 2].std() / roll.std() < 1.2
    assert record["analyzer"] == "haar: box and roll" and "roll-only" in record["flags"].split()
    assert (record["speed_confidence"] < 0.5).all() and len(record["speed_confidence"]) == 75
    assert record["licence"] == "CC-BY-4.0" and record["source"] == "a.mp4"


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])  # degrees; that of a landmark model is a few tenths
def test_speeds_are_accurate_or_unreliable(jitter):
    """Uses tracks of rendered heads, to which the jitter of an analyzer is added."""
    reliable = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        track = Track.sample(rng, 125, 25)
        _, speed, confidence = video_records.head_motion(track.rotation + rng.normal(0, jitter, track.rotation.shape))
        if 0.9 * confidence.mean() >= MIN_SPEED_CONFIDENCE:
            reliable += 1
            assert abs(speed.mean() / track.speed.mean() - 1) < 0.2, seed
    assert reliable >= (40 if jitter < 0.5 else 20)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """(report, records by source, rejected) of a folder with one good video and many that are unusual or damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    head, sound = heads.heads(50), heads.voice(2)
    heads.write(folder / "good.mp4", head, 25, sound)
    data = (folder / "good.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(data[: len(data) * 3 // 4])
    data = heads.write(folder / "index_last.mov", head, 25, sound).read_bytes()
    (folder / "index_last.mov").unlink()
    (folder / "index_lost.mp4").write_bytes(data[: len(data) // 2])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video\n")
    heads.write(folder / "no_sound.mp4", head)
    heads.write(folder / "digital_silence.mp4", head, 25, 0 * sound)
    heads.write(folder / "fps2.mp4", head[::12], 2, sound)
    heads.write(folder / "fps240.mp4", head.repeat(10, 0)[:480], 240, sound)
    heads.write(folder / "tiny.mp4", head[:, ::8, ::8], 25, sound)
    heads.turn(heads.write(folder / "turned.mp4", np.rot90(head, 1, (1, 2)), 25, sound))
    heads.write(folder / "two.mp4", np.concatenate([head, heads.heads(50, person=4)], 2), 25, sound)
    heads.write(folder / "nobody.mp4", heads.heads(50)[:, :30].repeat(4, 1), 25, sound)
    heads.write(folder / "black.mp4", 0 * head, 25, sound)
    sound_only = folder / "sound_only.mp4"
    with av.open(str(sound_only), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        piece = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        piece.sample_rate = 16000
        container.mux(track.encode(piece))
        container.mux(track.encode(None))
    report, results, rejected = prepare(folder, tmp_path_factory.mktemp("records") / "out")
    return report, {record["source"]: record for record in results}, rejected


def test_every_video_gives_records_or_a_reason(damaged):
    report, results, rejected = damaged
    assert report["videos"] == 15 and len(results) + len(rejected) == 15 and not set(results) & set(rejected)
    assert report["records"] == len(results) and report["videos_rejected"] == len(rejected)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("index_lost.mp4", "index_lost.mp4"),
        ("zero.mp4", "empty"),
        ("text.mp4", "text.mp4"),
        ("sound_only.mp4", "no video"),
        ("fps2.mp4", "fewer than 8 different frames a second"),
        ("tiny.mp4", "no face"),
        ("two.mp4", "several faces"),
        ("nobody.mp4", "no face"),
        ("black.mp4", "no face"),
    ],
)
def test_unusable_videos_are_rejected_with_a_reason(damaged, name, reason):
    assert reason in damaged[2][name]


@pytest.mark.parametrize(
    "name, flags, sound",
    [
        ("good.mp4", {"roll-only", "short"}, True),
        ("no_sound.mp4", {"roll-only", "short", "no-sound"}, False),
        ("digital_silence.mp4", {"roll-only", "short", "silent"}, False),
        ("cut_off.mp4", {"roll-only", "short", "truncated"}, True),
        ("turned.mp4", {"roll-only", "short"}, True),
        ("fps240.mp4", {"roll-only", "short"}, True),
    ],
)
def test_usable_videos_are_flagged(damaged, name, flags, sound):
    record = damaged[1][name]
    assert set(record["flags"].split()) == flags and bool(len(record["audio"])) == sound
    assert len(record["boxes"]) == 50 or name == "cut_off.mp4"


def test_rotated_videos_are_turned_upright(damaged):
    straight, turned = (mp4.decode_video(damaged[1][name]["video"], 20, 1)[0] for name in ("good.mp4", "turned.mp4"))
    assert np.abs(straight.astype(int) - turned).mean() < 6


def test_record_ends_where_the_sound_ends(tmp_path):
    (tmp_path / "in").mkdir()
    heads.write(tmp_path / "in" / "a.mp4", heads.heads(75), 25, heads.voice(1.6))
    _, results, _ = prepare(tmp_path / "in", tmp_path / "out")
    assert [(len(record["boxes"]), len(record["audio"])) for record in results] == [(40, 25600), (35, 0)]
    assert ["no-sound" in record["flags"] for record in results] == [False, True]


def test_sound_level_is_normalized_over_the_track(tmp_path):
    (tmp_path / "in").mkdir()
    sound = heads.voice(3.0) * np.float32([0.1, 0.2]).repeat(24000)
    frames = np.concatenate([heads.heads(40), heads.heads(35, person=4)])
    path = heads.write(tmp_path / "in" / "a.mp4", frames, 25, sound)
    _, results, _ = prepare(tmp_path / "in", tmp_path / "out")
    assert [len(record["boxes"]) for record in results] == [40, 35]
    stored = np.concatenate([record["audio"] for record in results]) / 32767
    recorded = load_audio(path, align_to_video=True)
    wanted = normalise(recorded)[: len(stored)]
    assert 3 < np.abs(wanted).max() / np.abs(recorded).max() < 10
    np.testing.assert_allclose(stored, np.pad(wanted, (0, len(stored) - len(wanted))), atol=2e-4)


def test_audio_moments_are_those_of_the_track(tmp_path):
    (tmp_path / "in").mkdir()
    sound = heads.voice(3.0) * np.float32([0.1, 1.0]).repeat(24000)
    frames = np.concatenate([heads.heads(40), heads.heads(35, person=4)])
    path = heads.write(tmp_path / "in" / "a.mp4", frames, 25, sound)
    _, results, _ = prepare(tmp_path / "in", tmp_path / "out")
    assert len(results) == 2
    track = normalise(load_audio(path, align_to_video=True))
    for record in results:
        moments = record["audio_moments"]
        assert moments.mean() == pytest.approx(track.mean(), abs=1e-4)
        assert moments.std() == pytest.approx(track.std(), rel=0.01)
        assert moments.std() != pytest.approx(record["audio"].std() / 32768, rel=0.1)


@pytest.mark.parametrize("level, silent", [(0.8e-3, True), (1.2e-3, False)])
def test_silence_is_measured_before_normalization(tmp_path, level, silent):
    (tmp_path / "in").mkdir()
    heads.write(tmp_path / "in" / "a.mp4", heads.heads(50), 25, heads.voice(2) * level / 0.1)
    _, [record], _ = prepare(tmp_path / "in", tmp_path / "out")
    assert ("silent" in record["flags"].split()) == silent == (not len(record["audio"]))


def test_cut_ends_the_record(tmp_path):
    (tmp_path / "in").mkdir()
    frames = np.concatenate([heads.heads(40), heads.heads(35, person=4)])
    heads.write(tmp_path / "in" / "a.mp4", frames, 25, heads.voice(3))
    _, results, _ = prepare(tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose([record["span"] for record in results], [[0, 1.6], [1.6, 3]], rtol=1e-6)
    sound = np.concatenate([record["audio"] for record in results])
    assert np.corrcoef(sound, heads.voice(3))[0, 1] > 0.9


def test_names_do_not_depend_on_the_location(tmp_path):
    for place in ("here", "elsewhere/deep"):
        (tmp_path / place / "b").mkdir(parents=True)
        for name in ("a.mp4", "b/a.mp4"):
            (tmp_path / place / name).write_text(name)
    first, second = (find_inputs([str(tmp_path / place)]) for place in ("here", "elsewhere/deep"))
    assert [name for _, name in first] == [name for _, name in second] == ["a.mp4", "b/a.mp4"]
    assert find_inputs([f"{tmp_path}/here/**/*.mp4"]) == first
    assert find_inputs([f"{tmp_path}/here/a.mp4", f"{tmp_path}/here/b"]) == first
    with pytest.raises(ValueError, match="avi"):
        find_inputs([f"{tmp_path}/here/*.avi"])


@pytest.mark.parametrize(
    "option, value",
    [
        ("size", 33), ("seconds", 0.5), ("min_seconds", 0.0), ("min_face", 0.0), ("workers", 0), ("shards", 0),
        ("aspect", 5.0),
    ],
)  # fmt: skip
def test_invalid_options_raise(tmp_path, option, value):
    (tmp_path / "a.mp4").write_text("")
    with pytest.raises(ValueError, match="--" + option.replace("_", "-")):
        prepare_videos([str(tmp_path)], str(tmp_path / "out"), **SMALL | {option: value})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


def test_command_fails_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EMO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.mp4").write_text("no video")
    for arguments, message in [
        (("--input", f"{tmp_path}/*.avi"), "*.avi"),
        (("--input", f"{tmp_path}/a.mp4", "--faces", "landmarks"), "face_detection_yunet_2023mar_int8bq.onnx"),
        (("--input", f"{tmp_path}/a.mp4", "--faces", "dlib"), "'dlib'"),
        (("--input", f"{tmp_path}/a.mp4", "--size", "31"), "--size is 31"),
        (("--input", f"{tmp_path}/a.mp4", "--aspect", "1:5"), "--aspect is 0.2"),
        (("--input", f"{tmp_path}/a.mp4", "--workers", "1"), "none of 1 videos gave a record"),
    ]:
        assert cli.main(["prepare", "videos", *arguments, "--output", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("emo prepare: ") and message in lines[-1]
        assert all(line.startswith("videos: ") for line in lines[:-1])  # progress


MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media")) / "video"
FRAMES = {  # number of frames at 25 fps, and height of the face relative to the square
    "real_latentsync_demo1.mp4": (250, 0.54),
    "real_moore_1.mp4": (269, 0.605),  # 1.2 s of advertisement are left out
    "real_moore_3.mp4": (118, 0.54),
    "real_sadtalker_WDA_KatieHill.mp4": (200, 0.543),
}


@pytest.mark.slow
def test_real_videos(tmp_path):
    if not MEDIA.is_dir():
        pytest.skip("no shared media")
    report = prepare_videos([f"{MEDIA}/*.mp4"], str(tmp_path / "out"), size=128)
    source = records.open_records(tmp_path / "out", "train")
    by_name = {record["source"]: record for record in (source[i] for i in range(len(source)))}
    assert set(by_name) == set(FRAMES) and report["seconds_dropped"] == {"no face": 1.2}
    for name, (count, share) in FRAMES.items():
        record = by_name[name]
        frames = mp4.decode_video(record["video"], 0, count)
        assert len(record["boxes"]) == count and len(record["audio"]) == count * 640
        heights = np.diff(record["boxes"][:, 1::2]).ravel()
        assert np.median(heights) / 128 == pytest.approx(share, abs=0.03)
        # Where the cascades detect a face in the cropped frames, the box must match it.
        samples = [
            (find_faces(frames[k].repeat(3, 0).repeat(3, 1)), record["boxes"][k] * 3) for k in range(0, count, 10)
        ]
        matches = [overlap(faces[0], box) > 0.5 for faces, box in samples if faces]
        assert len(matches) >= 0.5 * len(samples) and np.mean(matches) >= 0.9


def test_sound_gaps_become_silence_and_a_dc_offset_is_removed(tmp_path):
    frames = np.pad(heads.heads(75), ((0, 0), (0, 0), (120, 0), (0, 0)), mode="edge")
    sound = heads.voice(2) + 0.2
    heads.write(tmp_path / "a.mkv", frames, 25, sound, gap=(16384, 16000))  # one second late from 1.024 s on
    settings = video_records.Settings(Rules(10.0, 1.0, 40.0, 64))
    ((record, _),) = list(video_records.video_records(tmp_path / "a.mkv", "a", settings, HaarTracker(), lambda _: None))
    assert "sound-gaps" in record["flags"].split() and len(record["audio"]) == 3 * 16000
    loud = np.abs(record["audio"].astype(float)).reshape(-1, 1600).mean(axis=1)
    np.testing.assert_array_less(loud[12:18], 0.2 * loud[5])
    assert loud[22] == pytest.approx(loud[5], rel=0.3)
    assert abs(record["audio"][:16000].mean()) < 0.02 * 32768


def test_sound_with_damaged_time_stamps_is_left_out_with_the_reason(tmp_path):
    (tmp_path / "in").mkdir()
    heads.write(tmp_path / "in" / "a.mkv", heads.heads(50), 25, heads.voice(2), gap=(0, 200_000 * 16000))
    _, [record], rejected = prepare(tmp_path / "in", tmp_path / "out")
    assert "bad-sound" in record["flags"].split() and not len(record["audio"])
    assert "200000 s" in rejected["a.mkv"]
    heads.write(tmp_path / "in" / "a.mkv", np.zeros((50, 64, 64, 3), np.uint8), 25, heads.voice(2), gap=(0, 10**10))
    _, results, rejected = prepare(tmp_path / "in", tmp_path / "out2")
    assert not results and "no face" in rejected["a.mkv"] and "625000 s" in rejected["a.mkv"]

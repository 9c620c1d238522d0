"""Measures of existing videos, and the faults that each of them must see."""

import csv
import json

import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.evaluation import face_track, video_measures
from emo_jax.faces import lip_sync
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render
from tests.faces import heads
from tests.parity import metric_cases

FPS = 25


def speech(frames, seed=0):
    """Noise at 16 kHz whose loudness and spectrum follow an opening (frames,), and the opening."""
    rng = np.random.default_rng(seed)
    opening = np.clip(np.convolve(rng.uniform(-1, 1.6, frames + 8), np.hanning(9), "valid") / 3, 0, 1)
    level = np.interp(np.arange(frames * 640) / 640 - 0.5, np.arange(frames), opening)
    return (0.02 + level) * rng.standard_normal(frames * 640) * 0.2, opening


def test_lips_that_follow_the_sound_are_in_sync():
    sound, opening = speech(200)
    sync = lip_sync.lip_sync(opening, sound, FPS)
    assert abs(sync.offset) <= 1 and sync.correlation > 0.7 and sync.confidence > 0.5


@pytest.mark.parametrize("late", [-8, 5])
def test_offset_is_that_by_which_the_sound_was_shifted(late):
    sound, opening = speech(200)
    shifted = np.concatenate([np.zeros(late * 640), sound]) if late > 0 else sound[-late * 640 :]
    assert abs(lip_sync.lip_sync(opening, shifted, FPS).offset - late) <= 1


def test_lips_of_another_sound_have_no_confidence():
    sync = lip_sync.lip_sync(speech(200, seed=1)[1], speech(200)[0], FPS)
    assert sync.confidence < 0.4 and sync.correlation < 0.4


def test_tracks_without_lips_or_sound_give_no_offset():
    sound, opening = speech(100)
    assert lip_sync.lip_sync(opening[:60], sound, FPS) is None
    assert lip_sync.lip_sync(np.zeros(100), sound, FPS) is None
    assert lip_sync.lip_sync(opening, np.zeros(64000), FPS) is None
    gaps = np.where(np.arange(100) % 10 == 0, np.nan, opening)
    assert lip_sync.lip_sync(gaps, sound, FPS).correlation > 0.5


def test_blinks_are_counted():
    opening = np.full((250, 2), 0.3)
    for start in (50, 120, 200):
        opening[start : start + 4] = 0.05
    opening[150:180] = 0.05  # asleep
    opening[100, 0] = 0.05  # a wink
    assert video_measures.blinks_per_minute(opening, FPS) == pytest.approx(18)


def test_good_eyes_are_alike_and_sharp():
    opening, sharp = np.full((100, 2), 0.3), np.full((100, 2), 90.0)
    assert video_measures.good_eyes(opening, sharp, np.array([100.0, 100])) == 1
    opening[:10, 0] = 0.05
    sharp[10:30, 1] = 40
    opening[30:35] = np.nan
    opening[40:50] = 0.05  # both closed: a blink is no fault
    assert video_measures.good_eyes(opening, sharp, np.array([100.0, 100])) == pytest.approx(0.65)


def test_seams_and_repeated_frames():
    change = np.full(48, 2.0)
    change[0] = np.nan
    change[[12, 24, 36]] = 6
    assert video_measures.seam_change(change, 12) == pytest.approx(3)
    assert video_measures.seam_change(change, 0) is None and video_measures.seam_change(change, 48) is None
    change[5:10] = 0
    assert video_measures.repeated_share(change) == pytest.approx(5 / 47)
    assert video_measures.repeated_share(change[:1]) is None


def test_sharpness_falls_with_blur():
    import cv2

    image = render(Identity.sample(2), State(), 128)
    assert face_track.sharpness(image, 64) > 2 * face_track.sharpness(cv2.GaussianBlur(image, (0, 0), 3), 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A person's video of 3.2 s and its portrait; a copy with faults and another's portrait; a video without a face."""
    place = tmp_path_factory.mktemp("videos")
    (place / "portraits").mkdir()
    from PIL import Image

    sound, _ = speech(80)
    frames = heads.heads(80, person=2, size=160)
    heads.write(place / "ann.mp4", frames, sound=sound.astype(np.float32))
    Image.fromarray(render(Identity.sample(2), State(), 160)).save(place / "portraits" / "ann.png")
    frames = frames.astype(float)
    frames[30:60] = frames[30]  # frozen
    frames *= np.linspace(1, 0.6, 80)[:, None, None, None] ** (np.arange(80) > 59)[:, None, None, None]
    heads.write(place / "faults.mp4", frames.astype(np.uint8))
    Image.fromarray(render(Identity.sample(4), State(), 160)).save(place / "portraits" / "faults.png")
    heads.write(place / "wall.mp4", np.full((10, 96, 96, 3), 90, np.uint8))
    (place / "broken.mp4").write_bytes(b"no video")
    return place


def test_videos_are_measured_and_faults_seen(face_models, folder, tmp_path, capsys):
    arguments = ["--videos", str(folder), "--portraits", str(folder / "portraits"), "-o", str(tmp_path)]
    assert cli.main(["evaluate", *arguments, "--clip", "16"]) == 0
    report = json.loads((tmp_path / "videos.json").read_text())
    figures = {row["name"]: row["figures"] for row in report["videos"]}
    ann, faults = figures["ann.mp4"], figures["faults.mp4"]
    assert ann["face_found"] == 1 and ann["identity"] > 0.8 and ann["rank"] == 1
    assert ann["eyes_good"] > 0.9 and ann["repeated"] < 0.1 and 0.5 < ann["seams"] < 2
    assert ann["head_speed"] > 0.1 and ann["colour_drift"] < 3 and abs(ann["identity_drift"]) < 0.2
    assert faults["identity"] < ann["identity"] - 0.1 and faults["rank"] > 1  # another person's portrait
    assert faults["repeated"] > 0.3 and faults["colour_drift"] > 8
    assert faults["sync_offset"] is None
    assert figures["wall.mp4"]["face_found"] == 0 and figures["wall.mp4"]["identity"] is None
    assert figures["broken.mp4"] == {} and "broken.mp4" in [row["name"] for row in report["videos"] if row["reason"]]
    curves = {row["name"]: row["curves"] for row in report["videos"]}["ann.mp4"]
    assert curves["second"] == [0, 1, 2, 3] and len(curves["similarity"]) == 4
    rows = list(csv.DictReader((tmp_path / "videos.csv").read_text().splitlines()))
    assert [row["video"] for row in rows] == ["ann.mp4", "broken.mp4", "faults.mp4", "wall.mp4"]
    assert float(rows[0]["identity"]) == pytest.approx(ann["identity"], rel=1e-4)
    assert "ann.mp4" in capsys.readouterr().out
    page = (tmp_path / "videos.html").read_text()
    assert page.count("<video") == 4 and page.count("<img") == 2 and "<svg" in page


def test_invalid_calls_end_with_one_line(face_models, folder, tmp_path, capsys, monkeypatch):
    out = ["-o", str(tmp_path / "out")]
    for arguments, words in (
        (["--videos", str(tmp_path)], "--videos"),
        (["--videos", str(folder), "--portraits", str(tmp_path)], "--portraits"),
        (["--videos", str(folder), "--clip", "1"], "--clip is 1"),
        (["--videos", str(folder / "broken.mp4")], "broken.mp4"),
        (["--portraits", str(folder)], "--portraits"),
    ):
        assert cli.main(["evaluate", *arguments, *out]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("emo evaluate: ") and words in line
    monkeypatch.setenv("EMO_FACE_MODELS", str(tmp_path))
    assert cli.main(["evaluate", "--videos", str(folder), *out]) == 2
    assert "emo models download" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.slow
def test_sets_are_compared(face_models, folder, tmp_path, capsys):
    from safetensors.numpy import save_file

    files = {name: tmp_path / f"{name}.safetensors" for name in ("inception", "i3d")}
    for name, path in files.items():
        save_file(metric_cases.weights(name, metric_cases.NARROW), path)
    own = str(folder / "ann.mp4")
    arguments = ["evaluate", "--videos", own, "-o", str(tmp_path / "out"), "--inception", str(files["inception"])]
    assert cli.main([*arguments, "--i3d", str(files["i3d"]), "--against", own]) == 0
    same = json.loads((tmp_path / "out" / "videos.json").read_text())["against"]
    assert {name: row["samples"] for name, row in same.items()} == {"fid": [16, 16], "fvd": [5, 5], "e_fid": [16, 16]}
    assert all(abs(row["value"]) < 1e-5 for row in same.values())
    assert cli.main([*arguments, "--against", str(folder / "faults.mp4")]) == 0
    other = json.loads((tmp_path / "out" / "videos.json").read_text())["against"]
    assert other["fid"]["value"] > 1e-3 and other["e_fid"]["value"] > 1e-4
    assert other["fvd"]["value"] is None and "--i3d" in other["fvd"]["reason"]
    assert "needs --i3d" in capsys.readouterr().out
    assert cli.main(arguments) == 2 and "--against" in capsys.readouterr().err
    wrong = [*arguments[:-1], str(files["i3d"]), "--against", own]
    assert cli.main(wrong) == 2 and "i3d.safetensors" in capsys.readouterr().err

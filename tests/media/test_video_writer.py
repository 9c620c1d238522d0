"""Writing mp4 files clip by clip."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from emo_jax.files import process_tag
from emo_jax.media.audio import load_audio
from emo_jax.media.video import probe, read_video
from emo_jax.media.video_writer import VideoWriter


def numbered(first, count, height=48, width=64):
    """Returns frames of a single grey each: 10 levels per frame number (modulo 20)."""
    levels = (20 + 10 * (np.arange(first, first + count) % 20)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def murmur(samples, seed=0):
    noise = np.random.default_rng(seed).standard_normal(samples + 8)
    return (0.3 * np.convolve(noise, np.hanning(9) / 4, "valid")).astype(np.float32)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    ("fps", "rate", "frames"), [(25, 16000, 61), (29.97, 16000, 31), (Fraction(30000, 1001), 44100, 40), (25, 48000, 1)]
)
def test_length_and_timing_of_video_and_audio_are_exact(tmp_path, fps, rate, frames):
    path = tmp_path / "a.mp4"
    length = round(frames * rate / Fraction(fps))
    voice = murmur(length + 3000)
    with VideoWriter(path, (48, 64), fps, voice, audio_rate=rate) as writer:
        for start in range(0, frames, 7):
            writer.write(numbered(start, min(7, frames - start)))
    info = probe(path)
    assert info["frames"] == frames and (info["height"], info["width"]) == (48, 64)
    assert info["video_codec"] == "h264" and info["audio_codec"] == "aac" and info["audio_rate"] == rate
    assert info["seconds"] == pytest.approx(frames / float(fps), abs=1e-3)
    assert info["audio_seconds"] == pytest.approx(length / rate, abs=1e-3)
    assert names(tmp_path) == ["a.mp4"]
    for index, (image, time) in enumerate(read_video(path)):
        assert time == pytest.approx(index / float(fps), abs=1e-4)
        assert np.abs(image.astype(int) - (20 + 10 * (index % 20))).max() <= 3
    audio = load_audio(path, rate, align_to_video=True)[:length]
    if frames > 1:  # at the right time: one sample of delay would halve the correlation
        assert np.corrcoef(audio, voice[:length])[0, 1] > 0.98


def test_index_is_in_front_and_the_file_is_not_fragmented(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, murmur(16000)) as writer:
        writer.write(numbered(0, 20, 32, 32))
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat") and b"moof" not in data


def test_short_audio_is_padded(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, murmur(1000)) as writer:
        writer.write(numbered(0, 50, 32, 32))
    assert probe(tmp_path / "a.mp4")["audio_seconds"] == pytest.approx(2.0)
    assert np.abs(load_audio(tmp_path / "a.mp4")[6000:32000]).max() < 1e-3


def test_partial_file_can_be_read_while_writing(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 5, murmur(16000 * 30)) as writer:
        writer.write(numbered(0, 120, 32, 32))
        growing = probe(writer.partial_path)
        assert not writer.path.exists()
    assert 10 <= growing["frames"] < 120 and growing["audio_seconds"] > 1
    assert probe(tmp_path / "a.mp4")["frames"] == 120


def test_colours_are_preserved(tmp_path):
    colours = np.array([[200, 40, 40], [40, 180, 60], [30, 60, 210]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (3, 32, 32, 3))
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, crf=10) as writer:
        writer.write(frames)
    for (image, _), colour in zip(read_video(tmp_path / "a.mp4"), colours, strict=True):
        assert np.abs(image[8, 8].astype(int) - colour).max() <= 5
    assert probe(tmp_path / "a.mp4")["audio_codec"] is None


def test_odd_sizes_are_padded(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (33, 35), 25) as writer:
        writer.write(numbered(0, 2, 33, 35))
    info = probe(tmp_path / "a.mp4")
    assert (info["height"], info["width"], info["frames"]) == (34, 36, 2)


def test_exception_removes_the_partial_file_and_keeps_the_old_one(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", (32, 32), 25, murmur(9000)) as writer:
        writer.write(numbered(0, 9, 32, 32))
        partial, old = names(tmp_path)
        assert partial.startswith(f".a.{process_tag()}-") and partial.endswith(".part.mp4") and old == "a.mp4"
        raise RuntimeError
    assert names(tmp_path) == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == b"old"
    with pytest.raises(ValueError, match="no frames"), VideoWriter(tmp_path / "b.mp4", (32, 32), 25, murmur(9000)):
        pass
    with pytest.raises(ValueError, match="expected uint8"), VideoWriter(tmp_path / "b.mp4", (32, 32), 25) as writer:
        writer.write(numbered(0, 2, 32, 34))
    assert names(tmp_path) == ["a.mp4"]


def test_unwritable_targets_raise_on_construction(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path, word in [
        (tmp_path / "folder.mp4", "is a directory"),
        (tmp_path / "none" / "a.mp4", "no folder"),
        (tmp_path / "file" / "a.mp4", "no folder"),
        (tmp_path / "a.avi", "does not end in .mp4"),
        (tmp_path / ("x" * 252 + ".mp4"), "255 bytes"),
        (Path("/proc/a.mp4"), "cannot be written"),
    ]:
        with pytest.raises(ValueError, match=word) as caught:
            VideoWriter(path, (32, 32), 25)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name", [b"\xe9t\xe9 \xff.mp4", 240 * b"x" + b".mp4", 251 * b"x" + b".mp4", 125 * b"\xc3\xa9" + b".mp4"]
)
def test_names_in_other_encodings_and_of_any_length_are_written(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    with VideoWriter(path, (32, 32), 25, murmur(9000)) as writer:
        writer.write(numbered(0, 10, 32, 32))
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    assert probe(path)["frames"] == 10


@pytest.mark.parametrize("existing", [True, False])
def test_symbolic_link_is_followed(tmp_path, existing):
    (tmp_path / "videos").mkdir()
    target, link = tmp_path / "videos" / "target.mp4", tmp_path / "link.mp4"
    if existing:
        target.write_bytes(b"before")
    link.symlink_to(Path("videos") / "target.mp4")
    with VideoWriter(link, (32, 32), 25) as writer:
        assert writer.partial_path.parent == target.parent
        writer.write(numbered(0, 10, 32, 32))
    assert link.is_symlink() and probe(target)["frames"] == 10
    assert names(tmp_path) == ["link.mp4", "videos"] and names(target.parent) == ["target.mp4"]


def test_symbolic_link_to_a_missing_folder_raises(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "none" / "a.mp4")
    with pytest.raises(ValueError, match="no folder"):
        VideoWriter(tmp_path / "link.mp4", (32, 32), 25)


def test_invalid_arguments_raise_and_leave_no_file(tmp_path):
    path = tmp_path / "a.mp4"
    for arguments in [
        dict(size=(0, 32), fps=25),
        dict(size=(32, 32), fps=0),
        dict(size=(32, 32), fps=25, crf=99),
        dict(size=(32, 32), fps=25, preset="none"),
        dict(size=(32, 32), fps=25, audio=np.zeros((9, 9), np.float32)),
        dict(size=(32, 32), fps=25, audio=np.full(9, np.nan, np.float32)),
        dict(size=(32, 32), fps=25, audio=murmur(99), audio_rate=0),
    ]:
        with pytest.raises(ValueError) as caught:
            VideoWriter(path, **arguments)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"a" * 240 + b".mp4", b"\xe9" * 251 + b".mp4"])
def test_names_need_not_be_utf8_and_may_have_255_bytes(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    with VideoWriter(path, (48, 64), 25) as writer:
        writer.write(numbered(0, 3))
    assert os.listdir(os.fsencode(tmp_path)) == [name] and path.stat().st_size > 500


def test_names_that_are_too_long_raise_before_any_frame(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        VideoWriter(tmp_path / ("a" * 252 + ".mp4"), (48, 64), 25)
    assert not os.listdir(tmp_path)

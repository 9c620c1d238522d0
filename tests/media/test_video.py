import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from emo_jax.media.audio import load_audio
from emo_jax.media.video import VideoWriter, probe, read_video

MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media"))


def numbered(first, count, height=48, width=64):
    """Frames of one grey each, 10 levels per frame number (modulo 20)."""
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
def test_frames_and_sound_are_exact(tmp_path, fps, rate, frames):
    path = tmp_path / "a.mp4"
    length = round(frames * rate / Fraction(fps))
    voice = murmur(length + 3000)
    with VideoWriter(path, (48, 64), fps, voice, audio_rate=rate) as writer:
        for start in range(0, frames, 7):
            writer.write(numbered(start, min(7, frames - start)))
    found = probe(path)
    assert found["frames"] == frames and (found["height"], found["width"]) == (48, 64)
    assert found["video_codec"] == "h264" and found["audio_codec"] == "aac" and found["audio_rate"] == rate
    assert found["seconds"] == pytest.approx(frames / float(fps), abs=1e-3)
    assert found["audio_seconds"] == pytest.approx(length / rate, abs=1e-3)
    assert names(tmp_path) == ["a.mp4"]
    for index, (image, time) in enumerate(read_video(path)):
        assert time == pytest.approx(index / float(fps), abs=1e-4)
        assert np.abs(image.astype(int) - (20 + 10 * (index % 20))).max() <= 3
    heard = load_audio(path, rate, align_to_video=True)[:length]
    if frames > 1:  # at the right time: one sample of delay would halve the correlation
        assert np.corrcoef(heard, voice[:length])[0, 1] > 0.98


def test_the_file_is_plain_with_its_index_in_front(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, murmur(16000)) as writer:
        writer.write(numbered(0, 20, 32, 32))
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat") and b"moof" not in data


def test_short_audio_is_padded(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, murmur(1000)) as writer:
        writer.write(numbered(0, 50, 32, 32))
    assert probe(tmp_path / "a.mp4")["audio_seconds"] == pytest.approx(2.0)
    assert np.abs(load_audio(tmp_path / "a.mp4")[6000:32000]).max() < 1e-3


def test_it_can_be_watched_while_it_grows(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 5, murmur(16000 * 30)) as writer:
        writer.write(numbered(0, 120, 32, 32))
        growing = probe(writer.partial_path)
        assert not writer.path.exists()
    assert 10 <= growing["frames"] < 120 and growing["audio_seconds"] > 1
    assert probe(tmp_path / "a.mp4")["frames"] == 120


def test_colours_survive(tmp_path):
    colours = np.array([[200, 40, 40], [40, 180, 60], [30, 60, 210]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (3, 32, 32, 3))
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, crf=10) as writer:
        writer.write(frames)
    for (image, _), colour in zip(read_video(tmp_path / "a.mp4"), colours, strict=True):
        assert np.abs(image[8, 8].astype(int) - colour).max() <= 5
    assert probe(tmp_path / "a.mp4")["audio_codec"] is None


def test_odd_sizes_get_one_more_row_and_column(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (33, 35), 25) as writer:
        writer.write(numbered(0, 2, 33, 35))
    found = probe(tmp_path / "a.mp4")
    assert (found["height"], found["width"], found["frames"]) == (34, 36, 2)


def test_a_failed_run_leaves_nothing_and_keeps_the_old_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", (32, 32), 25, murmur(9000)) as writer:
        writer.write(numbered(0, 9, 32, 32))
        assert names(tmp_path) == [f".a.{os.getpid()}.part.mp4", "a.mp4"]
        raise RuntimeError
    assert names(tmp_path) == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == b"old"
    with pytest.raises(ValueError, match="no frames"), VideoWriter(tmp_path / "b.mp4", (32, 32), 25, murmur(9000)):
        pass
    with pytest.raises(ValueError, match="expected uint8"), VideoWriter(tmp_path / "b.mp4", (32, 32), 25) as writer:
        writer.write(numbered(0, 2, 32, 34))
    assert names(tmp_path) == ["a.mp4"]


def test_targets_that_cannot_be_written_are_told_at_once(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path, word in [
        (tmp_path / "folder.mp4", "is a directory"),
        (tmp_path / "none" / "a.mp4", "no folder"),
        (tmp_path / "file" / "a.mp4", "no folder"),
        (tmp_path / "a.avi", "does not end in .mp4"),
        (tmp_path / ("x" * 250 + ".mp4"), "cannot be written"),
        (Path("/proc/a.mp4"), "cannot be written"),
    ]:
        with pytest.raises(ValueError, match=word) as caught:
            VideoWriter(path, (32, 32), 25)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_wrong_arguments_leave_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    for arguments in [
        dict(size=(0, 32), fps=25),
        dict(size=(32, 32), fps=0),
        dict(size=(32, 32), fps=25, crf=99),
        dict(size=(32, 32), fps=25, preset="none"),
        dict(size=(32, 32), fps=25, audio=np.zeros((2, 9), np.float32)),
        dict(size=(32, 32), fps=25, audio=np.full(9, np.nan, np.float32)),
        dict(size=(32, 32), fps=25, audio=murmur(99), audio_rate=12345),
    ]:
        with pytest.raises(ValueError) as caught:
            VideoWriter(path, **arguments)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_frames_on_another_grid(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 30) as writer:
        writer.write(numbered(0, 12, 32, 32))
    for fps in (25, 30, 60, 7):
        frames = list(read_video(tmp_path / "a.mp4", fps))
        assert len(frames) == round(12 / 30 * fps)
        for index, (image, time) in enumerate(frames):
            assert time == pytest.approx(index / fps)
            assert abs((image.mean() - 20) / 10 - time * 30) <= 0.85


def test_rotated_videos_are_set_upright(tmp_path):
    frame = np.zeros((1, 32, 64, 3), np.uint8)
    frame[:, :16, :32] = 255  # the top left
    with VideoWriter(tmp_path / "a.mp4", (32, 64), 25) as writer:
        writer.write(frame)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # the display matrix of a version 0 track header
    for place, value in enumerate((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)):  # a quarter turn clockwise, as phones do
        data[at + 4 * place : at + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    (tmp_path / "b.mp4").write_bytes(data)
    image = next(read_video(tmp_path / "b.mp4"))[0]
    assert image.shape == (64, 32, 3)
    assert image[:30, 18:].min() > 200 and image[:, :14].max() < 50


def test_bt709_is_read_as_such(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"crf": "5"}
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), (200, 40, 40), np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1)))
        container.mux(stream.encode(None))
    image = next(read_video(path))[0]
    assert np.abs(image[20, 20].astype(int) - (200, 40, 40)).max() <= 5


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        next(read_video(tmp_path / "a.mp4"))
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="cannot be read"):
        next(read_video(tmp_path / "a.wav"))


def test_a_real_video():
    path = MEDIA / "video" / "real_moore_3.mp4"
    if not path.exists():
        pytest.skip("no shared media")
    found = probe(path)
    assert found["frames"] == 141 and found["audio_seconds"] == pytest.approx(11.98, abs=0.01)
    times = [time for _, time in read_video(path)]
    assert times[0] == 0 and times[-1] == pytest.approx(140 / 29.97, abs=0.05)

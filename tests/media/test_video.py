"""Reading the frames of any video upright, in their colours and by their time stamps."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from emo_jax.media.video import probe, read_video
from emo_jax.media.video_writer import VideoWriter

MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media"))


def numbered(first, count, height=48, width=64):
    """Returns frames of a single grey each: 10 levels per frame number (modulo 20)."""
    levels = (20 + 10 * (np.arange(first, first + count) % 20)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def test_frames_are_resampled_by_time_stamps(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 30) as writer:
        writer.write(numbered(0, 12, 32, 32))
    for fps in (25, 30, 60, 7):
        frames = list(read_video(tmp_path / "a.mp4", fps))
        assert len(frames) == round(12 / 30 * fps)
        for index, (image, time) in enumerate(frames):
            assert time == pytest.approx(index / fps)
            assert abs((image.mean() - 20) / 10 - time * 30) <= 0.85


def test_display_rotation_is_applied(tmp_path):
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


def test_bt709_matrix_is_applied(tmp_path):
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


def test_unreadable_files_raise(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        next(read_video(tmp_path / "a.mp4"))
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="cannot be read"):
        next(read_video(tmp_path / "a.wav"))


def test_real_video_of_variable_frame_rate():
    path = MEDIA / "video" / "real_moore_3.mp4"
    if not path.exists():
        pytest.skip("no shared media")
    info = probe(path)
    assert info["frames"] == 141 and info["audio_seconds"] == pytest.approx(11.98, abs=0.01)
    times = [time for _, time in read_video(path)]
    assert times[0] == 0 and times[-1] == pytest.approx(140 / 29.97, abs=0.05)


def write_times(path, times):
    """Writes frames of one grey each at `times` in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.options = {"bf": "0", "preset": "ultrafast"}
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(numbered(0, len(times), 32, 32)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("seconds", [90, 3600, 10 * 86400])
def test_jumps_of_time_stamps_are_rejected(tmp_path, seconds):
    path = write_times(tmp_path / "a.mkv", [0, 0.04, 0.08, seconds])
    for read in (lambda: list(read_video(path, 25)), lambda: list(read_video(path)), lambda: probe(path)):
        with pytest.raises(ValueError, match=f"{seconds} s"):
            read()


def test_still_frames_of_variable_frame_rate_are_repeated(tmp_path):
    path = write_times(tmp_path / "a.mkv", [0, 0.04, 20.0])
    assert len(list(read_video(path, 25))) == 501


def test_unknown_codecs_are_rejected(tmp_path):
    data = write_times(tmp_path / "a.mkv", [0, 0.04]).read_bytes()
    (tmp_path / "b.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVC"))
    for read in (probe, lambda path: next(read_video(path))):
        with pytest.raises(ValueError, match="codec"):
            read(tmp_path / "b.mkv")

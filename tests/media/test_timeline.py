"""Audio at its time stamps: gaps, overlaps, jumps, and sound that starts late."""

from fractions import Fraction

import av
import numpy as np
import pytest

from emo_jax.media.audio import decode_audio, load_audio
from emo_jax.media.timeline import GAPS, MAX_GAP, OVERLAPS, RESTARTS, join_blocks

RATE = 16000


def write(path, starts, video_start=None, codec="pcm_s16le", rate=RATE):
    """Writes an mkv file whose audio has blocks of 0.5 s of a click and a constant at `starts` (seconds)."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream(codec, rate=rate, layout="mono")
        video = None
        if video_start is not None:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            video.options = {"bf": "0", "preset": "ultrafast"}
        packets = []
        for number, start in enumerate(starts):
            samples = np.full((1, rate // 2), 1000 * (number + 1), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
            packets += audio.encode(frame)
        packets += audio.encode(None)
        if video is not None:
            for k in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = round((video_start + k / 25) * 1000), Fraction(1, 1000)
                packets += video.encode(frame)
            packets += video.encode(None)
        for packet in packets:
            container.mux(packet)
    return path


def levels(audio):
    """Level of the middle of each half second, in units of 1000 / 32768."""
    return [round(float(audio[k + RATE // 4]) * 32.768) for k in range(0, len(audio) - RATE // 4, RATE // 2)]


def test_gap_becomes_silence(tmp_path):
    samples, flags = decode_audio(write(tmp_path / "a.mkv", [0, 0.5, 2.0, 2.5]))
    assert levels(samples) == [1, 2, 0, 0, 3, 4] and len(samples) == 3 * RATE and flags == (GAPS,)
    at = np.flatnonzero(np.abs(samples * 32768 - 3000) < 1)[0]
    assert abs(at - 2 * RATE) <= RATE // 1000  # time stamps of Matroska are in milliseconds


def test_gap_is_filled_at_any_rate(tmp_path):
    path = write(tmp_path / "a.mkv", [0, 0.75, 3.0], rate=44100)
    assert len(load_audio(path, 44100)) == round(3.5 * 44100)
    assert len(load_audio(path)) == round(3.5 * RATE)


def test_overlap_is_trimmed(tmp_path):
    samples, flags = decode_audio(write(tmp_path / "a.mkv", [0, 0.5, 0.75, 1.25]))
    assert flags == (OVERLAPS,) and len(samples) == round(1.75 * RATE)
    assert round(float(samples[int(0.9 * RATE)]) * 32.768) == 2 and round(float(samples[int(1.1 * RATE)]) * 32.768) == 3


def test_continuous_audio_has_no_flags(tmp_path):
    samples, flags = decode_audio(write(tmp_path / "a.mkv", [0, 0.5, 1.0]))
    assert levels(samples) == [1, 2, 3] and flags == ()


def test_late_audio_is_padded_when_aligned(tmp_path):
    path = write(tmp_path / "a.mkv", [1.0, 1.5], video_start=0)
    assert levels(load_audio(path, align_to_video=True)) == [0, 0, 1, 2]
    assert levels(load_audio(path)) == [1, 2]
    path = write(tmp_path / "b.mkv", [0, 0.5], video_start=0.5)
    assert levels(load_audio(path, align_to_video=True)) == [2]


@pytest.mark.parametrize("seconds", [MAX_GAP + 100, 200_000, 10 * 86400])
def test_jumps_of_time_stamps_are_rejected(tmp_path, seconds):
    with pytest.raises(ValueError, match=f"{seconds} s"):
        load_audio(write(tmp_path / "a.mkv", [0, seconds + 0.5]))
    with pytest.raises(ValueError, match=f"{seconds} s after"):
        load_audio(write(tmp_path / "b.mkv", [seconds, seconds + 0.5], video_start=0), align_to_video=True)


def block(time, value, count=100):
    return None if time is None else Fraction(time), 100, np.full(count, value, np.float32)


def join(*blocks):
    flags = []
    return np.concatenate([samples for _, samples in join_blocks(blocks, flags, "a.wav")]), flags


def test_blocks_without_time_follow_on():
    samples, flags = join(block(None, 1), block(None, 2), block(5, 3))
    assert len(samples) == 600 and flags == [GAPS] and not samples[200:500].any() and samples[500] == 3


def test_jitter_below_the_tolerance_is_ignored():
    samples, flags = join(block("0", 1), block("1.03", 2), block("1.97", 3), block("3.03", 4))
    assert len(samples) == 400 and flags == []


def test_drift_is_corrected_when_it_reaches_the_tolerance():
    blocks = [block(Fraction(103 * k, 100), k) for k in range(1, 11)]  # 30 ms more in each second
    samples, flags = join(*blocks)
    assert flags == [GAPS] and abs(len(samples) - (100 + 103 * 9)) <= 4


def test_block_inside_the_previous_one_is_dropped():
    samples, flags = join(block(0, 1, 300), block(1, 2), block(3, 3))
    assert samples.tolist() == [1] * 300 + [3] * 100 and flags == [OVERLAPS]


def test_recording_that_starts_again_is_appended():
    samples, flags = join(block(100, 1), block(0, 2), block(1, 3))
    assert samples.tolist() == [1] * 100 + [2] * 100 + [3] * 100 and flags == [RESTARTS]

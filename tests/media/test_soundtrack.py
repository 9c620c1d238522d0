"""The sound track of a written video: every channel, at its time, at a rate that mp4 files carry."""

import av
import numpy as np
import pytest

from emo_jax.media.soundtrack import array_track, file_track
from emo_jax.media.video_writer import VideoWriter

FRAMES = np.zeros((50, 32, 32, 3), np.uint8)  # two seconds


def channels_of_sound(channels, rate, seconds=2.0):
    """Band-limited noise float32 (samples, channels), independent in each channel."""
    noise = np.random.default_rng(channels).standard_normal((round(seconds * rate) + 32, channels))
    smooth = np.hanning(17) / 8
    return np.stack([0.15 * np.convolve(n, smooth, "same")[:-32] for n in noise.T], axis=1).astype(np.float32)


def write(path, audio, rate, codec="pcm_s16le"):
    layout = {1: "mono", 2: "stereo", 4: "4.0", 6: "5.1", 7: "6.1", 8: "7.1", 16: "hexadecagonal"}[audio.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.format = "s16"
        samples = np.round(audio * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def correlation_and_lag(a, b, reach=64):
    """Correlation of two channels, and the shift of `b` in samples at which it is highest."""
    a, b = a[: len(b)], b[: len(a)]
    shifted = [np.corrcoef(a[reach:-reach], np.roll(b, -lag)[reach:-reach])[0, 1] for lag in range(-reach, reach + 1)]
    return shifted[reach], int(np.argmax(shifted)) - reach


@pytest.mark.parametrize(
    ("channels", "rate"), [(1, 8000), (2, 16000), (2, 22050), (2, 44100), (2, 48000), (6, 48000), (2, 96000)]
)
def test_written_file_has_all_channels_at_their_rate_and_time(tmp_path, channels, rate):
    sound = channels_of_sound(channels, rate)
    write(tmp_path / "a.wav", sound, rate)
    with VideoWriter(tmp_path / "a.mp4", (32, 32), 25, file_track(tmp_path / "a.wav")) as writer:
        writer.write(FRAMES)
    track = file_track(tmp_path / "a.mp4")
    assert (track.rate, track.channels) == (rate, channels)
    written = track.read().reshape(-1, channels)
    for channel in set(range(channels)) - {3}:  # AAC's low-frequency channel of 5.1 keeps 120 Hz at most
        correlation, lag = correlation_and_lag(sound[:, channel], written[:, channel])
        assert correlation > 0.99 and lag == 0


@pytest.mark.parametrize(("rate", "expected"), [(12345, 16000), (46000, 48000), (192000, 96000)])
def test_other_rates_become_the_next_rate_of_aac(rate, expected):
    seconds = np.arange(rate) / rate
    track = array_track(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), rate)
    assert track.rate == expected
    sound = track.read()
    assert len(sound) == expected
    np.testing.assert_allclose(
        sound[100:-100], np.sin(2 * np.pi * 440 * np.arange(expected) / expected)[100:-100], atol=1e-3
    )


@pytest.mark.parametrize(
    ("channels", "suffix"), [(4, ".mp4"), (4, ".webm"), (7, ".mp4"), (8, ".mp4"), (8, ".webm"), (8, ".mov")]
)
def test_surround_sound_keeps_its_channels(tmp_path, channels, suffix):
    sound = channels_of_sound(channels, 48000)
    write(tmp_path / "a.wav", sound, 48000)
    with VideoWriter(tmp_path / f"a{suffix}", (32, 32), 25, file_track(tmp_path / "a.wav")) as writer:
        writer.write(FRAMES)
    written = file_track(tmp_path / f"a{suffix}").read()
    assert written.shape[1] == channels
    for channel in set(range(channels)) - {3}:  # the low-frequency channel
        correlation, lag = correlation_and_lag(sound[:, channel], written[:, channel])
        assert correlation > 0.99 and lag == 0
    assert np.abs(array_track(sound, 48000).read() - sound).max() < 1e-6


def test_seven_channels_in_webm_are_mixed_to_one(tmp_path, capsys):
    sound = channels_of_sound(7, 48000)
    with VideoWriter(tmp_path / "a.webm", (32, 32), 25, array_track(sound, 48000)) as writer:
        writer.write(FRAMES)
    (line,) = capsys.readouterr().err.splitlines()
    correlation, lag = correlation_and_lag(sound.mean(1), file_track(tmp_path / "a.webm").read())
    assert "7 channels" in line and correlation > 0.99 and lag == 0


def test_more_channels_than_files_carry_are_mixed_to_one(tmp_path, capsys):
    sound = channels_of_sound(16, 16000)
    track = file_track(write(tmp_path / "a.wav", sound, 16000))
    (line,) = capsys.readouterr().err.splitlines()
    assert "16 channels" in line
    np.testing.assert_allclose(track.read(), sound.mean(1), atol=1e-4)


def test_missing_track_raises(tmp_path):
    path = write(tmp_path / "a.wav", channels_of_sound(1, 16000), 16000)
    with pytest.raises(ValueError, match="track 1"):
        file_track(path, 1)

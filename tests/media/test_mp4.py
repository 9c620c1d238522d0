"""The mp4 files of records: frame-exact seeking, keyframes, damaged data."""

import io

import av
import numpy as np
import pytest

from emo_jax.media import mp4


def frame_numbers(frames):
    return np.round((frames.reshape(len(frames), -1).mean(axis=1) - 40) / 3).astype(int)


@pytest.fixture(scope="module")
def noise():
    """Returns 50 frames of moving noise, whose motion makes x264 use B-frames, and their mp4 at 25 fps."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (16, 40, 3)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    frames = np.stack([scene[:, i : i + 64] for i in range(50)])
    return frames, mp4.encode_video(frames, 25)


def test_decoding_is_frame_exact_for_every_start(noise):
    frames, video = noise
    video_frames = mp4.decode_video(video, 0, len(frames))
    assert video_frames.shape == frames.shape and video_frames.dtype == np.uint8
    # Each decoded frame is nearest to its own picture, so the order is right. Then every seek must agree with it.
    error = np.abs(video_frames[:, None].astype(int) - frames[None].astype(int)).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(error.argmin(axis=1), np.arange(len(frames)))
    for start in range(len(frames) - 4):
        np.testing.assert_array_equal(mp4.decode_video(video, start, 5), video_frames[start : start + 5])
    np.testing.assert_array_equal(mp4.decode_video(video, 49, 1), video_frames[49:])


@pytest.mark.parametrize("fps", [25, 30, 24, 30000 / 1001])
def test_frame_numbers_are_exact_at_any_rate(fps):
    frames = np.broadcast_to(40 + 3 * np.arange(40)[:, None, None, None], (40, 32, 32, 3)).astype(np.uint8)
    video = mp4.encode_video(frames, fps)
    assert mp4.count_frames(video) == 40
    for start in range(0, 38):
        assert list(frame_numbers(mp4.decode_video(video, start, 2))) == [start, start + 1]


def test_keyframes_are_at_most_16_apart(noise):
    with av.open(io.BytesIO(noise[1])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = sorted(int(packet.pts * packet.time_base * 25) for packet in packets if packet.is_keyframe)
        assert any(packet.pts != packet.dts for packet in packets)  # the video has B-frames, which make seeking hard
        assert not container.streams.audio
    assert keys[0] == 0 and max(np.diff(keys + [50])) <= 16


def test_missing_frames_raise(noise):
    with pytest.raises(ValueError, match="48 to 50 .* 50 frames"):
        mp4.decode_video(noise[1], 48, 3)
    with pytest.raises(ValueError, match="start=-1"):
        mp4.decode_video(noise[1], -1, 3)
    for read in (mp4.count_frames, lambda data: mp4.decode_video(data, 0, 1)):
        with pytest.raises(ValueError, match="no video"):
            read(b"not a video")
    with pytest.raises(ValueError, match="33x32"):
        mp4.encode_video(np.zeros((2, 33, 32, 3), np.uint8), 25)


def test_damaged_videos_raise_value_error(noise):
    rng, failed = np.random.default_rng(0), 0
    for _ in range(300):
        data = np.frombuffer(noise[1], np.uint8).copy()
        data[rng.integers(len(data), size=20)] = rng.integers(256, size=20)
        try:
            mp4.decode_video(data[: rng.integers(len(data) // 2, 2 * len(data))].tobytes(), 20, 5)
        except ValueError:
            failed += 1
    assert failed > 150

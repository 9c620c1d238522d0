"""Reads the frames of any video file, by their time stamps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from emo_jax.media.container import decode_audio_frames, decode_video_frames, open_media
from emo_jax.media.frames import to_rgb
from emo_jax.media.timing import exact_fps

TimedFrame = tuple[VideoFrame, Fraction, Fraction]
"""A frame, its time since the first frame and its duration, both in seconds."""
MAX_STILL = 60
"""Seconds that one frame may last; a longer one has a damaged time stamp."""
MAX_BACKWARD = 1
"""Seconds that time stamps may go back."""


def read_video(path: str | os.PathLike, fps: float | Fraction | None = None) -> Iterator[tuple[np.ndarray, float]]:
    """Decodes the first video track frame by frame.

    `load_audio(path, align_to_video=True)` returns the audio that starts at the same time.

    Args:
        path: a video file.
        fps: if given, the frames are resampled to the regular grid k / fps. Each grid point takes the frame whose time
            stamp is nearest; the file's own frame rate may be constant or variable. If None, every frame is returned.

    Yields:
        (image, time): uint8 RGB (height, width, 3) as a player shows it (`to_rgb`), and seconds since the first frame.

    Raises:
        ValueError: if the file is missing or not media, has no video track, has damaged time stamps or colours that
            cannot be converted, or is mostly damaged.
    """
    with open_media(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video track; give a video file")
        stream = _video_stream(container, path)
        timed = _timed(decode_video_frames(container, stream, path), stream, path)
        frames = timed if fps is None else _on_grid(timed, exact_fps(fps))
        empty = True
        for frame, time, _ in frames:
            empty = False
            try:
                image = to_rgb(frame, stream.sample_aspect_ratio)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            yield image, float(time)
        if empty:
            raise ValueError(f"{path} has a video track without frames (truncated or empty); export it again")


def probe(path: str | os.PathLike) -> dict[str, Any]:
    """Decodes a media file and describes what it holds.

    Args:
        path: an audio or video file.

    Returns:
        A dict with frames, fps (float), width, height, seconds (of the video track), audio_seconds (at most the
        duration that the track states), audio_rate, video_codec and audio_codec. Values of a missing track are 0 or
        None.

    Raises:
        ValueError: if the file is missing, not media, or mostly damaged.
    """
    info: dict[str, Any] = dict(frames=0, fps=None, width=0, height=0, seconds=0.0, video_codec=None)
    info |= dict(audio_seconds=0.0, audio_rate=None, audio_codec=None)
    with open_media(path) as container:
        if container.streams.video:
            stream = _video_stream(container, path)
            info |= dict(width=stream.width, height=stream.height, video_codec=stream.codec_context.name)
            for _, time, duration in _timed(decode_video_frames(container, stream, path), stream, path):
                info["frames"] += 1
                info["seconds"] = float(time + duration)
            info["fps"] = float(stream.average_rate) if stream.average_rate else None
    with open_media(path) as container:
        if container.streams.audio:
            stream = container.streams.audio[0]
            samples = sum(frame.samples for frame in decode_audio_frames(container, stream, path))
            if not stream.rate:
                raise ValueError(f"{path} has a sample rate of {stream.rate} Hz: its header is damaged")
            info |= dict(audio_codec=stream.codec_context.name, audio_rate=stream.rate)
            info["audio_seconds"] = samples / stream.rate
            if stream.duration and stream.time_base:
                # Players drop the part of a codec's last block that exceeds the duration of the track.
                info["audio_seconds"] = min(info["audio_seconds"], float(stream.duration * stream.time_base))
    return info


def _video_stream(container: InputContainer, path: object) -> VideoStream:
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError(f"the video track of {path} has an unknown codec; convert it to H.264")
    return stream


def _timed(frames: Iterator[VideoFrame], stream: VideoStream, path: object) -> Iterator[TimedFrame]:
    """Adds exact times to frames; a frame without a time stamp follows the one before it.

    Raises:
        ValueError: if time stamps jump by more than MAX_STILL, or go back by more than MAX_BACKWARD.
    """
    default = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
    start, expected, previous = None, Fraction(0), Fraction(0)
    for frame in frames:
        time_base = Fraction(frame.time_base or 0)
        stamp = None if frame.pts is None else frame.pts * time_base
        start = stamp if start is None else start
        time = expected if stamp is None or start is None else max(stamp - start, Fraction(0))
        if not -MAX_BACKWARD <= time - previous <= MAX_STILL:
            raise ValueError(
                f"the time stamps of {path} jump by {float(time - previous):.0f} s at {float(previous):.2f} s; "
                f"expected -{MAX_BACKWARD} to {MAX_STILL}: remux it (ffmpeg -i IN -c copy OUT) or split it there"
            )
        duration, previous = min(frame.duration * time_base or default, Fraction(MAX_STILL)), time
        expected = time + duration
        yield frame, time, duration


def _on_grid(frames: Iterator[TimedFrame], fps: Fraction) -> Iterator[TimedFrame]:
    """Yields for each k the frame nearest to k / fps, the later one of two; the grid ends with the video."""
    held, index = None, 0
    for frame, time, duration in frames:
        while held is not None and index / fps < (held[1] + time) / 2:
            yield held[0], index / fps, 1 / fps
            index += 1
        held = frame, time, duration
    while held is not None and (index == 0 or index / fps < held[1] + held[2] - 1 / (2 * fps)):
        yield held[0], index / fps, 1 / fps
        index += 1

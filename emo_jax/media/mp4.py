"""The video of a record: an mp4 file in memory with frequent keyframes, decodable from any frame."""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from emo_jax.media.container import open_mp4
from emo_jax.media.timing import exact_fps

GOP = 16
"""Frames between keyframes, which bounds what a seek has to decode and discard."""
# Without this option FFmpeg decodes a frame on opening to learn what the decoder finds out anyway.
_NO_PROBE = {"codec_whitelist": "none"}


def encode_video(frames: np.ndarray, fps: float, crf: int = 18) -> bytes:
    """Encodes frames as an mp4 file: H.264, a keyframe every 16 frames, no audio.

    Args:
        frames: uint8 RGB (N, height, width, 3); height and width even.
        fps: frames per second.
        crf: quality of x264, 0 (lossless) to 51.

    Returns:
        The bytes of the mp4 file.

    Raises:
        ValueError: if `frames` has another dtype or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames are {frames.dtype}{frames.shape}, expected uint8(N, height, width, 3) with N > 0")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(
            f"frames are {height}x{width}; H.264 needs an even height and width: crop or pad one row or column"
        )
    rate = exact_fps(fps)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # x264's output varies from run to run with its macroblock tree on.
        options = {"crf": str(crf), "g": str(GOP), "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream(
            "libx264", rate=rate, width=width, height=height, pix_fmt="yuv420p", options=options
        )
        for image in frames:
            container.mux(stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def count_frames(data: bytes) -> int:
    """Returns the number of frames that the index of an mp4 file states.

    Raises:
        ValueError: if `data` holds no readable video.
    """
    try:
        with open_mp4(data) as container:
            return container.streams.video[0].frames
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{len(data)} bytes hold no video that can be read: {error}") from error


def frame_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of the frames of an mp4 file in pixels, without decoding any.

    Raises:
        ValueError: if `data` holds no readable video.
    """
    try:
        with open_mp4(data) as container:
            stream = container.streams.video[0]
            return stream.height, stream.width
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{len(data)} bytes hold no video that can be read: {error}") from error


def decode_video(data: bytes, start: int, count: int) -> np.ndarray:
    """Decodes frames [start, start + count) of an mp4 file of constant frame rate.

    Decoding begins at the keyframe before `start`, so the cost hardly depends on the length of the video. Frames
    outside the range are decoded only where frames of the range refer to them.

    Args:
        data: an mp4 file, as `encode_video` returns it.
        start: first frame.
        count: number of frames, at least 1.

    Returns:
        uint8 RGB (count, height, width, 3).

    Raises:
        ValueError: if the video does not have these frames, or is damaged.
    """
    if start < 0 or count < 1:
        raise ValueError(f"start={start}, count={count}; expected start >= 0 and count >= 1")
    try:
        frames = _decode(data, start, count)
    except Exception as error:  # PyAV raises many types for damaged files
        raise ValueError(f"{len(data)} bytes hold no video that can be read: {error}") from error
    if len(frames) < count:
        raise ValueError(f"no frames {start} to {start + count - 1} in a video of {count_frames(data)} frames")
    return np.stack(frames)


def _decode(data: bytes, start: int, count: int) -> list[np.ndarray]:
    """Decodes the frames of `decode_video` up to the first missing one."""
    # A single thread: the data workers are the parallelism, and the threaded colour conversion, which is the default,
    # takes three times the processor time on small frames.
    to_rgb, frames = VideoReformatter(), []
    with open_mp4(data, **_NO_PROBE) as container:
        for number, frame in _frames_from(container, start, start + count):
            if number != start + len(frames):
                break  # a gap: never return a wrong frame
            frames.append(to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray())
            if len(frames) == count:
                break
    return frames


def _frames_from(container: InputContainer, start: int, stop: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yields (number, frame) from `start` on. From `stop` on, frames that no other frame refers to are left out."""
    stream = container.streams.video[0]
    if stream.average_rate is None or stream.time_base is None:
        raise ValueError("the video track states no frame rate")
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    period = 1 / (stream.average_rate * stream.time_base)
    begin = stream.start_time or 0
    container.seek(int(begin + start * period), stream=stream)
    for packet in container.demux(stream):
        if packet.pts is not None:  # the last, empty packet has none
            wanted = start <= round((packet.pts - begin) / period) < stop
            stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts is not None and (number := round((frame.pts - begin) / period)) >= start:
                yield number, frame

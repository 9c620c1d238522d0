"""The video of a record: an mp4 file in memory, written with frequent keyframes and read from any frame."""

import io
from collections.abc import Iterator

import av
import numpy as np

from emo_jax.media.timing import exact_fps

GOP = 16  # frames between keyframes: what a seek decodes in vain at most
_UNPROBED = {"codec_whitelist": "none"}  # or else FFmpeg decodes a frame in vain to learn what the decoder will find


def encode_video(frames: np.ndarray, fps: float, crf: int = 18) -> bytes:
    """Encodes frames (N, H, W, 3) uint8 RGB, H and W even, as mp4: H.264, a keyframe every 16 frames, no audio."""
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
        # x264 varies from run to run with its macroblock tree on.
        options = {"crf": str(crf), "g": str(GOP), "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream(
            "libx264", rate=rate, width=width, height=height, pix_fmt="yuv420p", options=options
        )
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def count_frames(data: bytes) -> int:
    """Number of frames of an mp4 file, without decoding it."""
    try:
        with av.open(io.BytesIO(data)) as container:
            return container.streams.video[0].frames
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{len(data)} bytes hold no video that can be read: {error}") from error


def decode_video(data: bytes, start: int, count: int) -> np.ndarray:
    """Frames [start, start + count) of an mp4 file of constant frame rate, as (count, H, W, 3) uint8 RGB.

    Decoding begins at the keyframe before `start`, so the cost hardly depends on the length of the video; of the frames
    around those asked for, only what these are coded from is decoded.

    Raises:
      ValueError: if the video does not have these frames, or is damaged.
    """
    if start < 0 or count < 1:
        raise ValueError(f"start={start}, count={count}; expected start >= 0 and count >= 1")
    try:
        frames = _frames(data, start, count)
    except Exception as error:  # of a damaged file PyAV raises what it likes
        raise ValueError(f"{len(data)} bytes hold no video that can be read: {error}") from error
    if len(frames) < count:
        raise ValueError(f"no frames {start} to {start + count - 1} in a video of {count_frames(data)} frames")
    return np.stack(frames)


def _frames(data: bytes, start: int, count: int) -> list[np.ndarray]:
    """The frames of `decode_video` up to the first that is missing."""
    # One thread everywhere: the pipeline's workers are the parallelism, and the threaded colour conversion, which is
    # the default, takes three times the processor time on small frames.
    to_rgb, frames = av.video.reformatter.VideoReformatter(), []
    with av.open(io.BytesIO(data), options=_UNPROBED) as container:
        for at, frame in _frames_from(container, start, start + count):
            if at != start + len(frames):
                break  # a gap: never return a wrong frame
            frames.append(to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray())
            if len(frames) == count:
                break
    return frames


def _frames_from(container, start: int, stop: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of the frames from `start` on; those from `stop` on are not complete."""
    stream = container.streams.video[0]
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    period = 1 / (stream.average_rate * stream.time_base)
    begin = stream.start_time or 0
    container.seek(int(begin + start * period), stream=stream)
    for packet in container.demux(stream):
        if packet.pts is not None:  # the last, empty one has none
            wanted = start <= round((packet.pts - begin) / period) < stop
            stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"
        for frame in packet.decode():
            at = round((frame.pts - begin) / period)
            if at >= start:
                yield at, frame

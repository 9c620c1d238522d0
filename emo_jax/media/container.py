"""Opens local media files with PyAV and decodes the packets of one stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # PyAV takes 0.1 s to import; the command line starts without it
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


def open_media(path: str | os.PathLike) -> InputContainer:
    """Opens a local audio or video file.

    Args:
      path: file to open. The format is detected from the bytes.

    Returns:
      The open PyAV container, to be used as a context manager.

    Raises:
      ValueError: if the file is missing, a directory, empty, or not media that FFmpeg reads.
    """
    import av
    from av.error import FFmpegError

    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a directory; give an audio or video file")
    if not file.is_file():
        raise ValueError(f"{path} does not exist; give the path of an audio or video file")
    if not file.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes); export or download it again")
    try:
        # An absolute path, so that FFmpeg does not read a colon in the name as a protocol. Only the file protocol,
        # so that a playlist cannot reach the network.
        return av.open(os.path.abspath(file), options={"protocol_whitelist": "file"})
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} cannot be read as audio or video ({reason}): truncated, or not a media file; convert it to WAV "
            "or MP4"
        ) from error


def decode_audio_frames(container: InputContainer, stream: AudioStream, path: object) -> Iterator[AudioFrame]:
    """Decodes an audio stream; see `decode_video_frames`."""
    return _decode(container, stream, path)


def decode_video_frames(container: InputContainer, stream: VideoStream, path: object) -> Iterator[VideoFrame]:
    """Decodes a video stream and skips damaged packets.

    Args:
      container: an open container.
      stream: the stream of `container` to decode.
      path: name of the file in error messages.

    Yields:
      Decoded frames in presentation order.

    Raises:
      ValueError: at the end, if more packets were damaged than frames decoded.
    """
    return _decode(container, stream, path)


def _decode(container: InputContainer, stream: AudioStream | VideoStream, path: object) -> Iterator:
    from av.error import EOFError as StreamEndError
    from av.error import FFmpegError

    good = bad = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except FFmpegError:  # the file ends inside a packet
            break
        try:
            for frame in packet.decode():
                good += 1
                yield frame
        except StreamEndError:
            break
        except FFmpegError:
            bad += 1
    if bad > good:
        raise ValueError(f"{path} is damaged: {bad} packets could not be decoded, {good} could; export it again")

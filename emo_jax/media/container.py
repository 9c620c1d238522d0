"""Opens media with PyAV and decodes the packets of one stream. No other module opens media files for reading."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from emo_jax.media.paths import check_input_file

if TYPE_CHECKING:  # PyAV takes 0.1 s to import; the command line starts without it
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

TIMEOUT = 60.0
"""Seconds that FFmpeg may take to open a file, and to read one packet."""
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,apng,asf,au,av1,avi,avif,caf,dsf,dts,dtshd,dv,eac3,flac,flv,gif,h264,hevc,iff,"
    "ivf,loas,m4v,matroska,mov,mp2,mp3,mp4,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nut,ogg,oma,rm,tak,truehd,tta,voc,w64,"
    "wav,webm,wtv,wv,xwma,yuv4mpegpipe"
)
"""FFmpeg's names of the formats that are read: files that contain their own audio and video.

Playlists (HLS, DASH, concat) are left out: they refer to other files and addresses, and need not end.
"""
# Only the file protocol, so that no format can reach the network.
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}


def open_media(path: str | os.PathLike) -> InputContainer:
    """Opens a local audio or video file of one of FORMATS.

    Metadata is not required to be UTF-8: invalid bytes are replaced.

    Args:
        path: file to open. The format is detected from the bytes.

    Returns:
        The open PyAV container, to be used as a context manager.

    Raises:
        ValueError: if the file is missing, not a regular file, empty, of another format, or not media.
    """
    import av
    from av.error import FFmpegError

    file = check_input_file(path, "an audio or video file")
    try:
        # An absolute path, so that FFmpeg does not read a colon in the name as a protocol.
        name = os.path.abspath(file)
        return av.open(name, "r", options=_OPTIONS, metadata_errors="replace", timeout=TIMEOUT)
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EINVAL:  # FFmpeg's error for a format outside FORMATS
            reason = "a playlist, a picture or another format that is not supported"
        raise ValueError(
            f"{path} cannot be read as audio or video ({reason}); if it is one, convert it to WAV or MP4"
        ) from error


def open_pipe(descriptor: int, name: object) -> InputContainer:
    """Opens sound or video that comes through a pipe, of one of FORMATS; reads no more than it needs.

    Args:
        descriptor: the open file descriptor.
        name: name of the pipe in error messages.

    Raises:
        ValueError: if the pipe is empty, of another format, or not media.
    """
    import av
    from av.error import FFmpegError

    # Little is read to detect the format; wav packets are kept short, because each is waited for.
    options = {"protocol_whitelist": "none", "format_whitelist": FORMATS, "probesize": "4096", "analyzeduration": "0"}
    try:
        return av.open(_Pipe(descriptor), "r", options=options, metadata_errors="replace", buffer_size=4096)
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name} cannot be read as sound ({reason}); send WAV, MP3, Ogg or another format with its header"
        ) from error


class _Pipe:
    """A pipe as PyAV reads it: what has come is returned at once."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        return os.read(self._descriptor, size)


def open_mp4(data: bytes, **options: str) -> InputContainer:
    """Opens an mp4 file in memory.

    Args:
        data: the bytes of the file.
        **options: further options of FFmpeg.

    Raises:
        av.error.FFmpegError: if `data` is not an mp4 file.
    """
    import av

    options = {"protocol_whitelist": "none", "format_whitelist": "mov,mp4", **options}
    return av.open(io.BytesIO(data), "r", format="mp4", options=options, metadata_errors="replace")


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

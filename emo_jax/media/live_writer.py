"""Writes a live video: to a file, standard output, a stream server or an HLS playlist, playable while it grows."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from av.error import FFmpegError

from emo_jax.media.formats import CODECS, Format
from emo_jax.media.soundtrack import SoundTrack, TrackReader
from emo_jax.media.timing import exact_fps
from emo_jax.media.video_writer import VideoWriter

KEYFRAME_SECONDS = 1.0
"""Seconds between keyframes, at which players can join and HLS segments begin."""
# A fragment for each 40 ms, so that no frame waits for the next keyframe; FFmpeg loses frames with frag_every_frame.
_FRAGMENTS = {"movflags": "delay_moov+default_base_moof", "frag_duration": "40000"}
_HLS = {"hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "event", "hls_flags": "independent_segments"}
_TARGETS = (
    (r"-|.*\.mp4", Format("mp4", ("h264",), "aac"), _FRAGMENTS),
    (r".*\.m3u8", Format("hls", ("h264",), "aac"), _HLS),
    (r"rtmps?://.*", Format("flv", ("h264",), "aac"), {"flvflags": "no_duration_filesize"}),
)


def find_target(output: str) -> tuple[Format, dict[str, str]]:
    """Returns the format of an output and its options.

    Raises:
        ValueError: the output is none of those that `LiveWriter` takes.
    """
    for pattern, form, options in _TARGETS:
        if re.fullmatch(pattern, output, re.IGNORECASE):
            return form, options
    raise ValueError(f"--output {output} is no live target; expected -, a name in .mp4 or .m3u8, or rtmp://...")


class LiveWriter(VideoWriter):
    """Context manager that writes a video under its final name, as it comes. After an error it stays, up to there.

    Args:
        output: "-" for standard output or a name in .mp4 (fragmented mp4), a name in .m3u8 (HLS; its segments are
            written beside it), or an address rtmp://... of a stream server.
        size: (height, width) of the frames in pixels.
        fps: frames per second.
        track: the sound.
        metadata: texts that are stored in the video, such as its comment.

    Raises:
        ValueError: the output cannot be written.
    """

    def __init__(
        self,
        output: str,
        size: tuple[int, int],
        fps: float | Fraction,
        track: SoundTrack,
        metadata: Mapping[str, str] | None = None,
    ):
        self.path, self.fps, self.frames = Path(output), exact_fps(fps), 0
        self._format, options = find_target(output)
        self._codec, self._metadata = CODECS["h264"], dict(metadata or {})
        self._size = int(size[0]), int(size[1])
        self._audio, self._audio_written = TrackReader(track), 0
        place: Any = output
        if output == "-":
            place = _Stdout()
        elif "://" not in output:
            place = os.path.abspath(output)  # FFmpeg would read a colon in the name as a protocol
        # Without look-ahead of the encoder, which would hold frames back.
        more = {"tune": "zerolatency"}
        self._container = None
        self._open(place, options, track, self._codec.crf, self._codec.preset, KEYFRAME_SECONDS, more)

    def close(self) -> None:
        """Completes the video."""
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if self.frames:
                self._write_audio(container, last=True)
                container.mux(self._video.encode(None))
                if self._audio_stream is not None:
                    container.mux(self._audio_stream.encode(None))
        finally:
            container.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Completes the video, after an exception as well."""
        try:
            self.close()
        except (FFmpegError, OSError):
            if kind is None:
                raise

    def _discard(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()


class _Stdout:
    """Standard output as PyAV writes to it: without seeking, and at once."""

    def write(self, data: bytes) -> int:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return len(data)

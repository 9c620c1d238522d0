"""Writes a video clip by clip, so that memory does not grow with its length and it can be watched as it grows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from emo_jax.media.formats import CODECS, Format, find_format, is_picture_folder
from emo_jax.media.gif import convert_to_gif
from emo_jax.media.picture_folder import PictureFolderWriter
from emo_jax.media.soundtrack import (
    LAYOUTS,
    SoundTrack,
    TrackReader,
    array_track,
    convert_track,
    mix_track,
)
from emo_jax.media.targets import beside, create_partial
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

KEYFRAME_SECONDS = 2
"""Seconds between keyframes, which are also the steps in which a growing file becomes watchable."""
AUDIO_FRAME = 1024
"""Samples that are encoded at once: one frame of AAC. Other encoders are given what they ask for."""
BT601 = 5  # AVCOL_SPC_BT470BG, the matrix that readers assume when they ignore the tag
BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709
LIMITED = 1  # AVCOL_RANGE_MPEG
_SAMPLE_FORMATS = {"aac": "fltp", "libopus": "flt"}


def open_writer(
    path: str | os.PathLike,
    size: tuple[int, int],
    fps: float | Fraction,
    audio: np.ndarray | SoundTrack | None = None,
    *,
    codec: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> VideoWriter | PictureFolderWriter:
    """Returns the writer for a path: a file by its ending (`formats.FORMATS`), or a folder of PNG (`path` ends in /).

    Args:
        path: the file or folder to write.
        size: (height, width) of the frames in pixels.
        fps: frames per second.
        audio: as `VideoWriter` takes it.
        codec: a name in `formats.CODECS`; None for the format's default.
        metadata: texts that are stored in the file, such as its comment.

    Raises:
        ValueError: if an argument is invalid or the path cannot be written.
    """
    if not is_picture_folder(path):
        return VideoWriter(path, size, fps, audio, codec=codec, metadata=metadata)
    if codec is not None:
        raise ValueError(f"codec is {codec!r}, but {path} is a folder of PNG pictures; leave the codec out")
    return PictureFolderWriter(path, size, fps, audio, metadata=metadata)


class VideoWriter:
    """Context manager that writes a video file and, if `audio` is given, its sound of the same length.

        with VideoWriter("out.mp4", (512, 512), 25, audio) as writer:
            writer.write(frames)  # once per clip

    The ending of the file chooses the format (`formats.FORMATS`). Audio is encoded up to the last frame written, so
    that video and audio are interleaved. Until the file is complete it is `.NAME.HOST-PID-NUMBER.part.mp4` beside the
    target (`partial_path`), fragmented so that players can open it. On exit it is rewritten as a plain file with its
    index in front and moved to the final name. After an exception it is removed, and an earlier file of the final name
    is kept; what a killed process has left is removed by the next writer in that folder. A symbolic link is followed:
    the file that it points to is written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: tuple[int, int],
        fps: float | Fraction,
        audio: np.ndarray | SoundTrack | None = None,
        *,
        audio_rate: int = SAMPLE_RATE,
        codec: str | None = None,
        crf: int | None = None,
        preset: str | None = None,
        metadata: Mapping[str, str] | None = None,
        keyframe_seconds: float = KEYFRAME_SECONDS,
    ):
        """Checks the arguments and opens the partial file.

        Args:
            path: the file to write.
            size: (height, width) of the frames in pixels. The codecs need even sides: an odd one is extended by a copy
                of the last row or column.
            fps: frames per second, converted by `exact_fps`.
            audio: float32 (samples,) or (samples, channels) in [-1, 1], or a sound track. It is padded with silence or
                trimmed to the number of frames. GIF files have no sound.
            audio_rate: sample rate in Hz of an array; `array_track` converts one that mp4 files do not carry.
            codec: a name in `formats.CODECS`; None for the format's default.
            crf: quality, from 0 (lossless) to the encoder's worst, 51 or 63; None for the codec's default.
            preset: the encoder's choice between speed and size; None for the codec's default.
            metadata: texts that are stored in the file, such as its comment.
            keyframe_seconds: seconds between keyframes.

        Raises:
            ValueError: if an argument is invalid or the file cannot be written.
        """
        self.path = Path(path)
        self.fps = exact_fps(fps)
        self.frames = 0
        self._format, name = find_format(self.path, codec)
        self._codec, self._metadata = CODECS[name], dict(metadata or {})
        crf, preset = self._codec.crf if crf is None else crf, preset or self._codec.preset
        height, width = self._size = int(size[0]), int(size[1])
        if height < 1 or width < 1 or not 0 <= crf <= self._codec.max_crf:
            raise ValueError(
                f"video of size {size} with crf {crf}; expected (height, width) above 0 and crf 0 to "
                f"{self._codec.max_crf}"
            )
        track = _track(audio, audio_rate, self._format)
        self._audio = None if track is None else TrackReader(track)
        self._audio_written = 0
        self._target = Path(os.path.realpath(self.path))
        self.partial_path = create_partial(self.path)
        self._container: OutputContainer | None = None
        movflags = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}
        options = {} if self._format.container == "webm" else movflags
        self._open(str(self.partial_path.absolute()), options, track, crf, preset, keyframe_seconds, {})

    def _open(
        self,
        place: Any,
        options: dict[str, str],
        track: SoundTrack | None,
        crf: int,
        preset: str,
        keyframe_seconds: float,
        encoder_options: dict[str, str],
    ) -> None:
        """Opens the container at a place, with its streams."""
        height, width = self._size
        try:
            options = {"flush_packets": "1", **options}
            container = self._container = av.open(place, "w", format=self._format.container, options=options)
            container.metadata.update(self._metadata)
            even = (height + height % 2, width + width % 2)
            encoder_options = self._codec.encoder_options(crf, preset) | encoder_options
            self._video = self._add_video(container, even, encoder_options, keyframe_seconds)
            self._audio_stream = None if track is None else _add_audio(container, track, self._format.audio)
        except (FFmpegError, OSError) as error:
            self._discard()
            raise ValueError(f"{self.path} cannot be written ({error}); change size, rate, preset or place") from error

    def _add_video(
        self, container: OutputContainer, size: tuple[int, int], options: dict[str, str], keyframe_seconds: float
    ) -> VideoStream:
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise
        stream = cast(VideoStream, container.add_stream(self._codec.encoder, rate=self.fps))
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = 1 / self.fps
        context.gop_size = max(1, round(keyframe_seconds * self.fps))
        context.colorspace, context.color_primaries, context.color_trc = BT601, BT709, BT709
        context.color_range = LIMITED
        if self._codec.tag and self._format.container != "webm":
            context.codec_tag = self._codec.tag
        stream.options = dict[str, object](options)
        context.open()
        return stream

    def write(self, frames: np.ndarray) -> None:
        """Appends frames and the audio that belongs to them.

        Args:
            frames: uint8 RGB (N, height, width, 3).

        Raises:
            ValueError: if `frames` has another dtype or size.
        """
        height, width = self._size
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (N, {height}, {width}, 3)")
        if height % 2 or width % 2:
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        container = self._open_container()
        for image in frames:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT601, dst_color_range=LIMITED)
            frame.pts, frame.time_base = self.frames, 1 / self.fps
            container.mux(self._video.encode(frame))
            self.frames += 1
            self._write_audio(container, last=False)

    def _open_container(self) -> OutputContainer:
        if self._container is None:
            raise ValueError(f"the writer of {self.path} is closed; open another one")
        return self._container

    def _write_audio(self, container: OutputContainer, last: bool) -> None:
        """Encodes audio up to the frames written. Time stamps count samples, so audio and video cannot drift apart."""
        if self._audio is None or self._audio_stream is None:
            return
        rate = self._audio.track.rate
        due = round(self.frames * rate / self.fps)
        size = self._audio_stream.codec_context.frame_size or AUDIO_FRAME
        while self._audio_written + size <= due or (last and self._audio_written < due):
            count = min(size, due - self._audio_written)
            frame = _audio_frame(self._audio.read(count), self._format.audio)
            frame.sample_rate, frame.pts, frame.time_base = rate, self._audio_written, Fraction(1, rate)
            container.mux(self._audio_stream.encode(frame))
            self._audio_written += count

    def close(self) -> None:
        """Completes the file and moves it to its final name.

        Raises:
            ValueError: if no frame was written.
        """
        try:
            if not self.frames:
                raise ValueError(f"no frames were written to {self.path}; write at least one")
            container = self._open_container()
            self._write_audio(container, last=True)
            container.mux(self._video.encode(None))
            if self._audio_stream is not None:
                container.mux(self._audio_stream.encode(None))
            container.close()
            complete = beside(self._target, "complete")
            try:
                if self._target.suffix.lower() == ".gif":
                    convert_to_gif(self.partial_path, complete, self._metadata.get("comment", ""))
                else:
                    _remux(self.partial_path, complete, self._format, self._metadata)
                os.replace(complete, self._target)
            finally:
                complete.unlink(missing_ok=True)
        finally:
            self._discard()

    def _discard(self) -> None:
        container, self._container = self._container, None
        try:
            if container is not None:
                container.close()
        except (FFmpegError, OSError):  # a full disk, for example: the first error is the one to report
            pass
        finally:
            self.partial_path.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        """Returns the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Completes the file, or removes it after an exception."""
        if kind is None:
            self.close()
        else:
            self._discard()


def _remux(source: Path, target: Path, form: Format, metadata: Mapping[str, str]) -> None:
    """Copies the packets of a fragmented file into a plain one with its index in front, without encoding again."""
    options = {"cues_to_front": "1"} if form.container == "webm" else {"movflags": "faststart"}
    with av.open(str(source.absolute())) as old:
        with av.open(str(target.absolute()), "w", format=form.container, options=options) as new:
            new.metadata.update(metadata)
            # opaque: without looking for an encoder of the name of the decoder, such as libdav1d.
            streams = {stream.index: new.add_stream_from_template(stream, opaque=True) for stream in old.streams}
            for packet in old.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    new.mux(packet)


def _track(audio: np.ndarray | SoundTrack | None, rate: int, form: Format) -> SoundTrack | None:
    """Returns the sound track in a rate of the format, or None if there is no sound to write."""
    track = array_track(audio, rate) if isinstance(audio, np.ndarray) else audio
    if track is None or not form.audio:
        return None
    if form.audio == "libopus" and track.channels == 7:  # FFmpeg exchanges channels of 6.1
        track = mix_track(track)
    return convert_track(track, form.audio_rates[0]) if form.audio_rates else track


def _add_audio(container: OutputContainer, track: SoundTrack, encoder: str) -> AudioStream:
    stream = cast(AudioStream, container.add_stream(encoder, rate=track.rate, layout=_layout(encoder, track.channels)))
    # AAC allows 6144 bits for a channel's frame of 1024 samples.
    stream.bit_rate = track.channels * min(128_000 if track.rate > 24000 else 96_000, 6 * track.rate)
    stream.time_base = stream.codec_context.time_base = Fraction(1, track.rate)
    stream.codec_context.format = _SAMPLE_FORMATS[encoder]  # pyright: ignore[reportAttributeAccessIssue]
    stream.codec_context.open()
    return stream


def _layout(encoder: str, channels: int) -> str:
    """Returns FFmpeg's name of the layout that an encoder takes for a number of channels."""
    return "quad" if (encoder, channels) == ("libopus", 4) else LAYOUTS[channels]


def _audio_frame(samples: np.ndarray, encoder: str) -> AudioFrame:
    """Returns a frame of float32 (samples, channels) as an encoder takes it.

    Replaces `AudioFrame.from_ndarray`, which writes a ninth channel of eight-channel frames and fails (PyAV 18).
    """
    form, (count, channels) = _SAMPLE_FORMATS[encoder], samples.shape
    frame = AudioFrame(format=form, layout=_layout(encoder, channels), samples=count)
    rows = samples.T if form.endswith("p") else samples.reshape(1, -1)
    for row, plane in zip(rows, frame.planes, strict=False):
        plane.update(_padded(row, plane.buffer_size))
    return frame


def _padded(row: np.ndarray, size: int) -> bytes:
    """Returns the bytes of samples, with zeros up to the size of a plane."""
    return np.ascontiguousarray(row).tobytes().ljust(size, b"\0")

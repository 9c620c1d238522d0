"""Writes an mp4 file clip by clip, so that memory does not grow with its length and it can be watched as it grows."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from emo_jax.files import process_tag, remove_leftovers
from emo_jax.media.soundtrack import LAYOUTS, SoundTrack, array_track
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

KEYFRAME_SECONDS = 2
"""Seconds between keyframes, which are also the steps in which a growing file becomes watchable."""
AAC_FRAME = 1024
MAX_NAME = 255
"""Longest file name in bytes on Linux and macOS."""
BT601 = 5  # AVCOL_SPC_BT470BG, the matrix that readers assume when they ignore the tag
BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709
LIMITED = 1  # AVCOL_RANGE_MPEG


class VideoWriter:
    """Context manager that writes an mp4 file: H.264 (yuv420p) and, if `audio` is given, AAC of the same length.

        with VideoWriter("out.mp4", (512, 512), 25, audio) as writer:
            writer.write(frames)  # once per clip

    Audio is encoded up to the last frame written, so that video and audio are interleaved. Until the file is complete
    it is `.NAME.HOST-PID.part.mp4` beside the target (`partial_path`), fragmented so that players can open it. On exit
    it is rewritten as a plain mp4 with its index in front and moved to the final name. After an exception it is
    removed, and an earlier file of the final name is kept; what a killed process has left is removed by the next writer
    in that folder. A symbolic link is followed: the file that it points to is written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: tuple[int, int],
        fps: float | Fraction,
        audio: np.ndarray | SoundTrack | None = None,
        *,
        audio_rate: int = SAMPLE_RATE,
        crf: int = 18,
        preset: str = "veryfast",
    ):
        """Checks the arguments and opens the partial file.

        Args:
          path: the mp4 file to write.
          size: (height, width) of the frames in pixels. H.264 needs even sides: an odd one is extended by a copy of the
            last row or column.
          fps: frames per second, converted by `exact_fps`.
          audio: float32 (samples,) or (samples, channels) in [-1, 1], or a sound track. It is padded with silence or
            trimmed to the number of frames.
          audio_rate: sample rate in Hz of an array; `array_track` converts one that mp4 files do not carry.
          crf: quality of x264, 0 (lossless) to 51.
          preset: x264's preset, a choice between speed and size.

        Raises:
          ValueError: if an argument is invalid or the file cannot be written.
        """
        self.path = Path(path)
        self.fps = exact_fps(fps)
        self.frames = 0
        height, width = self._size = int(size[0]), int(size[1])
        if height < 1 or width < 1 or not 0 <= crf <= 51:
            raise ValueError(f"video of size {size} with crf {crf}; expected (height, width) above 0 and crf 0 to 51")
        track = array_track(audio, audio_rate) if isinstance(audio, np.ndarray) else audio
        self._audio = None if track is None else _TrackReader(track)
        self._audio_written = 0
        self._target = Path(os.path.realpath(self.path))
        self.partial_path = _create_partial(self.path)
        self._container: OutputContainer | None = None
        movflags = "frag_keyframe+delay_moov+default_base_moof"
        options = {"movflags": movflags, "flush_packets": "1"}
        try:
            container = av.open(str(self.partial_path.absolute()), "w", format="mp4", options=options)
            self._container = container
            self._video = self._add_video(container, height + height % 2, width + width % 2, crf, preset)
            self._audio_stream = None if track is None else _add_audio(container, track)
        except (FFmpegError, OSError) as error:
            self._discard()
            raise ValueError(f"{path} cannot be written ({error}); change size, rate, preset or place") from error

    def _add_video(self, container: OutputContainer, height: int, width: int, crf: int, preset: str) -> VideoStream:
        stream = container.add_stream("libx264", rate=self.fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = 1 / self.fps
        context.gop_size = max(1, round(KEYFRAME_SECONDS * self.fps))
        context.colorspace, context.color_primaries, context.color_trc = BT601, BT709, BT709
        context.color_range = LIMITED
        # x264's output varies from run to run with its macroblock tree on.
        stream.options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
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
        rate, channels = self._audio.track.rate, self._audio.track.channels
        due = round(self.frames * rate / self.fps)
        while self._audio_written + AAC_FRAME <= due or (last and self._audio_written < due):
            count = min(AAC_FRAME, due - self._audio_written)
            samples = np.ascontiguousarray(self._audio.read(count).T)
            frame = AudioFrame.from_ndarray(samples, format="fltp", layout=LAYOUTS[channels])
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
            complete = _beside(self._target, "complete")
            try:
                _remux(self.partial_path, complete)
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


def check_target(path: str | os.PathLike) -> None:
    """Checks that `VideoWriter` could write to `path`; leaves no file.

    Raises:
      ValueError: if it could not.
    """
    _create_partial(Path(path)).unlink(missing_ok=True)


def _create_partial(path: Path) -> Path:
    """Creates the empty temporary file beside `path`, so that an unwritable place is an error before the work."""
    target = Path(os.path.realpath(path))
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path} does not end in .mp4, the only format written; rename it")
    if not target.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {target.parent}; create it first")
    if len(os.fsencode(target.name)) > MAX_NAME:
        raise ValueError(f"{path} cannot be written: its name exceeds {MAX_NAME} bytes; choose a shorter one")
    if target.is_dir():
        raise ValueError(f"{path} is a directory; give the name of an mp4 file in it")
    remove_leftovers(target.parent)
    partial = _beside(target, "part")
    try:
        partial.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    return partial


def _beside(target: Path, kind: str) -> Path:
    """Returns the name of a temporary file beside `target`, with the process: another run may write the same file."""
    ending = f".{process_tag()}.{kind}.mp4"
    fits = len(os.fsencode(target.stem)) + len(ending) < MAX_NAME
    return target.with_name(f".{target.stem if fits else 'video'}{ending}")


def _remux(source: Path, target: Path) -> None:
    """Copies the packets of a fragmented mp4 into a plain one with its index in front, without encoding again."""
    with av.open(str(source.absolute())) as old:
        with av.open(str(target.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as new:
            streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
            for packet in old.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    new.mux(packet)


class _TrackReader:
    """Reads a sound track in pieces of any length, followed by silence."""

    def __init__(self, track: SoundTrack):
        self.track = track
        self._blocks = track.blocks()
        self._held = np.zeros((0, track.channels), np.float32)

    def read(self, count: int) -> np.ndarray:
        """Returns the next `count` samples, (count, channels)."""
        blocks, held = [self._held], len(self._held)
        while held < count:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros((count - held, self.track.channels), np.float32)
            blocks.append(block)
            held += len(block)
        samples = np.concatenate(blocks)
        self._held = samples[count:]
        return samples[:count]


def _add_audio(container: OutputContainer, track: SoundTrack) -> AudioStream:
    stream = container.add_stream("aac", rate=track.rate, layout=LAYOUTS[track.channels])
    # AAC allows 6144 bits for a channel's frame of 1024 samples.
    stream.bit_rate = track.channels * min(128_000 if track.rate > 24000 else 96_000, 6 * track.rate)
    stream.time_base = stream.codec_context.time_base = Fraction(1, track.rate)
    stream.codec_context.open()
    return stream

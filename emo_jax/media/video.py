"""Video out as it is made, and frames of any video in.

`VideoWriter` takes frames clip by clip, so memory does not grow with the length: sound is encoded up to the last frame
written, pictures and sound are interleaved, and the file can be watched while it grows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from emo_jax.media.container import decode_packets, open_media
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

KEYFRAME_SECONDS = 2  # a growing file becomes watchable in steps of this length
AAC_FRAME = 1024
BT601 = 5  # AVCOL_SPC_BT470BG, the matrix that readers which ignore the tag assume
BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709
LIMITED = 1  # AVCOL_RANGE_MPEG


class VideoWriter:
    """Context manager that writes an mp4: H.264 (yuv420p) and, where `audio` is given, mono AAC of the same length.

        with VideoWriter("out.mp4", (512, 512), 25, audio) as writer:
            writer.write(frames)  # uint8 RGB (N, height, width, 3), as often as there are clips

    size: (height, width) of the frames; an odd side gets one more row or column, a copy of the last, as H.264 needs.
    fps: frames per second (`exact_fps`). audio: float32 (samples,) in [-1, 1] at `audio_rate` Hz, padded with silence
    or cut to the number of frames. crf: H.264 quality, 0 (lossless) to 51. preset: x264's, speed against size.

    Until it is closed the file is `.NAME.PID.part.mp4` beside the target (`partial_path`), fragmented so that players
    can open it. Leaving the block rewrites it as a plain mp4 with its index in front, under the final name; an
    exception removes it and leaves what was under the final name before.

    Raises ValueError (one line) before any work is done where the file can't be written or an argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: tuple[int, int],
        fps: float | Fraction,
        audio: np.ndarray | None = None,
        *,
        audio_rate: int = SAMPLE_RATE,
        crf: int = 18,
        preset: str = "veryfast",
    ):
        self.path = Path(path)
        self.fps = exact_fps(fps)
        self.frames = 0
        height, width = self._size = tuple(int(side) for side in size)
        if height < 1 or width < 1 or not 0 <= crf <= 51:
            raise ValueError(f"video of size {size} with crf {crf}; expected (height, width) above 0 and crf 0 to 51")
        self._audio = None if audio is None else _checked_audio(audio)
        self._audio_rate, self._sent = audio_rate, 0
        self.partial_path = _free_partial(self.path)
        movflags = "frag_keyframe+delay_moov+default_base_moof"
        options = {"movflags": movflags, "flush_packets": "1"}
        try:
            self._container = av.open(str(self.partial_path.absolute()), "w", format="mp4", options=options)
            self._video = self._add_video(height + height % 2, width + width % 2, crf, preset)
            self._sound = self._add_sound() if self._audio is not None else None
        except (av.error.FFmpegError, OSError) as error:
            self._discard()
            raise ValueError(f"{path} cannot be written ({error}); change size, rate, preset or place") from error

    def _add_video(self, height: int, width: int, crf: int, preset: str):
        stream = self._container.add_stream("libx264", rate=self.fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = 1 / self.fps
        context.gop_size = max(1, round(KEYFRAME_SECONDS * self.fps))
        context.colorspace, context.color_primaries, context.color_trc = BT601, BT709, BT709
        context.color_range = LIMITED
        # x264 varies from run to run with its macroblock tree on
        stream.options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
        context.open()
        return stream

    def _add_sound(self):
        stream = self._container.add_stream("aac", rate=self._audio_rate, layout="mono")
        stream.bit_rate = 128_000 if self._audio_rate > 24000 else 96_000
        stream.time_base = stream.codec_context.time_base = Fraction(1, self._audio_rate)
        stream.codec_context.open()
        return stream

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 RGB (N, height, width, 3) and the sound that belongs to them."""
        height, width = self._size
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3):
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (N, {height}, {width}, 3)")
        if height % 2 or width % 2:
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT601, dst_color_range=LIMITED)
            frame.pts, frame.time_base = self.frames, 1 / self.fps
            self._container.mux(self._video.encode(frame))
            self.frames += 1
            self._send_sound(last=False)

    def _send_sound(self, last: bool) -> None:
        """Encode sound up to the frames written; time stamps count samples, so nothing can drift."""
        if self._sound is None:
            return
        due = round(self.frames * self._audio_rate / self.fps)
        while self._sent + AAC_FRAME <= due or (last and self._sent < due):
            count = min(AAC_FRAME, due - self._sent)
            samples = np.zeros((1, count), np.float32)
            piece = self._audio[self._sent : self._sent + count]
            samples[0, : len(piece)] = piece
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._audio_rate, self._sent, Fraction(1, self._audio_rate)
            self._container.mux(self._sound.encode(frame))
            self._sent += count

    def close(self) -> None:
        """Finish the file and put it under its final name. ValueError where no frame was written."""
        try:
            if not self.frames:
                raise ValueError(f"no frames were written to {self.path}; write at least one")
            self._send_sound(last=True)
            for stream in filter(None, (self._video, self._sound)):
                self._container.mux(stream.encode(None))
            self._container.close()
            whole = self.partial_path.with_suffix(".whole.mp4")
            try:
                _rewrite_plain(self.partial_path, whole)
                os.replace(whole, self.path)
            finally:
                whole.unlink(missing_ok=True)
        finally:
            self._discard()

    def _discard(self) -> None:
        container, self._container = getattr(self, "_container", None), None
        try:
            if container is not None:
                container.close()
        except (av.error.FFmpegError, OSError):  # a full disk, say: what led here is the error to report
            pass
        finally:
            self.partial_path.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def read_video(path: str | os.PathLike, fps: float | Fraction | None = None) -> Iterator[tuple[np.ndarray, float]]:
    """(uint8 RGB (height, width, 3), seconds since the first frame) of each frame, upright, decoded one by one.

    With `fps` the frames are put on a regular grid k / fps by their time stamps (the nearest in time), whatever the
    file's own rate, constant or not. `load_audio(path, align_to_video=True)` is the sound from the same zero on.
    Raises ValueError (one line) where there is no such file, no picture in it, or it is mostly damaged.
    """
    with open_media(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video track; give a video file")
        stream = container.streams.video[0]
        timed = _timed(decode_packets(container, stream, path), stream)
        frames = timed if fps is None else _on_grid(timed, exact_fps(fps))
        empty = True
        for frame, time, _ in frames:
            empty = False
            image = frame.to_ndarray(format="rgb24")
            yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))), float(time)
        if empty:
            raise ValueError(f"{path} has a video track with no frames (cut off or empty); export it again")


def probe(path: str | os.PathLike) -> dict:
    """What a file holds, counted by decoding all of it: frames, fps (float), width, height, seconds (of the pictures),
    audio_seconds (at most the length the track states), audio_rate, video_codec, audio_codec; 0 or None for a track it
    lacks. ValueError as `read_video`."""
    found = dict(frames=0, fps=None, width=0, height=0, seconds=0.0, video_codec=None)
    found |= dict(audio_seconds=0.0, audio_rate=None, audio_codec=None)
    with open_media(path) as container:
        if container.streams.video:
            stream = container.streams.video[0]
            found |= dict(width=stream.width, height=stream.height, video_codec=stream.codec_context.name)
            for _, time, length in _timed(decode_packets(container, stream, path), stream):
                found["frames"] += 1
                found["seconds"] = float(time + length)
            found["fps"] = float(stream.average_rate) if stream.average_rate else None
    with open_media(path) as container:
        if container.streams.audio:
            stream = container.streams.audio[0]
            samples = sum(frame.samples for frame in decode_packets(container, stream, path))
            found |= dict(audio_codec=stream.codec_context.name, audio_rate=stream.rate)
            found["audio_seconds"] = samples / stream.rate
            if stream.duration:  # players drop what a codec's last block holds beyond the track's length
                found["audio_seconds"] = min(found["audio_seconds"], float(stream.duration * stream.time_base))
    return found


def _timed(frames: Iterator, stream) -> Iterator[tuple]:
    """(frame, seconds since the first frame, seconds it lasts), exact fractions; frames without a time follow on."""
    usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
    start, expected = None, Fraction(0)
    for frame in frames:
        stamp = None if frame.pts is None else frame.pts * Fraction(frame.time_base)
        start = stamp if start is None else start
        time = expected if stamp is None or start is None else max(stamp - start, Fraction(0))
        length = frame.duration * Fraction(frame.time_base) if frame.duration else usual
        expected = time + length
        yield frame, time, length


def _on_grid(frames: Iterator[tuple], fps: Fraction) -> Iterator[tuple]:
    """Frame k is the one whose time is nearest to k / fps (the later one of two); the grid ends with the video."""
    held, index = None, 0
    for frame, time, length in frames:
        while held is not None and index / fps < (held[1] + time) / 2:
            yield held[0], index / fps, 1 / fps
            index += 1
        held = frame, time, length
    while held is not None and index / fps < held[1] + held[2] - 1 / (2 * fps) or (held is not None and index == 0):
        yield held[0], index / fps, 1 / fps
        index += 1


def _rewrite_plain(source: Path, target: Path) -> None:
    """Copy the packets of a fragmented mp4 into a plain one with its index in front; nothing is encoded again."""
    with av.open(str(source.absolute())) as old:
        with av.open(str(target.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as new:
            streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
            for packet in old.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    new.mux(packet)


def _checked_audio(audio: np.ndarray) -> np.ndarray:
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f" or not np.isfinite(audio).all():
        raise ValueError(f"audio is {audio.dtype} {audio.shape}; expected finite float32 (samples,) in [-1, 1]")
    if audio.min(initial=0.0) < -1 or audio.max(initial=0.0) > 1:
        audio = np.clip(audio, -1.0, 1.0)
    return audio.astype(np.float32, copy=False)  # no copy where there need be none: an hour of sound is 600 MB


def check_target(path: str | os.PathLike) -> None:
    """ValueError (one line) where `VideoWriter` could not write to `path`; leaves nothing behind."""
    _free_partial(Path(path)).unlink(missing_ok=True)


def _free_partial(path: Path) -> Path:
    """The temporary file beside `path`, made and empty, so that a place that can't be written is told at once."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of an mp4 file in it")
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path} does not end in .mp4, the one format written; rename it")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part.mp4")  # another run may be writing the same video
    try:
        partial.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    return partial

"""Writing of a video while it is generated: frame-rate conversion, the file, progress, and a strip of frames."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from emo_jax.cache import watch_compilation
from emo_jax.generation.inputs import PortraitLike, Voice
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.generation.video import FrameStream, provenance
from emo_jax.media.notice import Notice
from emo_jax.media.timing import exact_fps, require_frames
from emo_jax.media.video_writer import open_writer
from emo_jax.progress import Progress

STRIP_FRAMES = 8
"""Default number of frames in a `FilmStrip`."""


def convert_frame_rate(
    segments: Iterator[Shaped[np.ndarray, "_ ..."]], fps: float | Fraction, out_fps: float | Fraction, total: int
) -> Iterator[Shaped[np.ndarray, "_ ..."]]:
    """Repeats or drops frames: output frame j is the input frame shown at time (j + 1/2) / out_fps.

    The last input frame is repeated until there are `total` frames. Equal rates pass through.

    Args:
        segments: consecutive groups of frames at `fps`.
        fps: input frame rate.
        out_fps: output frame rate.
        total: number of output frames.

    Yields:
        Groups of frames at `out_fps`, `total` frames together.
    """
    ratio, half = exact_fps(fps) / exact_fps(out_fps), Fraction(1, 2)
    first, written, last = 0, 0, None
    for frames in segments:
        end = first + len(frames)
        # Output frame j takes input frame floor((j + 1/2) * ratio): those with an input frame before `end` are due.
        due = min(total, math.ceil(end / ratio - half))
        if due > written:
            yield frames[[math.floor((j + half) * ratio) - first for j in range(written, due)]]
        first, written, last = end, max(due, written), frames[-1:]
    if last is not None and written < total:
        yield np.repeat(last, total - written, axis=0)


def write_video(
    path: str | os.PathLike,
    pipe: EmoPipeline,
    portrait: PortraitLike,
    voice: Voice,
    *,
    label: str,
    fps: float | None = None,
    codec: str | None = None,
    notice: str | None = None,
    on_frames: Callable[[np.ndarray], None] | None = None,
    on_window: Callable[[int, int], None] | None = None,
    **options: Any,
) -> None:
    """Generates a video and writes it segment by segment, with a comment that says that it is generated.

    Prints progress to stderr and one line about the result to stdout. After an error no partial file stays, and a file
    that existed under the name is kept.

    Args:
        path: the file or folder, as `open_writer` takes it. The video has ceil(seconds * fps) frames.
        pipe: the pipeline.
        portrait: as `EmoPipeline.stream` takes it.
        voice: the recording.
        label: name of the progress bar.
        fps: frame rate of the file; None for the pipeline's.
        codec: the video codec; None for the default of the file's format.
        notice: a text to draw into the frames; None for none.
        on_frames: called with each group of frames (n, height, width, 3) after it is written.
        on_window: see `EmoPipeline.stream`.
        **options: keyword arguments of `EmoPipeline.stream`.

    Raises:
        ValueError: an input cannot be used, or the file cannot be written.
    """
    total = require_frames(voice.samples, pipe.fps if fps is None else fps)
    denoising = _Denoising(label, on_window)
    stream = pipe.stream(portrait, voice.samples, on_window=denoising.count, **options)
    comment = provenance(pipe.name, options.get("seed", 0))
    written = write_stream(path, stream, pipe.fps, voice, comment, fps=fps, codec=codec, notice=notice)
    with contextlib.closing(written), contextlib.ExitStack() as stack:
        print(f"{label}: generating {total} frames", file=sys.stderr)
        stack.enter_context(contextlib.closing(denoising))
        progress = stack.enter_context(Progress(total, label, "frame"))
        stack.enter_context(watch_compilation(lambda: progress.say(f"{label}: compiling")))
        for frames in written:
            progress.add(len(frames))
            if on_frames is not None:
                on_frames(frames)
    print_result(f"{os.fspath(path)}: {total} frames, {total / float(exact_fps(fps or pipe.fps)):.2f} s")


def write_stream(
    path: str | os.PathLike,
    stream: FrameStream,
    stream_fps: float,
    voice: Voice,
    comment: str,
    *,
    fps: float | None = None,
    codec: str | None = None,
    notice: str | None = None,
) -> Generator[np.ndarray]:
    """Writes frames while they are generated. If it is closed before its end, no file stays.

    Args:
        path: the file or folder, as `open_writer` takes it.
        stream: the frames.
        stream_fps: their frame rate.
        voice: the recording.
        comment: a text that is stored in the file.
        fps: frame rate of the file; None for that of the stream.
        codec: the video codec; None for the default of the file's format.
        notice: a text to draw into the frames; None for none.

    Yields:
        Each group of frames (n, height, width, 3) after it is written.
    """
    fps = stream_fps if fps is None else fps
    total = require_frames(voice.samples, fps)
    overlay = None if notice is None else Notice(notice, stream.size)
    with open_writer(path, stream.size, fps, voice.track, codec=codec, metadata={"comment": comment}) as writer:
        for frames in convert_frame_rate(stream, stream_fps, fps, total):
            frames = frames if overlay is None else overlay.draw(frames)
            writer.write(frames)
            yield frames


class _Denoising:
    """Shows the windows that are denoised before the first frames, with weights that are sampled in windows."""

    def __init__(self, label: str, then: Callable[[int, int], None] | None):
        self._label, self._then = label, then
        self._progress: Progress | None = None

    def count(self, done: int, total: int) -> None:
        """Counts a window."""
        if self._progress is None:
            self._progress = Progress(total, f"{self._label}: denoising", "window")
        self._progress.add(1)
        if self._then is not None:
            self._then(done, total)

    def close(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.close()


def print_result(line: str) -> None:
    """Prints a line to stdout; characters that its encoding lacks, as in file names, are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


class FilmStrip:
    """Collects frames at equal distances from a video and joins them side by side.

    Args:
        total: number of frames of the video.
        count: number of frames in the strip.
    """

    def __init__(self, total: int, count: int = STRIP_FRAMES):
        self._indices = set(np.linspace(0, total - 1, count + 2).round().astype(int)[1:-1].tolist())
        self._next = 0
        self._frames: list[np.ndarray] = []

    def add(self, frames: UInt8[np.ndarray, "_ height width 3"]) -> None:
        """Takes the next frames of the video."""
        self._frames += [frame.copy() for index, frame in enumerate(frames, self._next) if index in self._indices]
        self._next += len(frames)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the strip to a PNG file."""
        Image.fromarray(np.concatenate(self._frames, axis=1)).save(path, optimize=True)

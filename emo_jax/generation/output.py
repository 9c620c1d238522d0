"""`emo generate`: a portrait and a voice become a talking video.

emo generate --portrait me.jpg --audio song.mp3 --out me.mp4
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from emo_jax.generation.inputs import Voice
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.timing import exact_fps, require_frames
from emo_jax.media.video_writer import VideoWriter
from emo_jax.progress import Progress


def retimed(segments: Iterator[np.ndarray], fps, out_fps, total: int) -> Iterator[np.ndarray]:
    """`total` frames at `out_fps` from segments (n, ...) at `fps`: each is what shows at the middle of its time.

    The last frame is held where the sound lasts longer. Equal rates pass through.
    """
    ratio, half, seen, made, last = exact_fps(fps) / exact_fps(out_fps), Fraction(1, 2), 0, 0, None
    for frames in segments:
        until = seen + len(frames)
        # frame j takes source frame floor((j + 1/2) ratio): count the j whose source lies before `until`
        stop = min(total, math.ceil(until / ratio - half))
        if stop > made:
            yield frames[[math.floor((j + half) * ratio) - seen for j in range(made, stop)]]
        seen, made, last = until, max(stop, made), frames[-1:]
    if made < total:
        yield np.repeat(last, total - made, axis=0)


def write_video(path, pipe: EmoPipeline, portrait, voice: Voice, *, name: str, fps=None, watch=None, **options) -> None:
    """Generates and writes an mp4 as it grows, with progress on stderr and one line about the result on stdout.

    It has ceil(seconds * fps) frames. After an error nothing is left, and what was under the name before stays.

    Args:
        name: of the progress bar. fps: None: the model's. watch: called with the frames (n, H, W, 3) just written.
        options: of `EmoPipeline.stream`.
    """
    fps = pipe.fps if fps is None else fps
    total = require_frames(voice.heard, fps)
    segments = retimed(pipe.stream(portrait, voice.heard, **options), pipe.fps, fps, total)
    writer = VideoWriter(path, pipe.size, fps, voice.track, audio_rate=voice.rate)
    if not sys.stderr.isatty():
        print(f"{name}: {total} frames; the first ones take longer, a program is compiled", file=sys.stderr)
    with writer, Progress(total, name, "frame") as progress:
        for frames in segments:
            writer.write(frames)
            progress.add(len(frames))
            if watch is not None:
                watch(frames)
    print(f"{path}: {total} frames, {total / float(exact_fps(fps)):.2f} s")

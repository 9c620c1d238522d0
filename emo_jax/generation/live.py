"""Live generation: the sound comes from a pipe or a microphone, and the video is written at the same time."""

import collections
import contextlib
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from emo_jax.generation.checks import check_frames, check_usable
from emo_jax.generation.inputs import PortraitLike
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.generation.prepared import Prepared, prepare
from emo_jax.generation.time_inputs import Segment
from emo_jax.generation.video import provenance
from emo_jax.media.live_sound import LiveSound, Source
from emo_jax.media.live_writer import LiveWriter
from emo_jax.media.loudness import normalise
from emo_jax.media.notice import Notice
from emo_jax.media.timing import SAMPLE_RATE, exact_fps, frame_count, window_bounds

CONTEXT = 10.0
"""Seconds of sound before a segment from which its loudness is levelled, and which wav2vec 2.0 hears."""


class LiveVideo:
    """A video that follows sound as it comes, one segment of `clips` clips at a time.

    The program is compiled when the object is made, before any sound is read.

    Args:
        pipe: the pipeline.
        portrait: as `EmoPipeline.stream` takes it.
        clips: clips of a segment; more are faster but delay the video.
        **options: keyword arguments of `EmoPipeline.stream`; the speed is a number.

    Attributes:
        size: (height, width) of the frames.
        delay: seconds of sound that a segment needs: its own, and the part after it that the networks hear.
    """

    def __init__(self, pipe: EmoPipeline, portrait: PortraitLike, clips: int = 1, **options: Any):
        if np.ndim(options.get("speed") or 0.0):
            raise ValueError("speed is a curve; expected a number: live sound has no end that a curve could follow")
        second = np.zeros(SAMPLE_RATE, np.float32)  # `prepare` checks a recording; it is not used
        self._video: Prepared = prepare(pipe._emo, portrait, second, **options)
        sampling = ConfigDict({**self._video.sampling, "clips": clips})
        if sampling.get("strategy", "clips") != "clips":
            raise ValueError("sampling.strategy windows needs the complete sound; choose others for live video")
        clip = self._clip = pipe.config.clip
        self._sampler = pipe.sampler(sampling)
        self.size, self.fps = self._video.size, pipe.fps
        speed = self._video.sampling.speed if self._video.speed is None else np.ravel(self._video.speed)[0]
        self._speeds = self._sampler.time.speeds(np.asarray(speed, np.float32), 1, 0, self._sampler.frames_per_segment)
        self._due = collections.deque[int]()  # frames of each segment that belong to the video
        self.delay = float((self._sampler.frames_per_segment + clip.audio_window) / exact_fps(self.fps))
        silence = self._segment(np.zeros(0, np.float32), 0, -clip.audio_window, self._sampler.frames_per_segment)
        list(self._frames(iter([silence])))

    def frames(self, sound: LiveSound) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
        """Yields the frames of each segment, as soon as the sound that they need is there.

        Raises:
            ValueError: the sound cannot be read.
            FloatingPointError: the latents of a segment are not usable.
        """
        return self._frames(self._segments(sound))

    def _frames(self, segments: Iterator[Segment]) -> Iterator[np.ndarray]:
        video, canvas = self._video, self._video.canvas
        sampled = self._sampler.sample(
            video.crop[None],
            video.masks,
            (),
            segments=segments,
            scales=video.scales,
            key=jax.random.key(video.seed),
            hold=None if canvas is None else canvas.hold[None],
            **video.extra,
        )
        for index, (frames, usable) in enumerate(sampled):
            check_usable(bool(usable.all()), index)
            checked = check_frames(frames[0], index)[: self._due.popleft()]
            yield checked if canvas is None else canvas.paste(checked)

    def _segments(self, sound: LiveSound) -> Iterator[Segment]:
        margin, count = self._clip.audio_window, self._sampler.frames_per_segment
        for index in itertools.count():
            first = index * count - margin
            start, length = window_bounds(first, count + 2 * margin, self.fps)
            total = sound.wait(start + length)
            frames = count if total is None else min(count, frame_count(total, self.fps) - index * count)
            if frames < 1:
                return
            base = max(0, first - round(CONTEXT * self.fps))
            heard = sound.heard(round(base * SAMPLE_RATE / exact_fps(self.fps)), start + length)
            yield self._segment(heard, base, first, frames)

    def _segment(self, heard: np.ndarray, base: int, first: int, frames: int) -> Segment:
        """Returns the inputs from frame `first` on. The sound `heard` begins at frame `base`."""
        if not len(heard):
            heard = np.zeros(SAMPLE_RATE, np.float32)
        self._due.append(frames)
        hearing = self._sampler.time.hearing(self._sampler.params, normalise(heard)[None])
        length = self._sampler.frames_per_segment + 2 * self._clip.audio_window
        return Segment(hearing(first - base, length), self._speeds, self._sampler.config.clips)


def write_live(
    pipe: EmoPipeline,
    portrait: PortraitLike,
    open_sound: Callable[[], Source],
    output: str,
    *,
    notice: str | None = None,
    clips: int = 1,
    **options: Any,
) -> None:
    """Generates a video from sound as it comes, writes it as it grows, and prints the latency to stderr.

    Ends with the sound, or with the first Ctrl-C; the second one interrupts. The latency of a frame is the time from
    the arrival of its sound until it is written.

    Args:
        pipe: the pipeline.
        portrait: as `EmoPipeline.stream` takes it.
        open_sound: opens the sound, after the program is compiled.
        output: where to write, as `LiveWriter` takes it.
        notice: a text to draw into the frames.
        clips: clips of a segment.
        **options: keyword arguments of `EmoPipeline.stream`.

    Raises:
        ValueError: an input cannot be used.
    """
    _say("generate: compiling")
    video = LiveVideo(pipe, portrait, clips, **options)
    overlay = None if notice is None else Notice(notice, video.size)
    _say(f"generate: ready; each segment waits for {video.delay:.2f} s of sound")
    sound = LiveSound(open_sound())
    comment = provenance(pipe.name, options.get("seed", 0))
    latencies = list[float]()
    with (
        LiveWriter(output, video.size, video.fps, sound.track, metadata={"comment": comment}) as writer,
        _stopped_by_ctrl_c(sound),
    ):
        with contextlib.closing(video.frames(sound)) as segments:  # pyright: ignore[reportArgumentType]
            for frames in segments:
                first = writer.frames
                writer.write(frames if overlay is None else overlay.draw(frames))
                now, per_frame = time.monotonic(), SAMPLE_RATE / exact_fps(video.fps)
                latencies += [now - sound.arrival(round(frame * per_frame)) for frame in range(first, writer.frames)]
    if not latencies:
        raise ValueError("the sound has ended before the first frame; send at least one frame of it")
    _say(
        f"generate: {len(latencies)} frames, {len(latencies) / video.fps:.2f} s; latency {np.median(latencies):.2f} s "
        f"in the median, {max(latencies):.2f} s at most"
    )


@contextlib.contextmanager
def _stopped_by_ctrl_c(sound: LiveSound) -> Iterator[None]:
    """Within this context, the first Ctrl-C ends the sound, so that the video ends as it does with a recording."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        sound.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Jobs of the web page: one video after the other on each device, in files that their user alone can fetch."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emo_jax.app.metrics import Metrics
from emo_jax.app.settings import Settings
from emo_jax.generation.inputs import Voice, load_portrait, load_voice
from emo_jax.generation.video import provenance
from emo_jax.media.images import picture_size
from emo_jax.media.notice import Notice
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.media.video_writer import VideoWriter

FRAGMENT_SECONDS = 0.5
"""Seconds of video after which a growing file can be played further."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        portrait: the picture.
        song: the recording.
        options: keyword arguments of `EmoPipeline.stream`.
        start: seconds of the song to skip.
        seconds: length of the video; None: to the end of the song, within the limit.
        label: a notice to draw into the frames.
    """

    portrait: Path
    song: Path
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: float = 0.0
    seconds: float | None = None
    label: str | None = None


class Job:
    """A video that is being made, and its files.

    Attributes:
        token: name of the job in addresses; it cannot be guessed.
        owner: the user's key; "" if the client sends none.
        folder: where its files are.
        total: number of frames; 0 until it is known.
        frames: number of frames so far.
        fps: frames per second.
        cut: whether a part of the song is left out because of the limit.
        finished: set when no more bytes will follow.
        complete: whether `video` is there.
    """

    def __init__(self, folder: Path, owner: str):
        self.token, self.owner = secrets.token_urlsafe(24), owner
        self.folder = folder / self.token
        self.folder.mkdir(mode=0o700)
        self.total, self.frames, self.fps, self.cut = 0, 0, 25.0, False
        self.started = time.monotonic()
        self.first: tuple[float, int] | None = None  # time and count when the first frames were there
        self.finished, self.complete = threading.Event(), False
        self.growing: Path | None = None

    @property
    def video(self) -> Path:
        """The complete file."""
        return self.folder / "video.mp4"

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.frames / self.fps

    def seconds_left(self) -> float:
        """Returns an estimate from the frames so far, without the compilation that precedes the first ones."""
        since, before = self.first or (self.started, 0)
        return (time.monotonic() - since) / max(self.frames - before, 1) * (self.total - self.frames)


class Studio:
    """Makes the videos. Weights are loaded in a thread, so that the page opens at once.

    Args:
        settings: the limits.
        root: private folder for the files of users.
        load: returns the pipelines, one for each device.
    """

    def __init__(self, settings: Settings, root: Path, load: Any):
        self.settings, self.root = settings, root
        self.metrics = Metrics()
        self.jobs: dict[str, Job] = {}
        self.error: BaseException | None = None
        self._free: queue.Queue[Any] = queue.Queue()
        self._loaded = threading.Event()
        self._stop = threading.Event()
        threading.Thread(target=self._load, args=(load,), name="load weights", daemon=True).start()
        threading.Thread(target=self._sweep, name="delete old files", daemon=True).start()

    def _load(self, load: Any) -> None:
        try:
            for pipe in load():
                self._free.put(pipe)
        except BaseException as error:  # reported by `status` and by every job
            self.error = error
            print(f"emo app: the weights cannot be loaded: {error}", file=sys.stderr, flush=True)
        finally:
            self._loaded.set()

    @property
    def status(self) -> str:
        """Returns "loading", "ok" or "failed"."""
        if not self._loaded.is_set():
            return "loading"
        return "ok" if self.error is None else "failed"

    def run(self, request: Request, owner: str = "") -> Iterator[Job]:
        """Makes a video; yields the job after each segment, and at last when it is complete.

        If the iteration is closed before its end, the files of the job are removed.

        Raises:
            ValueError: an input that cannot be used.
        """
        portrait, voice, cut = self._inputs(request)
        self._loaded.wait()
        if self.error is not None:
            raise ValueError(f"the weights cannot be loaded: {self.error}")
        job = Job(self.root, owner)
        job.cut = cut
        pipe = self._free.get()
        self.jobs[job.token] = job
        outcome = "failed"
        try:
            with self.metrics.running.track_inprogress():
                yield from self._generate(job, pipe, portrait, voice, request)
            job.complete, outcome = True, "done"
            self.metrics.seconds.observe(time.monotonic() - job.started)
        except GeneratorExit:
            outcome = "cancelled"
            raise
        finally:
            self._free.put(pipe)
            self.metrics.jobs.labels(outcome).inc()
            if not job.complete:
                self._remove(job)
            job.finished.set()
        yield job

    def _generate(self, job: Job, pipe: Any, portrait: Any, voice: Voice, request: Request) -> Iterator[Job]:
        options = dict(max_size=self.settings.max_size, **request.options)
        stream = pipe.stream(portrait, voice.samples, **options)
        job.total, job.fps, job.started = stream.total, float(pipe.fps), time.monotonic()
        notice = Notice(request.label, stream.size) if request.label else None
        metadata = {"comment": provenance(pipe.name, options.get("seed", 0))}
        writer = VideoWriter(
            job.video, stream.size, pipe.fps, voice.track, metadata=metadata, keyframe_seconds=FRAGMENT_SECONDS
        )
        with writer:
            job.growing = writer.partial_path
            yield job
            for frames in stream:
                writer.write(frames if notice is None else notice.draw(frames))
                job.frames += len(frames)
                self.metrics.frames.inc(len(frames))
                yield job
                job.first = job.first or (time.monotonic(), job.frames)

    def _inputs(self, request: Request) -> tuple[Any, Voice, bool]:
        """Loads the inputs within the limits; returns whether the song is cut as well."""
        limits = self.settings
        if request.start < 0 or (request.seconds is not None and request.seconds <= 0):
            raise ValueError(
                f"the start is {request.start:g} s and the length {request.seconds} s; expected numbers from 0 on, and "
                "above 0"
            )
        seconds = min(limits.max_seconds, request.seconds or limits.max_seconds)
        try:
            width, height = picture_size(request.portrait)
            if width * height > 1e6 * limits.max_megapixels:
                raise ValueError(
                    f"the portrait has {width * height / 1e6:.0f} million pixels; expected at most "
                    f"{limits.max_megapixels:g}: shrink it"
                )
            portrait = load_portrait(request.portrait)
            # A little more than the part that is used, which shows whether a rest is left out.
            voice = load_voice(request.song, request.start + seconds + 0.1)
        except ValueError as error:  # the server's paths are no business of the user
            text = str(error).replace(str(request.portrait), "the portrait").replace(str(request.song), "the song")
            raise ValueError(text) from error
        length = len(voice.samples) / SAMPLE_RATE
        if request.start >= length:
            raise ValueError(
                f"the start is at {request.start:g} s; expected 0 to {length:.1f} s, the length of the song"
            )
        there = length - request.start
        cut = there > limits.max_seconds and (request.seconds is None or request.seconds > limits.max_seconds)
        return portrait, _part(voice, request.start, min(there, seconds)), cut

    def _remove(self, job: Job) -> None:
        self.jobs.pop(job.token, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Deletes the files of users that are older than the limit, uploads too."""
        limit = time.time() - 60 * self.settings.keep_minutes
        for job in list(self.jobs.values()):
            with contextlib.suppress(FileNotFoundError):  # another thread was faster
                if job.finished.is_set() and job.folder.stat().st_mtime < limit:
                    self._remove(job)
        for path in self.root.rglob("*"):
            try:
                if path.is_file() and path.parent.name not in self.jobs and path.stat().st_mtime < limit:
                    path.unlink()
            except OSError:  # another thread was faster
                continue

    def _sweep(self) -> None:
        while not self._stop.wait(min(60.0, 30 * self.settings.keep_minutes)):
            self.sweep()

    def close(self) -> None:
        """Ends the thread and deletes all files of users."""
        self._stop.set()
        shutil.rmtree(self.root, ignore_errors=True)


def _part(voice: Voice, start: float, seconds: float) -> Voice:
    """Returns a part of a recording, in seconds."""
    first, count = round(start * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
    return Voice(voice.samples[first : first + count], voice.track.skip(start))


def request_of(
    portrait: Path,
    song: Path,
    *,
    seed: float | None = None,
    speed: float | None = None,
    framing: str | None = None,
    face: float | None = None,
    start: float | None = None,
    seconds: float | None = None,
    label: str | None = None,
) -> Request:
    """Returns a request from the values of the page's fields, in which None is the default."""
    options: dict[str, Any] = {"seed": int(seed or 0)}
    if speed is not None:
        options["speed"] = float(speed)
    if framing:
        options["framing"] = framing
    if face:
        options["face_box"] = int(face)
    return Request(portrait, song, options, float(start or 0), seconds or None, label or None)

"""Many videos: a manifest spread over the devices of this process and over processes that share the output folder."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.files import process_tag
from emo_jax.generation.claims import claim
from emo_jax.generation.inputs import Voice, load_portrait, parse_face
from emo_jax.generation.manifest import Item
from emo_jax.generation.songs import load_song
from emo_jax.generation.speed import read_speed
from emo_jax.progress import Progress

REPORT = "report.jsonl"
"""Name of the report in the output folder; processes append a line for each video."""


WAIT = 2.0
"""Seconds between looks at videos that other processes make."""


FILE_OPTIONS = ("fps", "codec", "notice")
"""Options of the written file; the others are those of `EmoPipeline.stream`."""


class _Stopped(Exception):
    """The process ends; the videos in work are given up."""


class _Work(NamedTuple):
    """A video in work: the arguments of `EmoPipeline.stream`, the recording, and when it was begun."""

    item: Item
    call: dict[str, Any]
    voice: Voice
    start: float


class Outcome(NamedTuple):
    """What became of the videos of a manifest.

    Attributes:
        made: number of videos that were made.
        elsewhere: number of videos that other processes made meanwhile.
        failures: the reason for each video that could not be made.
    """

    made: int
    elsewhere: int
    failures: dict[str, str]


class Batch:
    """Makes the videos of a manifest.

    Args:
        items: the videos.
        folder: the output folder.
        pipes: pipelines, one for each device.
        options: FILE_OPTIONS, and keyword arguments of `EmoPipeline.stream`, for all videos.
        defaults: values of `seed` and `vocals` for videos without.
        size: number of videos that one program makes together.
        shown: whether the progress is shown.
    """

    def __init__(
        self,
        items: list[Item],
        folder: Path,
        pipes: list[Any],
        options: dict[str, Any],
        defaults: dict[str, Any],
        size: int = 1,
        shown: bool = True,
    ):
        self._size = size
        self.folder, self._pipes, self._options, self._defaults = folder, pipes, options, defaults
        self._items = collections.deque(items)
        self._later: collections.deque[tuple[float, Item]] = collections.deque()  # time of the next look, and the item
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._progress = Progress(len(items), "generate", "video", shown=shown)
        self._made, self._elsewhere, self._failures = 0, 0, dict[str, str]()
        self._waits = False
        self._error: BaseException | None = None

    def run(self) -> Outcome:
        """Makes the videos, a batch on each pipeline at a time, until each is there or has failed.

        Those that other processes have claimed come last: if such a process ends without its video, it is made here. If
        it is interrupted, the videos in work are given up and leave no file.
        """
        with self._progress, ThreadPoolExecutor(len(self._pipes)) as pool:
            works = [pool.submit(self._work, pipe) for pipe in self._pipes]
            try:
                while wait(works, timeout=0.5).not_done:  # Ray's interrupts do not end a wait
                    pass
            finally:  # Ctrl-C and SIGTERM arrive in this thread
                self._stop.set()
                wait(works)
        if self._error is not None:
            raise self._error
        return Outcome(self._made, self._elsewhere, self._failures)

    def _work(self, pipe: Any) -> None:
        try:
            works = True
            while works:
                with contextlib.ExitStack() as claims:
                    works = self._take(claims)
                    self._make(pipe, works)
        except BaseException as error:  # a bug, or a full disk: all threads end, and `run` raises it
            self._error = error
            self._stop.set()

    def _take(self, claims: contextlib.ExitStack) -> list[_Work]:
        """Claims and loads the next videos, at most one batch; none at the end."""
        works: list[_Work] = []
        while len(works) < self._size and (item := self._next(waits=not works)) is not None:
            target, start = self.folder / item.name, time.monotonic()
            if not claims.enter_context(claim(target)):
                if target.exists():
                    self._elsewhere += 1
                    self._progress.add(1)
                else:
                    self._later.append((time.monotonic() + WAIT, item))
                continue
            try:
                works.append(self._load(item, start))
            except Exception as error:
                self._fail(item, start, error)
        return works

    def _next(self, waits: bool) -> Item | None:
        """Returns the next video, or None at the end.

        Args:
            waits: wait if only those are left that other processes make; otherwise None is returned as well.
        """
        while not self._stop.is_set():
            with self._lock:
                if self._items:
                    return self._items.popleft()
                if not self._later:
                    return None
                if self._later[0][0] <= time.monotonic():
                    return self._later.popleft()[1]
                if not waits:
                    return None
                if not self._waits:
                    self._waits = True
                    self._progress.say(f"generate: waiting for {len(self._later)} videos that other processes make")
            self._stop.wait(0.1)
        return None

    def _load(self, item: Item, start: float) -> _Work:
        call = {name: value for name, value in self._options.items() if name not in FILE_OPTIONS}
        call["on_window"] = self._check
        call["seed"] = self._defaults["seed"] if item.seed is None else item.seed
        if item.speed is not None:
            call["speed"] = read_speed(item.speed)
        if item.face is not None:
            call["face_box"] = parse_face(item.face)
        portrait = load_portrait(item.portrait)
        voice = load_song(item.audio, vocals=item.vocals or self._defaults["vocals"], soundtrack=item.soundtrack)
        return _Work(item, dict(portrait=portrait, audio=voice, **call), voice, start)

    def _check(self, *_: Any) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _make(self, pipe: Any, works: list[_Work]) -> None:
        """Makes the videos of a batch together."""
        from emo_jax.generation.many import in_turn

        try:
            streams = pipe.streams([work.call for work in works], self._size)
        except Exception as error:
            if len(works) > 1:  # find out which of them cannot be made
                for work in works:
                    self._make(pipe, [work])
            else:
                self._fail(works[0].item, works[0].start, error)
            return
        with contextlib.ExitStack() as writers:
            parts = [self._write(pipe, work, stream, writers) for work, stream in zip(works, streams, strict=True)]
            for _ in in_turn(parts):
                if self._stop.is_set():
                    return

    def _write(self, pipe: Any, work: _Work, stream: Any, writers: contextlib.ExitStack) -> Iterator[None]:
        """Writes a video; yields after each segment. Whatever happens is reported."""
        from emo_jax.generation.video import provenance
        from emo_jax.generation.writing import write_stream

        item, comment = work.item, provenance(pipe.name, work.call["seed"])
        file = {name: self._options[name] for name in FILE_OPTIONS if name in self._options}
        writer = write_stream(self.folder / item.name, stream, pipe.fps, work.voice, comment, **file)
        writers.callback(writer.close)  # removes the partial file if the batch is stopped

        def parts() -> Iterator[None]:
            try:
                for _ in writer:
                    yield
            except _Stopped:
                return
            except Exception as error:
                self._fail(item, work.start, error)
            else:
                with self._lock:
                    self._made += 1
                self._progress.add(1)
                self._report(item, "done", work.start)

        return parts()

    def _fail(self, item: Item, start: float, error: Exception) -> None:
        """Reports a video that cannot be made; a full disk ends the batch."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise error
        self._failures[item.name] = reason = " ".join(str(error).split())
        self._progress.say(f"generate: {item.name} failed: {reason}")
        self._progress.add(1)
        self._report(item, "failed", start, reason)

    def _report(self, item: Item, status: str, start: float, reason: str = "") -> None:
        """Appends a line to the report; one write of a short line is not mixed with those of other processes."""
        line = dict(output=item.name, status=status, seconds=round(time.monotonic() - start, 2), process=process_tag())
        if reason:
            line["reason"] = reason
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        descriptor = os.open(self.folder / REPORT, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

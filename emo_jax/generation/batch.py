"""Many videos: a manifest spread over the devices of this process and over processes that share the output folder."""

from __future__ import annotations

import collections
import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from emo_jax.files import process_tag
from emo_jax.generation.claims import claim
from emo_jax.generation.inputs import load_portrait, parse_face
from emo_jax.generation.manifest import Item
from emo_jax.generation.songs import load_song
from emo_jax.generation.speed import read_speed
from emo_jax.progress import Progress

REPORT = "report.jsonl"
"""Name of the report in the output folder; processes append a line for each video."""


WAIT = 2.0
"""Seconds between looks at videos that other processes make."""


class _Stopped(Exception):
    """The process ends; the video in work is given up."""


class Batch:
    """Makes the videos of a manifest.

    Args:
        items: the videos.
        folder: the output folder.
        pipes: pipelines, one for each device.
        options: keyword arguments of `write_video` for all videos.
        defaults: values of `seed` and `vocals` for videos without.

    Attributes:
        made: number of videos that this process made.
        elsewhere: number of videos that other processes made meanwhile.
        failures: the reason for each video that could not be made.
    """

    def __init__(
        self, items: list[Item], folder: Path, pipes: list[Any], options: dict[str, Any], defaults: dict[str, Any]
    ):
        self.folder, self._pipes, self._options, self._defaults = folder, pipes, options, defaults
        self._items = collections.deque(items)
        self._later: collections.deque[tuple[float, Item]] = collections.deque()  # time of the next look, and the item
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._progress = Progress(len(items), "generate", "video")
        self.made, self.elsewhere, self.failures = 0, 0, dict[str, str]()
        self._waits = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Makes the videos, one on each pipeline at a time, until each is there or has failed.

        Those that other processes have claimed come last: if such a process ends without its video, it is made here. If
        it is interrupted, the videos in work are given up and leave no file.
        """
        with self._progress, ThreadPoolExecutor(len(self._pipes)) as pool:
            works = [pool.submit(self._work, pipe) for pipe in self._pipes]
            try:
                wait(works)
            finally:  # Ctrl-C and SIGTERM arrive in this thread
                self._stop.set()
                wait(works)
        if self._error is not None:
            raise self._error

    def _work(self, pipe: Any) -> None:
        try:
            while (item := self._next()) is not None:
                if self._make(pipe, item):
                    self._progress.add(1)
                else:
                    self._later.append((time.monotonic() + WAIT, item))
        except _Stopped:
            pass
        except BaseException as error:  # a bug, or a full disk: all threads end, and `run` raises it
            self._error = error
            self._stop.set()

    def _next(self) -> Item | None:
        """Returns the next video, or None at the end. Waits if only those are left that other processes make."""
        while not self._stop.is_set():
            with self._lock:
                if self._items:
                    return self._items.popleft()
                if not self._later:
                    return None
                if self._later[0][0] <= time.monotonic():
                    return self._later.popleft()[1]
                if not self._waits:
                    self._waits = True
                    self._progress.say(f"generate: waiting for {len(self._later)} videos that other processes make")
            self._stop.wait(0.1)
        return None

    def _make(self, pipe: Any, item: Item) -> bool:
        """Makes a video; returns False if another process works on it."""
        target = self.folder / item.name
        with claim(target) as claimed:
            if not claimed:
                there = target.exists()
                self.elsewhere += there
                return there
            start = time.monotonic()
            try:
                self._write(pipe, item, target)
            except _Stopped:
                raise
            except Exception as error:  # of one video; a full disk ends the batch
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                self.failures[item.name] = reason = " ".join(str(error).split())
                self._progress.say(f"generate: {item.name} failed: {reason}")
                self._report(item, "failed", start, reason)
            else:
                self.made += 1
                self._report(item, "done", start)
            return True

    def _write(self, pipe: Any, item: Item, target: Path) -> None:
        from emo_jax.generation.writing import write_video

        options = dict(self._options, seed=self._defaults["seed"] if item.seed is None else item.seed)
        if item.speed is not None:
            options["speed"] = read_speed(item.speed)
        if item.face is not None:
            options["face_box"] = parse_face(item.face)
        portrait = load_portrait(item.portrait)
        voice = load_song(item.audio, vocals=item.vocals or self._defaults["vocals"], soundtrack=item.soundtrack)
        checks = dict(on_frames=self._check, on_window=self._check)
        write_video(target, pipe, portrait, voice, label=item.name, quiet=True, **checks, **options)

    def _check(self, *_: Any) -> None:
        if self._stop.is_set():
            raise _Stopped

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

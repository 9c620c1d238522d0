"""Worker processes that make records. They end with their parent, and a video that crashes one is found and skipped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from emo_jax.preparation.video_shards import VideoBuild, make_shard
from emo_jax.progress import Progress
from emo_jax.workers import crash_cause, end_with_parent

_videos_done: Any = None  # a `multiprocessing.Value`, shared by all processes of a pool


def make_shards(build: VideoBuild, workers: int, progress: Progress) -> None:
    """Makes the missing shards in `workers` processes, or in this process if `workers` is 1.

    The shards do not depend on the number of workers.
    """
    monotonic = MonotonicProgress(progress)
    if workers == 1:
        cv2.setNumThreads(1)
        monotonic.reach(build.videos_done())
        for index in build.missing():
            make_shard(build, index, tick=monotonic.add)
        return
    skip: dict[str, str] = {}
    while missing := build.missing():
        if not _make_in_pool(build, missing, workers, skip, _from_here(build, monotonic)):
            continue
        # All processes of the pool end with the one that crashed: each open shard is tried alone to find the cause.
        suspects = [index for index in missing if build.current(index).exists()]
        if not suspects:
            raise OSError("the worker processes ended before they started a video; try --workers 1")
        for index in suspects:
            make_shard_isolated(build, index, skip, _from_here(build, monotonic))


def make_shard_isolated(
    build: VideoBuild, index: int, skip: dict[str, str], report: Callable[[float], None] = lambda done: None
) -> None:
    """Makes one shard, if it is missing, in a separate process; videos that crash the process are added to `skip`.

    Args:
        build: the dataset.
        index: number of the shard.
        skip: {name: reason} of videos to reject; extended.
        report: called repeatedly with the number of this shard's videos that are done.

    Raises:
        OSError: if the process ends before it starts a video.
    """
    while not build.summary(index).exists() and (cause := _make_in_pool(build, [index], 1, skip, report)):
        if not build.current(index).exists():
            raise OSError(f"the process of shard {index} ended before it started a video ({cause})")
        skip[build.current(index).read_text()] = f"its decoder crashed the process ({cause})"


class MonotonicProgress:
    """Progress that never goes back, although work that a crash has undone is repeated."""

    def __init__(self, progress: Progress):
        """Wraps a progress bar that is at zero."""
        self._progress, self._done, self._shown = progress, 0.0, 0.0

    def add(self, amount: float) -> None:
        """Advances by `amount`."""
        self.reach(self._done + amount)

    def reach(self, done: float) -> None:
        """Sets the amount done; shows it if it exceeds what was shown."""
        self._done = done
        if done > self._shown:
            self._progress.add(done - self._shown)
            self._shown = done


def _from_here(build: VideoBuild, progress: MonotonicProgress) -> Callable[[float], None]:
    """Returns a callback that adds to the videos that are done now."""
    before = build.videos_done()
    return lambda done: progress.reach(before + done)


def _make_in_pool(
    build: VideoBuild, shards: list[int], workers: int, skip: dict[str, str], report: Callable[[float], None]
) -> str:
    """Makes the shards in new processes; returns "", or the cause if one of these was killed or crashed."""
    context = multiprocessing.get_context("spawn")
    done = context.Value("d", 0.0)
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _initialize, (done, receiver))
    processes: dict[int, Any] = {}
    try:
        pending = {pool.submit(_make_shard, build, index, dict(skip)) for index in shards}
        processes |= pool._processes
        while pending:
            finished, pending = wait(pending, 0.5, FIRST_EXCEPTION)
            report(done.get_obj().value)  # without the lock, which a crashed process may still hold
            for future in finished:
                future.result()
    except BrokenProcessPool:
        pool.shutdown(cancel_futures=True)  # waits for the exit codes
        return crash_cause(process.exitcode for process in processes.values())
    except BaseException:
        sender.close()  # ends the processes of this pool only
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        sender.close()
        receiver.close()
    return ""


def _initialize(done: Any, parent: Any) -> None:
    global _videos_done
    _videos_done = done
    cv2.setNumThreads(1)
    end_with_parent(parent)


def _make_shard(build: VideoBuild, index: int, skip: dict[str, str]) -> None:
    make_shard(build, index, skip, _tick)


def _tick(share: float) -> None:
    with _videos_done.get_lock():
        _videos_done.value += share

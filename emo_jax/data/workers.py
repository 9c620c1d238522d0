"""The processes that make shards: they go when their parent goes, and a video that takes one down is found and left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any

import cv2

from emo_jax.data.shards import Plan, make_shard
from emo_jax.progress import Progress

_done = None  # videos done by all processes of the pool, a shared number


def make_shards(plan: Plan, workers: int, progress: Progress) -> None:
    """Makes the shards that are missing, in this process if `workers` is 1. The shards do not depend on `workers`."""
    shown = _Shown(progress)
    if workers == 1:
        cv2.setNumThreads(1)
        shown.reach(_videos_done(plan))
        for index in plan.missing():
            make_shard(plan, index, tick=shown.add)
        return
    skip: set[str] = set()
    while missing := plan.missing():
        if _make_all(plan, missing, workers, skip, shown):
            continue
        suspects = [index for index in missing if plan.current(index).exists()]
        if not suspects:
            raise OSError("the worker processes ended before they began; try --workers 1")
        for index in suspects:  # all went down with the one; alone, each shows whether it was the one
            while not plan.summary(index).exists() and not _make_all(plan, [index], 1, skip, shown):
                skip.add(plan.current(index).read_text())


class _Shown:
    """Progress that never goes back, though work that a crash undid is done again."""

    def __init__(self, progress: Progress):
        self._progress, self._done, self._told = progress, 0.0, 0.0

    def add(self, amount: float) -> None:
        self.reach(self._done + amount)

    def reach(self, done: float) -> None:
        self._done = done
        if done > self._told:
            self._progress.add(done - self._told)
            self._told = done


def _videos_done(plan: Plan) -> int:
    return len(plan.videos) - sum(len(plan.shard(index)) for index in plan.missing())


def _make_all(plan: Plan, shards: list[int], workers: int, skip: set[str], shown: _Shown) -> bool:
    """Makes the shards in fresh processes; False where one of those was killed or crashed."""
    context = multiprocessing.get_context("spawn")
    done, before = context.Value("d", 0.0), _videos_done(plan)
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _enter, (done,))
    try:
        waiting = {pool.submit(_make, plan, index, frozenset(skip)) for index in shards}
        while waiting:
            finished, waiting = wait(waiting, 0.5, FIRST_EXCEPTION)
            shown.reach(before + done.get_obj().value)  # without its lock, which a crash may have left closed
            for future in finished:
                future.result()
    except BrokenProcessPool:
        return False
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return True


def _enter(done) -> None:
    global _done
    _done = done
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    wait_for_any([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _make(plan: Plan, index: int, skip: frozenset[str]) -> None:
    make_shard(plan, index, skip, _tick)


def _tick(share: float) -> None:
    with _done.get_lock():
        _done.value += share

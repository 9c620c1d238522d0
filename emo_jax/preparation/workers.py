"""The processes that make records: they go when their parent goes; a video that takes one down is found and left."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import cv2

from emo_jax.preparation.shards import Plan, make_shard
from emo_jax.progress import Progress
from emo_jax.workers import _leave_with_parent

_done = None  # videos done by all processes of the pool, a shared number


def make_shards(plan: Plan, workers: int, progress: Progress) -> None:
    """Makes the shards that are missing, in this process if `workers` is 1. The shards do not depend on `workers`."""
    shown = Shown(progress)
    if workers == 1:
        cv2.setNumThreads(1)
        shown.reach(plan.done())
        for index in plan.missing():
            make_shard(plan, index, tick=shown.add)
        return
    skip: set[str] = set()
    while missing := plan.missing():
        if _make_all(plan, missing, workers, skip, _counted(plan, shown)):
            continue
        suspects = [index for index in missing if plan.current(index).exists()]
        if not suspects:
            raise OSError("the worker processes ended before they began; try --workers 1")
        for index in suspects:  # all went down with the one; alone, each shows whether it was the one
            make_alone(plan, index, skip, _counted(plan, shown))


def make_alone(plan: Plan, index: int, skip: set[str], told: Callable[[float], None] = lambda done: None) -> None:
    """Makes one shard, if it is missing, in a process of its own; a video that takes that down joins `skip`.

    told: hears now and then how many of the shard's videos are done.
    """
    while not plan.summary(index).exists() and not _make_all(plan, [index], 1, skip, told):
        if not plan.current(index).exists():
            raise OSError(f"the process of shard {index} ended before it began; see whether memory is short")
        skip.add(plan.current(index).read_text())


class Shown:
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


def _counted(plan: Plan, shown: Shown) -> Callable[[float], None]:
    before = plan.done()
    return lambda done: shown.reach(before + done)


def _make_all(plan: Plan, shards: list[int], workers: int, skip: set[str], told: Callable[[float], None]) -> bool:
    """Makes the shards in fresh processes; False where one of those was killed or crashed."""
    context = multiprocessing.get_context("spawn")
    done = context.Value("d", 0.0)
    end, hold = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _enter, (done, end))
    try:
        waiting = {pool.submit(_make, plan, index, frozenset(skip)) for index in shards}
        while waiting:
            finished, waiting = wait(waiting, 0.5, FIRST_EXCEPTION)
            told(done.get_obj().value)  # without its lock, which a crash may have left closed
            for future in finished:
                future.result()
    except BrokenProcessPool:
        return False
    except BaseException:
        hold.close()  # ends the processes of this pool, and of no other
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        hold.close()
        end.close()
    return True


def _enter(done, end) -> None:
    global _done
    _done = done
    cv2.setNumThreads(1)
    _leave_with_parent(end)


def _make(plan: Plan, index: int, skip: frozenset[str]) -> None:
    make_shard(plan, index, skip, _tick)


def _tick(share: float) -> None:
    with _done.get_lock():
        _done.value += share

"""The processes that make records: they go when their parent goes; a video that takes one down is found and left."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any


def _leave_with_parent(*ends) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_follow_parent, args=ends, daemon=True).start()


def _follow_parent(*ends) -> None:
    wait_for_any([*ends, multiprocessing.parent_process().sentinel])
    os._exit(1)


def ordered(make, seeds: Iterable[int], workers: int) -> Iterator:
    """make(seed) for each seed, in order, in `workers` fresh processes (in this one if 1).

    Raises:
        OSError: one of the processes was killed or crashed.
    """
    if workers == 1:
        yield from map(make, seeds)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_with_parent)
    try:
        left = iter(seeds)
        waiting = collections.deque(pool.submit(make, seed) for seed in itertools.islice(left, 2 * workers))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, seed) for seed in itertools.islice(left, 1))
            yield made
    except BrokenProcessPool as error:
        raise OSError("a worker process ended, often for want of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)

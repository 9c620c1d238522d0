"""Worker processes: they end with their parent, and the reason why one has crashed is named."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from typing import Any


def end_with_parent(*connections: Any) -> None:
    """Makes this worker process ignore Ctrl-C, and exit when its parent exits or closes one of the connections."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_exit_after_parent, args=connections, daemon=True).start()


def _exit_after_parent(*connections: Any) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([*connections, parent.sentinel])
    os._exit(1)


def crash_cause(exit_codes: Iterable[int | None]) -> str:
    """Returns the likely cause of a crash, and its remedy, from the exit codes of worker processes.

    A write to shared memory that is full ends a process by SIGBUS; Docker limits it to 64 MB.
    """
    codes = set(exit_codes)
    if -signal.SIGBUS in codes:
        return "SIGBUS: the shared memory /dev/shm is full; in Docker, raise its size, for example --shm-size=2g"
    if -signal.SIGKILL in codes:
        return "SIGKILL: often not enough memory; use fewer workers"
    crashes = sorted(signal.Signals(-code).name for code in codes if code and code < 0 and code != -signal.SIGTERM)
    return ", ".join(crashes) or "it exited by itself"


def map_in_order(function: Callable[[int], Any], inputs: Iterable[int], workers: int) -> Iterator[Any]:
    """Yields function(input) for each input, in order, computed by `workers` new processes (1: in this process).

    Raises:
        OSError: if one of the processes was killed or crashed.
    """
    if workers == 1:
        yield from map(function, inputs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
    processes: dict[int, Any] = {}
    try:
        remaining = iter(inputs)
        pending = collections.deque(pool.submit(function, i) for i in itertools.islice(remaining, 2 * workers))
        processes |= pool._processes
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, i) for i in itertools.islice(remaining, 1))
            yield result
    except BrokenProcessPool as error:
        pool.shutdown(cancel_futures=True)  # waits for the exit codes
        cause = crash_cause(process.exitcode for process in processes.values())
        raise OSError(f"a worker process crashed ({cause})") from error
    finally:
        pool.shutdown(cancel_futures=True)

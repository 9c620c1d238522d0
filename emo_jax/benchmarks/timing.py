"""Timing of functions that are called repeatedly."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """Returns the median time of a call in seconds; one call before the first measurement warms up.

    Args:
        run: the function to call. It blocks until its result is computed.
        rounds: the number of measured calls.
    """
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def alternating_seconds(
    runs: Mapping[str, Callable[[], object]], rounds: int, on_time: Callable[[str, float], None] | None = None
) -> dict[str, list[float]]:
    """Returns the times of several functions in seconds, which are called in turn (A B A B).

    Args:
        runs: {name: the function}, called before to warm up. Each blocks until its result is computed.
        rounds: the number of measured calls of each.
        on_time: called with the name and the time of each call, for example to show progress.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
            if on_time is not None:
                on_time(name, times[name][-1])
    return times

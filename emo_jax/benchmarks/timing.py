"""Timing of a function that is called repeatedly."""

import time
from collections.abc import Callable

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

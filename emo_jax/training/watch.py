"""Profiling of training steps, and messages about a slow or broken input pipeline."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from emo_jax.distributed import processes
from emo_jax.progress import call_periodically
from emo_jax.workers import crash_cause

_WARM_UP_STEPS = 3
"""Steps before the traced ones, in which programs are compiled and buffers filled."""


class ProfiledStep:
    """Wraps a step function and writes an XProf trace of some calls to workdir/profile, on process 0.

    Args:
        step_fn: (state, batch) -> (state, metrics).
        workdir: the run's folder.
        count: the number of calls to trace; 0 for none.
        left: the number of calls that there will be.
    """

    def __init__(self, step_fn: Callable[..., Any], workdir: str | os.PathLike, count: int, left: int) -> None:
        first = min(_WARM_UP_STEPS, max(left - count, 0))
        self._step_fn, self._folder = step_fn, os.path.join(workdir, "profile")
        self._traced, self._calls, self._tracing = range(first, first + count), 0, False

    def __call__(self, state: Any, batch: Any) -> Any:
        """Runs one step."""
        if self._calls in self._traced and not self._tracing and processes.is_main():
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=self._calls):
            result = self._step_fn(state, batch)
        self._calls += 1
        if self._tracing and self._calls == self._traced.stop:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Ends the trace if one is running, and prints how to view it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            count = self._calls - self._traced.start
            print(f"{count} steps traced: xprof --logdir {self._folder}", file=sys.stderr, flush=True)


def next_batch(iterator: Iterator[Any], step: int, seconds: float) -> Any:
    """Returns the iterator's next batch; prints a warning after `seconds`, twice that, four times that ...

    Args:
        iterator: the input pipeline.
        step: the step that the batch is for.
        seconds: time to wait before the first warning.

    Raises:
        OSError: a record is damaged, or a data worker process died.
    """
    with _warn_if_slow(f"the batch of step {step}", seconds):
        try:
            return next(iterator)
        except ValueError as error:
            raise OSError(f"cannot make the batch of step {step}: {error}") from error
        except RuntimeError as error:  # raised by Grain
            match = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
            if not match:
                raise
            cause = crash_cause([int(match[1])])
            raise OSError(
                f"a data worker of {processes.name()} died before step {step} (exit code {match[1]}, {cause}; "
                "data.num_workers and data.prefetch set what the workers hold); the same command continues from the "
                "newest checkpoint"
            ) from error


def _warn_if_slow(what: str, seconds: float) -> contextlib.AbstractContextManager[None]:
    waited = 0.0

    def warn() -> float:
        nonlocal waited
        waited = 2 * waited or seconds
        text = f"warning: {processes.name()} has waited {waited:g} s for {what}; is its storage slow or unreachable?"
        print(text, file=sys.stderr, flush=True)
        return waited

    return call_periodically(warn, every=seconds)

"""Watches over the steps of a run: a trace of some of them, and words where the input stalls or breaks."""

import os
import re
import sys

import jax

from emo_jax.distributed import processes
from emo_jax.progress import meanwhile

_SETTLING = 3
"""Steps before those that are traced, in which things are compiled and buffers filled."""


class Profiled:
    """A step function that writes an XProf trace of `count` of its calls into workdir/profile, on process 0.

    Args:
        left: how many calls there will be.
    """

    def __init__(self, step_fn, workdir, count, left):
        first = min(_SETTLING, max(left - count, 0))
        self._step_fn, self._folder = step_fn, os.path.join(workdir, "profile")
        self._traced, self._calls, self._tracing = range(first, first + count), 0, False

    def __call__(self, state, batch):
        if self._calls in self._traced and not self._tracing and processes.first():
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

    def close(self):
        """Ends the trace, if one has begun, and tells where it is."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            count = self._calls - self._traced.start
            print(f"{count} steps traced: xprof --logdir {self._folder}", file=sys.stderr, flush=True)


def next_batch(iterator, step, seconds):
    """The iterator's next batch.

    Where it takes longer than `seconds`, a line on stderr says so, and again after twice as long, four times ...

    Raises:
        OSError: a record is damaged, or one of the data workers has ended.
    """
    with _impatient(f"the batch of step {step}", seconds):
        try:
            return next(iterator)
        except ValueError as error:
            raise OSError(f"the batch of step {step} cannot be made: {error}") from error
        except RuntimeError as error:  # Grain's word for it
            found = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
            if not found:
                raise
            raise OSError(
                f"a data worker of {processes.name()} has ended before step {step} (exit code {found[1]}; -9 is often "
                "for want of memory: lower data.num_workers or data.prefetch); the same command goes on from the "
                "newest checkpoint"
            ) from error


def _impatient(what, seconds):
    waited = 0

    def tell():
        nonlocal waited
        waited = 2 * waited or seconds
        text = f"warning: {processes.name()} has waited {waited:g} s for {what}; is its storage slow or away?"
        print(text, file=sys.stderr, flush=True)
        return waited

    return meanwhile(tell, every=seconds)

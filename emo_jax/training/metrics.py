"""The metrics of a run: lines on stdout, and scalars and images for its writers; and the limit on skipped steps."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from emo_jax.distributed.devices import peak_flops
from emo_jax.training.writers import WRITERS


class MetricsWriter:
    """Collects the metrics of every step and writes their means; only process 0 writes.

    Args:
        workdir: the run's folder, which gets the writers' files.
        first: the number of steps done before this run.
        total: the number of steps after which the run ends.
        flops: FLOPs of a step on all devices together; None to report no FLOP/s.
        log: names of writers (`training.writers.WRITERS`).
        config: the config of the run as a dict, for writers that show it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        first: int,
        total: int,
        flops: float | None = None,
        log: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        names = log if jax.process_index() == 0 else ()
        self._writers = [WRITERS[name](workdir, first, config or {}) for name in names]
        self._total, self._flops = total, flops
        self._pending: list[Mapping[str, Any]] = []
        self._waited = 0.0
        self._last_written = self._timed_from = first
        self._since, self._first_seconds, self._timed_first = time.perf_counter(), 0.0, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent in its body from the time of a step."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def add(self, metrics: Mapping[str, Any], waited: float) -> None:
        """Stores one step's metrics, which may still be computing.

        Args:
            metrics: {name: number, or (sum, count) over the samples that have a value}.
            waited: seconds that the step waited for its batch.
        """
        self._pending.append(metrics)
        self._waited += waited
        if not self._timed_first:  # the first step compiles, so it is timed separately
            self._timed_first = True
            jax.block_until_ready(metrics)
            now = time.perf_counter()
            self._first_seconds, self._timed_from, self._since = now - self._since, self._last_written + 1, now

    def write(self, step: int) -> None:
        """Writes the means since the last call: a scalar for each, and a line of those without '/' in their name.

        Skipped steps are counted separately and left out of the means.
        """
        fetched = jax.device_get(self._pending)
        skipped = sum(m.pop("skipped", 0) for m in fetched)
        finite = [m for m in fetched if all(np.isfinite(value).all() for value in m.values())] or fetched
        means = {name: _mean([m[name] for m in finite]) for name in finite[0]}
        means = {name: value for name, value in means.items() if value is not None}
        steps = step - self._last_written
        means |= {"step_seconds": self._step_seconds(step), "data_wait_seconds": self._waited / steps}
        self._pending, self._waited, self._last_written, self._timed_from = [], 0.0, step, step
        self._since = time.perf_counter()
        if jax.process_index():
            return
        scalars = means | {"skipped": float(skipped)} | _flop_rate(self._flops, means["step_seconds"]) | _memory()
        self._scalars(scalars, step)
        left = (self._total - step) * means["step_seconds"]
        line = " ".join(f"{name} {value:.4g}" for name, value in means.items() if "/" not in name)
        line += f" skipped {skipped:.0f}" if skipped else ""
        print(f"step {step}/{self._total} {line} left {left / 60:.0f} min", flush=True)

    def validation(
        self, metrics: Mapping[str, float], step: int, best: tuple[int, float] | None, ranked: bool = True
    ) -> None:
        """Writes the metrics of a validation: scalars validation/NAME, and a line.

        Args:
            metrics: {name: value}, with `loss`.
            step: the step.
            best: (step, loss) of the best checkpoint before this one; None if there is none.
            ranked: whether the line compares with it.
        """
        if jax.process_index():
            return
        self._scalars({f"validation/{name}": value for name, value in metrics.items()}, step)
        line = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        rank = " (the best so far)" if ranked else ""
        if ranked and best is not None and not metrics["loss"] < best[1]:
            rank = f" (best so far {best[1]:.4g} at step {best[0]})"
        print(f"validation at step {step}/{self._total} {line}{rank}", flush=True)

    def evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Writes measures of generated videos {property: value}: scalars evaluation/NAME, and a line."""
        if jax.process_index():
            return
        self._scalars({f"evaluation/{name}": value for name, value in values.items()}, step)
        line = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"evaluation at step {step}/{self._total} {line}", flush=True)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for writer in self._writers:
            writer.scalars(values, step)

    def image(self, name: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Writes an image."""
        for writer in self._writers:
            writer.image(name, image, step)

    def close(self) -> None:
        """Ends the writers."""
        for writer in self._writers:
            writer.close()

    def _step_seconds(self, step: int) -> float:
        """Returns the mean time of a step since the last line, without the first step unless there is no other."""
        count = step - self._timed_from
        return (time.perf_counter() - self._since) / count if count else self._first_seconds


class SkipLimit:
    """Ends a run when too many consecutive steps were skipped.

    It reads the metrics of the step before the one in flight, so that the devices never wait for it.

    Args:
        limit: the number of consecutive skipped steps that ends the run.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._skipped, self._last = limit, 0, None

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step that has been dispatched, and checks those of the step before.

        Raises:
            FloatingPointError: the limit is reached.
        """
        self.check()
        self._last = step, metrics

    def check(self) -> None:
        """Checks the last step that was added; raises as `add` does."""
        if self._last is None:
            return
        step, metrics = self._last
        self._last = None
        self._skipped = self._skipped + 1 if metrics["skipped"] else 0
        if self._skipped >= self._limit:
            raise FloatingPointError(
                f"step {step}: loss or gradients were not finite in {self._skipped} consecutive steps (loss "
                f"{float(metrics['loss']):g}, gradient norm {float(metrics['grad_norm']):g}); the weights are those of "
                f"step {step - self._skipped}: lower train.optimizer.learning_rate, or check the data"
            )


def _mean(values: list[Any]) -> float | None:
    """Returns the mean of numbers, or of samples given as (sum, count); None if the count is zero."""
    mean = np.mean(values, axis=0)
    if not mean.ndim:
        return float(mean)
    total, count = mean
    return float(total / count) if count else None


def _flop_rate(flops: float | None, seconds: float) -> dict[str, float]:
    """Returns TFLOP/s of all devices together, and the model FLOP utilisation where the devices' peak is known."""
    if flops is None:
        return {}
    devices, rate = jax.devices(), flops / seconds
    peak = peak_flops(devices[0].device_kind)
    return {"speed/tflops": rate / 1e12} | ({} if peak is None else {"speed/mfu": rate / (peak * len(devices))})


def _memory() -> dict[str, float]:
    """Returns GiB in use on the fullest local device, now and at peak; empty if the platform does not report it."""
    stats = [report for report in (device.memory_stats() for device in jax.local_devices()) if report]
    names = {"memory/gib": "bytes_in_use", "memory/peak_gib": "peak_bytes_in_use"}
    return {name: max(report[key] for report in stats) / 2**30 for name, key in names.items() if stats}

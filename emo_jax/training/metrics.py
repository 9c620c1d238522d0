"""What a run tells: lines on stdout, TensorBoard scalars and sample pictures (tensorboardX)."""

import contextlib
import time

import jax
import numpy as np
from tensorboardX import SummaryWriter

from emo_jax.distributed.devices import peak_flops


class MetricsWriter:
    """Collects metrics of each step and writes their means; only process 0 writes.

    Args:
        first: the step that the run goes on from. total: that it ends with.
        flops: of a step on all devices; None: not known, and speed is told in steps alone.
    """

    def __init__(self, workdir, first, total, flops=None):
        # What a killed run had told of steps that are now done again goes.
        self._writer = SummaryWriter(str(workdir), purge_step=first + 1) if jax.process_index() == 0 else None
        self._total, self._last, self._since, self._flops = total, first, time.perf_counter(), flops
        self._pending, self._waited, self._timed, self._first = [], 0.0, first, None

    @contextlib.contextmanager
    def paused(self):
        """Within it, time does not count as that of steps."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def add(self, metrics, waited):
        """Keeps one step's metrics (not yet computed, perhaps) and the seconds waited for its data.

        A metric is a number, or (sum, count) of what only some of the samples have.
        """
        self._pending.append(metrics)
        self._waited += waited
        if self._first is None:
            jax.block_until_ready(metrics)
            now = time.perf_counter()
            self._first, self._timed, self._since = now - self._since, self._last + 1, now

    def write(self, step):
        """Writes the means since the last call: one scalar each, and a line of those whose name has no '/'.

        Skipped steps are counted apart.
        """
        fetched = jax.device_get(self._pending)
        skipped = sum(m.pop("skipped", 0) for m in fetched)
        whole = [m for m in fetched if all(np.isfinite(value).all() for value in m.values())] or fetched
        means = {name: _mean([m[name] for m in whole]) for name in whole[0]}
        means = {name: value for name, value in means.items() if value is not None}
        means |= {"step_seconds": self._step_seconds(step), "data_wait_seconds": self._waited / (step - self._last)}
        self._pending, self._waited, self._last, self._timed = [], 0.0, step, step
        self._since = time.perf_counter()
        if self._writer is None:
            return
        scalars = means | {"skipped": float(skipped)} | _speed(self._flops, means["step_seconds"]) | _memory()
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        left = (self._total - step) * means["step_seconds"]
        line = " ".join(f"{name} {value:.4g}" for name, value in means.items() if "/" not in name)
        line += f" skipped {skipped:.0f}" if skipped else ""
        print(f"step {step}/{self._total} {line} left {left / 60:.0f} min", flush=True)

    def _step_seconds(self, step):
        """Mean time of a step since the last line; of the first, which compiles too, only where it is alone."""
        count = step - self._timed
        return (time.perf_counter() - self._since) / count if count else self._first

    def image(self, name, image, step):
        """Writes a picture, uint8 (H, W, 3)."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self):
        """Closes the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()


def _mean(values):
    """The mean of numbers, or of samples told as (sum, count); None where there are none."""
    mean = np.mean(values, axis=0)
    if not mean.ndim:
        return float(mean)
    total, count = mean
    return float(total / count) if count else None


def _speed(flops, seconds):
    """TFLOP/s of all devices together, and the share of their peak where that is known (model FLOP utilisation)."""
    if flops is None:
        return {}
    devices, rate = jax.devices(), flops / seconds
    peak = peak_flops(devices[0].device_kind)
    return {"speed/tflops": rate / 1e12} | ({} if peak is None else {"speed/mfu": rate / (peak * len(devices))})


def _memory():
    """GiB of the fullest of this process' devices, now and at most so far; nothing where the platform does not tell."""
    stats = [told for told in (device.memory_stats() for device in jax.local_devices()) if told]
    names = {"memory/gib": "bytes_in_use", "memory/peak_gib": "peak_bytes_in_use"}
    return {name: max(told[key] for told in stats) / 2**30 for name, key in names.items() if stats}


class SkipLimit:
    """Ends a run whose steps are skipped one after the other.

    It looks at the step before the one that was just begun, so that the devices never wait for it.
    """

    def __init__(self, limit):
        self._limit, self._row, self._last = limit, 0, None

    def add(self, step, metrics):
        """Takes the metrics of a step that was begun.

        Raises:
            FloatingPointError: `limit` steps in a row were skipped.
        """
        self.check()
        self._last = step, metrics

    def check(self):
        """Looks at the last step that was added; raises as `add` does."""
        if self._last is None:
            return
        step, metrics = self._last
        self._last = None
        self._row = self._row + 1 if metrics["skipped"] else 0
        if self._row >= self._limit:
            raise FloatingPointError(
                f"step {step}: loss or gradients were not finite {self._row} times in a row (loss "
                f"{float(metrics['loss']):g}, gradient norm {float(metrics['grad_norm']):g}); the weights are those of "
                f"step {step - self._row}: lower train.optimizer.learning_rate, or look at the data"
            )

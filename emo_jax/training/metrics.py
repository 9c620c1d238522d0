"""What a run tells: lines on stdout, TensorBoard scalars and sample pictures (tensorboardX)."""

import time

import jax
import numpy as np
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Collects metrics of each step and writes their means; only process 0 writes."""

    def __init__(self, workdir, first, total):
        self._writer = SummaryWriter(str(workdir)) if jax.process_index() == 0 else None
        self._total, self._last, self._since = total, first, time.perf_counter()
        self._pending, self._waited = [], 0.0

    def add(self, metrics, waited):
        """Keeps one step's metrics (not yet computed, perhaps) and the seconds waited for its data."""
        self._pending.append(metrics)
        self._waited += waited

    def write(self, step):
        """Writes the means since the last call: one line, and one scalar each."""
        fetched = jax.device_get(self._pending)
        means = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        seconds = time.perf_counter() - self._since
        count = step - self._last
        means |= {"step_seconds": seconds / count, "data_wait_seconds": self._waited / count}
        self._pending, self._waited, self._last, self._since = [], 0.0, step, time.perf_counter()
        if self._writer is None:
            return
        for name, value in means.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        left = (self._total - step) * means["step_seconds"]
        line = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"step {step}/{self._total} {line} left {left / 60:.0f} min", flush=True)

    def image(self, name, image, step):
        """Writes a picture, uint8 (H, W, 3)."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self):
        """Closes the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()

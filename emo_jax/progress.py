"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time


class Progress:
    """Counts what is done of `total`.

    Args:
        total: how much there is to do, in `unit`s. name: what is done. unit: what is counted, in the singular.
        every: seconds between lines where stderr is no terminal.
    """

    def __init__(self, total, name, unit, every=5.0):
        self._total, self._name, self._unit, self._every = total, name, unit, every
        self._done, self._bar = 0.0, None
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()
        if sys.stderr.isatty():
            from tqdm import tqdm

            shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.4g}/{total} " + unit + "s [{elapsed}<{remaining}]"
            self._bar = tqdm(total=total, desc=name, bar_format=shape)

    def add(self, amount: float = 1, what: str | None = None) -> None:
        """Counts `amount` more; `what` renames the line from here on. Threads may call it."""
        with self._lock:
            self._add(amount, what)

    def _add(self, amount: float, what: str | None) -> None:
        self._done += amount
        self._name = what or self._name
        if self._bar is not None:
            self._bar.set_description(self._name, refresh=False)
            self._bar.update(amount)
            return
        now = time.monotonic()
        if now - self._last > self._every or self._done >= self._total:
            rate = self._done / max(now - self._start, 1e-9)
            left = max(self._total - self._done, 0) / rate
            print(
                f"{self._name}: {self._done:.4g}/{self._total} {self._unit}s, {rate:.3g} a second, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            self._last = now

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def close(self):
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def meanwhile(call, every):
    """Within it, `call()` is called every so many seconds by a thread of its own, which has ended at its end.

    What a call returns, if anything, are the seconds until the next.
    """
    over = threading.Event()

    def repeat():
        wait = every
        while not over.wait(wait):
            wait = call() or every

    thread = threading.Thread(target=repeat, name="meanwhile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

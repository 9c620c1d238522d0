"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator


class Progress:
    """Counts work done, and shows the count, the rate and the time left.

    The rate is measured from the first count on, because what precedes it, such as a compilation, happens once.

    Args:
        total: amount of work.
        name: what is being done.
        unit: what is counted, in the singular.
        every: seconds between lines if stderr is not a terminal.
        shown: whether to show the progress. Without it, only the lines of `say` are printed: for a process whose
            progress another one shows.
    """

    def __init__(self, total: float, name: str, unit: str, every: float = 5.0, shown: bool = True):
        self._shown = shown
        self._total, self._name, self._unit, self._every = total, name, unit, every
        self._done, self._bar = 0.0, None
        self._start = self._last = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._lock = threading.Lock()
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} " + unit + "s [{elapsed}<{remaining}]"
            self._bar = tqdm(total=total, desc=name, bar_format=shape)

    def add(self, amount: float = 1, what: str | None = None) -> None:
        """Counts more work. May be called from several threads.

        Args:
            amount: work done since the last call.
            what: a new name for what is being done.
        """
        with self._lock:
            self._add(amount, what)

    def _add(self, amount: float, what: str | None) -> None:
        self._done += amount
        self._name = what or self._name
        if self._bar is not None:
            self._bar.set_description_str(self._name, refresh=False)
            self._bar.update(amount)
            return
        now = time.monotonic()
        if self._shown and (now - self._last > self._every or self._done >= self._total):
            start, done = self._first or (self._start, 0.0)
            rate = (self._done - done) / max(now - start, 1e-9)
            left = max(self._total - self._done, 0) / max(rate, 1e-9)
            speed = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
            counts = f"{self._done:.0f}/{self._total:.0f} {self._unit}s"
            self._print(f"{self._name}: {counts}, {speed} a second, {left:.0f} s left")
            self._last = now
        self._first = self._first or (now, self._done)

    def say(self, text: str) -> None:
        """Prints a line above the bar. May be called from several threads."""
        with self._lock:
            self._print(text)

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        """Returns the progress."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the bar."""
        self.close()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def report_waiting(
    what: str, say: Callable[[str], None] | None = None, after: float = 2.0, every: float = 30.0
) -> contextlib.AbstractContextManager[None]:
    """Reports what a block without a progress bar is doing and for how long, after a delay and then periodically.

    Args:
        what: description of the work, for example "plan: tracing".
        say: function that gets the lines; None to print them to stderr.
        after: seconds until the first line.
        every: seconds between lines.
    """
    started = time.monotonic()

    def report() -> float:
        line = f"{what}, {time.monotonic() - started:.0f} s"
        if say is None:
            print(line, file=sys.stderr, flush=True)
        else:
            say(line)
        return every

    return call_periodically(report, every=after)


@contextlib.contextmanager
def call_periodically(call: Callable[[], float | None], every: float) -> Iterator[None]:
    """Calls a function periodically, in a thread that ends with the block.

    Args:
        call: the function; it may return the seconds until its next call.
        every: seconds until the first call, and between calls.
    """
    over = threading.Event()

    def repeat() -> None:
        wait = every
        while not over.wait(wait):
            wait = call() or every

    thread = threading.Thread(target=repeat, name="periodic", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""Ends a run early on SIGTERM or Ctrl-C, after saving."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_HANDLING_SECONDS = 1.0
"""Time after which the main thread is taken to be in a long call, such as a compilation."""
_NAMES = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


class Terminated(BaseException):
    """Raised when a signal arrives while the process waits for its data."""


class Termination:
    """Turns SIGTERM and SIGINT (Ctrl-C) into a request to save and end the run.

    While it listens, the first signal makes `requested` true, so that the loop can save. A second Ctrl-C ends the
    process at once, as does a first signal while `nothing_to_save` is true. Such an exit is made by a thread that the
    signal wakes up: Python runs signal handlers only between bytecodes, and a compilation is a call of minutes.

    With several processes, JAX's preemption service receives SIGTERM, and all processes see it at the same step. Ctrl-C
    is forwarded to it.

    Attributes:
        nothing_to_save: whether the run has not done a step yet.
    """

    def __init__(self) -> None:
        self.nothing_to_save = True
        self._signal: signal.Signals | None = None
        self._handled = threading.Event()
        self._interrupts = False

    @property
    def status(self) -> int:
        """Exit status of an ended run: 128 plus the number of the signal."""
        return 128 + (self._signal or signal.SIGTERM)

    @property
    def reason(self) -> str:
        """Either 'terminated' or 'interrupted'."""
        return _NAMES[self._signal or signal.SIGTERM]

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals in this context; without effect outside of the main thread, the only one to get them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        wakeup_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        handled = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, self._handle) for number in handled}
        thread = threading.Thread(target=self._watch, args=(read,), name="termination", daemon=True)
        thread.start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_before)
            os.close(write)  # which ends the thread
            thread.join()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """In this context the signal raises Terminated, for waits that may never end.

        Raises:
            Terminated: at once, if a signal has arrived before.
        """
        self._interrupts = True
        try:
            if self._signal:
                raise Terminated
            yield
        finally:
            self._interrupts = False

    def requested(self, step: int) -> bool:
        """Returns whether to save and end after this step; to be called after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    def _handle(self, number: int, frame: Any) -> None:
        self._handled.set()
        self._signal = self._signal or signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._interrupts:
            raise Terminated
        elif self.nothing_to_save:
            exit_now(self._signal)

    def _watch(self, pipe: int) -> None:
        """Reads the numbers of arriving signals, and exits if the loop cannot or need not."""
        interrupts = 0
        with open(pipe, "rb", buffering=0) as numbers:
            while byte := numbers.read(1):
                number = byte[0]
                if number not in _NAMES:
                    continue
                interrupts += number == signal.SIGINT
                stuck = not self._handled.wait(_HANDLING_SECONDS)
                if interrupts > 1 or (self.nothing_to_save and stuck):
                    exit_now(signal.Signals(number))


def exit_now(number: signal.Signals) -> None:
    """Ends the process and its children without any cleanup; callable from every thread."""
    children = multiprocessing.active_children()  # data workers
    for child in children:
        child.kill()
    for child in children:
        child.join(1)
    os.write(2, f"emo train: {_NAMES[number]}\n".encode())
    os._exit(128 + number)

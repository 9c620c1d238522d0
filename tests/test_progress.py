"""Progress: a bar on a terminal, lines elsewhere."""

import io
import threading

import pytest

from emo_jax.progress import Progress, meanwhile


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    for terminal in (True, False):
        stderr = io.StringIO()
        stderr.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr("sys.stderr", stderr)
        with Progress(20, "name", "frame") as progress:
            for count in (8, 8, 4):
                progress.add(count)
        told = stderr.getvalue()
        assert "20/20" in told and "name" in told
        assert told.count("\n") == 1 and ("\r" in told) == terminal


def test_what_is_done_meanwhile_ends_with_the_block():
    twice, calls = threading.Event(), []

    def call():
        calls.append(threading.current_thread())
        if len(calls) == 2:
            twice.set()

    with pytest.raises(OSError, match="away"), meanwhile(call, every=0.01):
        assert twice.wait(20)
        raise OSError("away")
    assert not calls[0].is_alive() and calls[0] is calls[1] is not threading.current_thread()

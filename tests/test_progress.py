"""Progress: a bar on a terminal, lines elsewhere."""

import io
import itertools
import threading

import pytest

from emo_jax.progress import Progress, call_periodically


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    for terminal in (True, False):
        stderr = io.StringIO()
        stderr.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr("sys.stderr", stderr)
        with Progress(20, "name", "frame") as progress:
            for count in (8, 8, 4):
                progress.add(count)
        output = stderr.getvalue()
        assert "20/20" in output and "name" in output
        assert output.count("\n") == 1 and ("\r" in output) == terminal


def lines(monkeypatch, counts, total, seconds):
    """Lines of a progress whose clock advances by `seconds` before each count."""
    stderr, clock = io.StringIO(), iter(itertools.count())
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("time.monotonic", lambda: sum(seconds[: next(clock)]))
    with Progress(total, "name", "frame", every=1) as progress:
        for count in counts:
            progress.add(count)
    return stderr.getvalue().splitlines()


def test_counts_are_written_in_full(monkeypatch):
    (line,) = lines(monkeypatch, [30000], 30000, [0.5])
    assert "30000/30000 frames" in line and "e+" not in line


def test_time_left_does_not_count_the_time_before_the_first_frames(monkeypatch):
    first, second, _ = lines(monkeypatch, [32, 32, 32], 96, [100, 4, 4])
    assert "32/96" in first and "64/96" in second
    assert "8 a second" in second and "4 s left" in second


def test_lines_are_printed_above_the_bar(monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stderr)
    with Progress(20, "name", "frame") as progress:
        progress.say("compiling")
        progress.add(20)
    assert "compiling\n" in stderr.getvalue() and "20/20" in stderr.getvalue()


def test_periodic_calls_end_with_the_block():
    twice, calls = threading.Event(), []

    def call():
        calls.append(threading.current_thread())
        if len(calls) == 2:
            twice.set()

    with pytest.raises(OSError, match="away"), call_periodically(call, every=0.01):
        assert twice.wait(20)
        raise OSError("away")
    assert not calls[0].is_alive() and calls[0] is calls[1] is not threading.current_thread()

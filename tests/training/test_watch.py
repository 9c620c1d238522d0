"""Messages about an input pipeline that stalls or breaks, and traces of steps."""

import pathlib
import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from emo_jax.training.watch import ProfiledStep, next_batch


def slow(seconds):
    time.sleep(seconds)
    yield "batch"


def test_a_stalled_input_warns_at_growing_intervals(capsys):
    assert next_batch(slow(0.75), 17, 0.1) == "batch"
    lines = capsys.readouterr().err.splitlines()
    waited = [re.search(r" (\S+) s .*step 17", line)[1] for line in lines]
    assert waited == ["0.1", "0.2", "0.4"]
    assert lines[0].startswith("warning: process 0 of 1 on ")
    assert "periodic" not in {thread.name for thread in threading.enumerate()}


def test_a_damaged_record_is_an_oserror():
    def damaged():
        raise ValueError("data/mine: record 3 is damaged")
        yield

    with pytest.raises(OSError, match="step 4: data/mine: record 3 is damaged"):
        next_batch(damaged(), 4, 5)


def test_an_input_in_time_prints_nothing_and_leaves_no_thread(capsys):
    assert next_batch(slow(0), 1, 5) == "batch"
    with pytest.raises(StopIteration):
        next_batch(iter(()), 1, 5)
    assert "periodic" not in {thread.name for thread in threading.enumerate()}
    assert not capsys.readouterr().err


@pytest.mark.parametrize("code, cause", [(-9, "memory"), (-7, "/dev/shm"), (-7, "--shm-size"), (-11, "SIGSEGV")])
def test_a_dead_data_worker_is_an_oserror(code, cause):
    def raising(text):
        yield from ()
        raise RuntimeError(text)

    with pytest.raises(OSError, match=rf"process 0 of 1 on .* step 3 \(exit code {code}, .*{cause}") as error:
        next_batch(raising(f"Worker process was terminated unexpectedly with exit code {code}. Search the logs"), 3, 5)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="something else"):
        next_batch(raising("something else"), 3, 5)


@pytest.fixture
def traces(monkeypatch):
    """A function that returns the batches, and the starts and stops of traces; the profiler is replaced."""
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(("start", pathlib.Path(folder).name)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(("stop",)))

    def go(count, left, calls):
        def step(state, batch):
            events.append(batch)
            return state, {}

        profiled = ProfiledStep(step, "run", count, left)
        for k in range(calls):
            profiled(jnp.zeros(()), k)
        profiled.close()
        return events

    return go


@pytest.mark.parametrize("count, left, calls, wanted", [
    (0, 3, 3, [0, 1, 2]),
    (2, 9, 7, [0, 1, 2, ("start", "profile"), 3, 4, ("stop",), 5, 6]),
    (2, 3, 3, [0, ("start", "profile"), 1, 2, ("stop",)]),  # a short run: the last steps
    (9, 9, 2, [("start", "profile"), 0, 1, ("stop",)]),  # the run ends early
    (2, 0, 0, []),
])  # fmt: skip
def test_which_steps_are_traced(traces, capsys, count, left, calls, wanted):
    assert traces(count, left, calls) == wanted
    printed = capsys.readouterr().err
    if "stop" not in str(wanted):
        assert not printed
    else:
        assert printed.startswith(f"{min(count, calls)} steps") and printed.endswith("run/profile\n")

"""SIGTERM and Ctrl-C end a run: with a checkpoint if there are steps to save, otherwise at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import Run, python_path

WAIT = """
import hashlib, multiprocessing, time
from emo_jax.training.termination import Termination

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    child.start()
    termination = Termination()
    termination.nothing_to_save = NOTHING
    with termination.listening():
        print(child.pid, flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as a compilation, it runs minutes outside of Python
"""


@pytest.mark.parametrize("nothing, signals, status", [
    (True, [signal.SIGINT], 130), (True, [signal.SIGTERM], 143), (False, [signal.SIGINT, signal.SIGINT], 130),
])  # fmt: skip
def test_exit_at_once_from_within_a_long_call(tmp_path, nothing, signals, status):
    (tmp_path / "wait.py").write_text(WAIT.replace("NOTHING", str(nothing)))
    environment = os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=python_path())
    command, pipes = [sys.executable, tmp_path / "wait.py"], dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, text=True, env=environment, **pipes)
    try:
        child = int(process.stdout.readline())
        for number in signals:
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(number)
        _, printed = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == status and len(printed.splitlines()) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_ctrl_c_while_the_step_is_compiled(tmp_path, talking_records, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    run = Run(tmp_path, "run", talking_records, 1, 2, stage="video")
    run.until("compiling")
    started = time.monotonic()
    run.processes[0].send_signal(signal.SIGINT)
    assert run.wait(30) == [130] and time.monotonic() - started < 5
    assert run.log.read_text().splitlines()[-1] == "emo train: interrupted" and not run.saved()

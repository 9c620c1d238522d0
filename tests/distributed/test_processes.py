"""Several processes: how they are told of each other, and that they train as one does, whatever kills them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest

from emo_jax.distributed import processes
from tests.runs import Run, free_port
from tests.small import draw_people

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS")


@pytest.fixture
def started(monkeypatch):
    """What jax.distributed.initialize was called with; nothing is started."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_flags_and_variables_name_the_processes(started, monkeypatch):
    told = dict(coordinator_address="host:12", num_processes=4, process_id=3, cluster_detection_method="deactivate")
    processes.start("host:12", 4, 3)
    for name, value in zip(VARIABLES, ("host:12", "4", "3"), strict=False):
        monkeypatch.setenv(name, value)
    processes.start()
    assert started == [told | dict(heartbeat_timeout_seconds=processes.HEARTBEAT)] * 2
    processes.start(process=1)  # a flag goes before its variable
    assert started[-1]["process_id"] == 1 and started[-1]["num_processes"] == 4


def test_a_cluster_is_asked_where_nothing_is_told(started, monkeypatch):
    processes.start()
    assert len(started) == 1 and "coordinator_address" not in started[0]
    monkeypatch.setenv("SLURM_NTASKS", "1")  # alone: JAX would take one GPU of many
    processes.start()
    assert len(started) == 1


def test_without_a_cluster_the_process_is_alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def nobody(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    processes.start()
    assert processes.first() and processes.worst(2) == 2 and processes.fetch({"a": 1}) == {"a": 1}


def test_a_program_that_has_used_jax_is_alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert jax.devices()
    processes.start()
    assert jax.process_count() == 1
    with pytest.raises(ValueError, match="cannot join the other processes at localhost:1 .*must be called before"):
        processes.start("localhost:1", 2, 0)


@pytest.mark.parametrize("arguments, message", [
    (("host:12", 4, None), r"--process \(or JAX_PROCESS_ID\) missing"),
    ((None, 4, None), r"--coordinator .* and --process .* missing"),
    (("host:12", 4, 4), "--process is 4 of 4 processes; expected 0 to 3"),
    (("host", 4, 0), "--coordinator is 'host'; expected HOST:PORT"),
    (("host:12", "four", 0), "--processes .* is 'four'; expected a whole number"),
])  # fmt: skip
def test_what_does_not_fit_together_is_one_line(started, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        processes.start(*arguments)
    assert "\n" not in str(caught.value) and not started


def test_nobody_there_is_one_line(started, monkeypatch):
    def refused(**options):
        raise RuntimeError("DEADLINE_EXCEEDED:\nno answer")

    monkeypatch.setattr(jax.distributed, "initialize", refused)
    with pytest.raises(ValueError, match="cannot join the other processes at host:12 .*no answer") as caught:
        processes.start("host:12", 2, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize\nbackend 'cuda'")])
def test_a_platform_that_is_not_installed_is_one_line(monkeypatch, error):
    def none():
        raise error

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(ValueError, match=r"JAX finds no devices .*'\.\[cuda\]'") as caught:
        processes.check_devices()
    assert "\n" not in str(caught.value)


# ---- really several processes, on CPU devices


@pytest.fixture(scope="module")
def eight_people(tmp_path_factory):
    """As many records as there are devices."""
    return draw_people(tmp_path_factory.mktemp("people") / "records", 8, 0.4)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_as_one_or_four_train_as_if_nothing_had_been(eight_people, tmp_path):
    killed = Run(tmp_path, "parts", eight_people, 2, 4, steps=600, batch_size=8)
    killed.until(killed.saved)  # written beside the steps that follow
    killed.processes[1].send_signal(signal.SIGKILL)
    since = time.monotonic()
    statuses = killed.wait()
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, 2), killed.log.read_text()
    assert time.monotonic() - since < 60  # the other does not wait for it for long
    assert re.search(r"stopped sending heartbeats\):\s+1\n", killed.log.read_text()), killed.log.read_text()
    saved = killed.saved()
    assert saved >= 2
    last = saved + 4

    shutil.copytree(killed.workdir, tmp_path / "copy")
    whole = Run(tmp_path, "whole", eight_people, 1, 8, steps=last, batch_size=8)
    assert whole.wait() == [0], whole.log.read_text()
    assert list(whole.losses()) == list(range(1, last + 1))
    parts = [killed]
    for name, count in (("parts", 1), ("copy", 4)):
        more = [f"--config.train.mesh.dcn_data={count}"]  # what lies between processes carries gradients alone
        again = Run(tmp_path, name, eight_people, count, 8 // count, steps=last, batch_size=8, more=more)
        assert again.wait() == [0] * count, again.log.read_text()
        assert list(again.losses()) == list(range(saved + 1, last + 1))
        parts.append(again)
    for part in parts:
        steps = [step for step in part.losses() if step <= last]
        np.testing.assert_allclose([part.losses()[k] for k in steps], [whole.losses()[k] for k in steps], rtol=2e-3)


PLACED = """
import sys
import jax, numpy as np
from jax.experimental import multihost_utils
from emo_jax.distributed.mesh import AXES, local_rows, place_batch
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
devices = np.array(jax.devices())[[0, 2, 3, 1]].reshape(2, 2, 1, 1)
mesh = jax.sharding.Mesh(devices, AXES)
batch = np.arange(24).reshape(8, 3)
placed = place_batch(mesh, {"x": batch[local_rows(mesh, 8)]})["x"]
assert (multihost_utils.process_allgather(placed, tiled=True) == batch).all()
"""


@pytest.mark.slow
def test_samples_lie_as_ever_where_the_devices_of_two_processes_are_mixed():
    start = [sys.executable, "-c", PLACED, f"localhost:{free_port()}"]
    environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    both = [subprocess.Popen([*start, str(process)], env=environment) for process in (0, 1)]
    assert [process.wait(120) for process in both] == [0, 0]


@pytest.mark.slow
def test_a_data_worker_killed_in_one_of_two_processes_ends_both(talking_records, tmp_path):
    run = Run(tmp_path, "worker", talking_records, 2, 1, steps=600, more=["--config.data.num_workers=2"])
    run.until(run.saved)
    children = psutil.Process(run.processes[1].pid).children(recursive=True)
    next(child for child in children if "spawn_main" in str(child.cmdline())).kill()
    since = time.monotonic()
    assert 0 not in run.wait(), run.log.read_text()
    assert time.monotonic() - since < 90  # the batches made ahead, and 30 s until the other takes it for dead
    assert "emo train: a data worker of process 1 of 2 on " in run.log.read_text()
    assert run.saved() >= 2


@pytest.mark.slow
def test_a_sigterm_to_one_of_two_processes_saves_and_ends_both(talking_records, tmp_path):
    run = Run(tmp_path, "told", talking_records, 2, 2, steps=600)
    run.until("step 1/600")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait() == [143, 143], run.log.read_text()
    (line,) = re.findall(r"^emo train: terminated; step (\d+) is saved", run.log.read_text(), re.MULTILINE)
    assert line == max((path.name for path in (run.workdir / "checkpoints").iterdir()), key=int)
    assert max(run.losses()) == int(line)

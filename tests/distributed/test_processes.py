"""Several processes: how they join, and that they train as one process does after any of them is killed."""

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
    """Options of the calls of jax.distributed.initialize, which starts nothing."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_arguments_and_environment_variables_give_the_processes(started, monkeypatch):
    expected = dict(coordinator_address="host:12", num_processes=4, process_id=3, cluster_detection_method="deactivate")
    processes.start("host:12", 4, 3)
    for name, value in zip(VARIABLES, ("host:12", "4", "3"), strict=False):
        monkeypatch.setenv(name, value)
    processes.start()
    assert started == [expected | dict(heartbeat_timeout_seconds=processes.HEARTBEAT)] * 2
    processes.start(process=1)  # an argument overrides its variable
    assert started[-1]["process_id"] == 1 and started[-1]["num_processes"] == 4


def test_jax_detects_the_cluster_without_arguments(started, monkeypatch):
    processes.start()
    assert len(started) == 1 and "coordinator_address" not in started[0]
    monkeypatch.setenv("SLURM_NTASKS", "1")  # a single task: JAX would use one GPU of many
    processes.start()
    assert len(started) == 1


def test_without_a_cluster_the_process_runs_alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def no_cluster(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    processes.start()
    assert processes.is_main() and processes.max_over_processes(2) == 2 and processes.fetch({"a": 1}) == {"a": 1}


def test_a_program_that_has_used_jax_runs_alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert jax.devices()
    processes.start()
    assert jax.process_count() == 1
    with pytest.raises(ValueError, match="localhost:1 "):
        processes.start("localhost:1", 2, 0)


@pytest.mark.parametrize("arguments, message", [
    (("host:12", 4, None), "JAX_PROCESS_ID"),
    ((None, 4, None), "--coordinator .* --process "),
    (("host:12", 4, 4), "--process is 4"),
    (("host", 4, 0), "--coordinator is 'host'"),
    (("host:12", "four", 0), "--processes .* 'four'"),
])  # fmt: skip
def test_inconsistent_arguments_raise(started, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        processes.start(*arguments)
    assert "\n" not in str(caught.value) and not started


def test_an_unreachable_coordinator_raises(started, monkeypatch):
    def refused(**options):
        raise RuntimeError("DEADLINE_EXCEEDED:\nno answer")

    monkeypatch.setattr(jax.distributed, "initialize", refused)
    with pytest.raises(ValueError, match="host:12 .*no answer") as caught:
        processes.start("host:12", 2, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize\nbackend 'cuda'")])
def test_a_platform_that_is_not_installed_raises(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ValueError, match=r"\.\[cuda\]") as caught:
        processes.check_devices()
    assert "\n" not in str(caught.value)


# ---- several processes on CPU devices


@pytest.fixture(scope="module")
def eight_people(tmp_path_factory):
    """One record per device."""
    return draw_people(tmp_path_factory.mktemp("people") / "records", 8, 0.4)


@pytest.mark.slow
def test_a_killed_run_of_two_processes_resumes_on_one_or_four_with_equal_losses(eight_people, tmp_path):
    killed = Run(tmp_path, "parts", eight_people, 2, 4, steps=600, batch_size=8)
    killed.until(killed.saved)  # checkpoints are written while training continues
    killed.processes[1].send_signal(signal.SIGKILL)
    since = time.monotonic()
    statuses = killed.wait()
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, 2), killed.log.read_text()
    assert time.monotonic() - since < 60  # the other process ends soon
    assert re.search(r"stopped sending heartbeats\):\s+1\n", killed.log.read_text()), killed.log.read_text()
    saved = killed.saved()
    assert saved >= 2
    last = saved + 4

    shutil.copytree(killed.workdir, tmp_path / "copy")
    uninterrupted = Run(tmp_path, "uninterrupted", eight_people, 1, 8, steps=last, batch_size=8)
    assert uninterrupted.wait() == [0], uninterrupted.log.read_text()
    assert list(uninterrupted.losses()) == list(range(1, last + 1))
    parts = [killed]
    for name, count in (("parts", 1), ("copy", 4)):
        more = [f"--config.train.mesh.dcn_data={count}"]  # only gradients are sent between processes
        again = Run(tmp_path, name, eight_people, count, 8 // count, steps=last, batch_size=8, more=more)
        assert again.wait() == [0] * count, again.log.read_text()
        assert list(again.losses()) == list(range(saved + 1, last + 1))
        parts.append(again)
    for part in parts:
        steps = [step for step in part.losses() if step <= last]
        losses = [uninterrupted.losses()[k] for k in steps]
        np.testing.assert_allclose([part.losses()[k] for k in steps], losses, rtol=2e-3)


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
def test_samples_keep_their_order_if_the_devices_of_processes_interleave():
    start = [sys.executable, "-c", PLACED, f"localhost:{free_port()}"]
    environment = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    both = [subprocess.Popen([*start, str(process)], env=environment) for process in (0, 1)]
    assert [process.wait(120) for process in both] == [0, 0]


@pytest.mark.slow
def test_a_killed_data_worker_ends_both_processes(talking_records, tmp_path):
    run = Run(tmp_path, "worker", talking_records, 2, 1, steps=600, more=["--config.data.num_workers=2"])
    run.until(run.saved)
    children = psutil.Process(run.processes[1].pid).children(recursive=True)
    next(child for child in children if "spawn_main" in str(child.cmdline())).kill()
    since = time.monotonic()
    assert 0 not in run.wait(), run.log.read_text()
    assert time.monotonic() - since < 90  # prefetched batches, and 30 s until the heartbeat times out
    assert "emo train: a data worker of process 1 of 2 on " in run.log.read_text()
    assert run.saved() >= 2


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_and_ends_both(talking_records, tmp_path):
    run = Run(tmp_path, "terminated", talking_records, 2, 2, steps=600)
    run.until("step 1/600")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait() == [143, 143], run.log.read_text()
    (line,) = re.findall(r"^emo train: terminated; step (\d+) is saved", run.log.read_text(), re.MULTILINE)
    assert line == max((path.name for path in (run.workdir / "checkpoints").iterdir()), key=int)
    assert max(run.losses()) == int(line)

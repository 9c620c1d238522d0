"""Batches of videos on Ray. Needs the extra `ray`, except for what happens without it."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.generation.ray_pool import check_address, plan_workers
from emo_jax.media.audio import write_wav
from emo_jax.media.video import probe
from tests.generation.media import random_portrait, random_voice
from tests.runs import python_path

on_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
DEADLINE = 900


@pytest.fixture
def manifest(tmp_path):
    """Ten videos of four frames, and one that fails."""
    Image.fromarray(random_portrait()).save(tmp_path / "p.png")
    write_wav(tmp_path / "v.wav", random_voice(2500))
    row = dict(portrait="p.png", audio="v.wav", face="60,50,130,150")
    rows = [row | dict(output=f"{index}.mp4", seed=index) for index in range(10)]
    rows.insert(1, row | dict(portrait="none.png", output="bad.mp4"))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def machine(alive=True, **resources):
    return dict(Alive=alive, Resources={name: float(value) for name, value in resources.items()})


@pytest.mark.parametrize(
    ("nodes", "workers", "batches", "expected"),
    [
        ([machine(CPU=64, GPU=8), machine(CPU=64), machine(False, CPU=64, GPU=8)], None, 100, (8, {"num_gpus": 1})),
        ([machine(CPU=64, GPU=8)], 16, 100, (16, {"num_gpus": 1})),  # of a cluster that grows
        ([machine(CPU=64, GPU=8)], None, 3, (3, {"num_gpus": 1})),
        ([machine(CPU=2)], None, 100, (2, {"num_cpus": 1})),
        ([machine(CPU=16)], 4, 100, (4, {"num_cpus": 4})),
        ([machine(CPU=7), machine(CPU=3)], 2, 100, (2, {"num_cpus": 3})),
        ([machine(CPU=2)], 4, 100, (4, {"num_cpus": 1})),
    ],
)
def test_workers_take_one_gpu_or_a_share_of_the_cpus(nodes, workers, batches, expected):
    assert plan_workers(nodes, workers, batches) == expected


def test_cluster_without_devices_is_refused():
    with pytest.raises(ValueError, match="no CPUs"):
        plan_workers([machine(memory=1)], None, 5)


def test_address_at_which_nothing_listens_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
        check_address("auto")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ValueError, match="RAY_ADDRESS"):
            check_address(address)


def test_missing_ray_and_misplaced_options_are_one_line(manifest, weights_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    files = ["generate", "--checkpoint", str(weights_dir), "-o", str(manifest.parent / "out")]
    for more, word in (
        (["--manifest", str(manifest), "--runner", "ray"], "[ray]"),
        (["--manifest", str(manifest), "--runner", "spark"], "spark"),
        (["--manifest", str(manifest), "--workers", "2"], "--runner ray"),
        (["--manifest", str(manifest), "--runner", "ray", "--workers", "0"], "--workers"),
        (["--portrait", "p.png", "--audio", "v.wav", "--runner", "ray"], "--manifest"),
    ):
        assert cli.main([*files, *more]) == 2
        assert word in capsys.readouterr().err.splitlines()[-1]


def begin(manifest, weights, **variables):
    """Starts the batch on a local Ray with two CPUs, in a process group."""
    program = """
import sys, ray
init = ray.init
ray.init = lambda **options: init(num_cpus=2, include_dashboard=False, **options)
from emo_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, "generate", "--manifest", str(manifest), "--runner", "ray"]
    command += ["-o", str(manifest.parent / "out"), "--checkpoint", str(weights), "--framing", "crop"]
    environment = os.environ | dict(PYTHONPATH=python_path(), JAX_PLATFORMS="cpu") | variables
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def report(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


@on_ray
@pytest.mark.slow
def test_two_workers_on_ray_share_a_manifest(manifest, weights_dir):
    process, out = begin(manifest, weights_dir), manifest.parent / "out"
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, errors
    assert "10 made, 0 were there, 1 failed" in output and "11/11 videos" in errors
    assert "none.png does not exist" in errors.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == [*(f"{index}.mp4" for index in range(10)), "report.jsonl"]
    assert all(probe(path)["frames"] == 4 for path in out.glob("*.mp4"))
    done = [line for line in report(out) if line["status"] == "done"]
    assert len(done) == 10 and len({line["process"] for line in done}) == 2


@on_ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_batch_on_ray_continues(manifest, weights_dir, number):
    out = manifest.parent / "out"
    rows = [json.loads(manifest.read_text().splitlines()[0]) | dict(output=f"{index}.mp4") for index in range(30)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    process, deadline = begin(manifest, weights_dir), time.monotonic() + DEADLINE
    while len(list(out.glob("[0-9]*.mp4"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), errors
    if number == signal.SIGTERM:
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.mp4")}
    assert len(before) < 30
    again = begin(manifest, weights_dir)
    output, errors = again.communicate(timeout=DEADLINE)
    assert again.returncode == 0, errors
    assert sorted(path.name for path in out.iterdir()) == sorted([*(row["output"] for row in rows), "report.jsonl"])
    assert all((out / name).stat().st_mtime_ns == written for name, written in before.items())
    assert all(probe(path)["frames"] == 4 for path in out.glob("*.mp4"))

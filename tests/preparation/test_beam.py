"""The dataset built on Beam equals the one built without it. Needs the extra `beam`."""

import importlib.util
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from emo_jax.cli import main as cli
from emo_jax.preparation.prepare import prepare_videos
from emo_jax.progress import Progress
from tests.preparation.conftest import SMALL
from tests.preparation.test_shards import COMMAND, assert_equal_datasets, build_with_crash, outcomes, wait_until

PREPARE = [sys.executable, "-m", "emo_jax.cli", "prepare", "videos", *COMMAND]
PROCESSES = (
    "--runner",
    "DirectRunner",
    "--runner-options=--direct_num_workers=2 --direct_running_mode=multi_processing",
)
JOB_SERVICE = "apache_beam.runners.portability.local_job_service_main"
READ_WITH_TFDS = """
import sys
from emo_jax.preparation.prepare import prepare_videos
prepare_videos([sys.argv[1]], sys.argv[2], size=64, min_seconds=1.0, min_face=40.0, workers=1)
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[2]).as_data_source("train")
print([example["source"].decode() for example in source], {"tensorflow", "apache_beam"} & set(sys.modules))
"""

on_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs the extra beam")


def run(videos, output, *options):
    """Runs `emo prepare videos`; returns its stderr."""
    command = [*PREPARE, "--input", str(videos), "--output", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def shards_with_records(work):
    return [path for path in work.glob("shard-*.json") if json.loads(path.read_text())["records"]]


def test_tfds_reads_records_without_beam_and_tensorflow(videos, tmp_path):
    command = [sys.executable, "-c", READ_WITH_TFDS, str(videos), str(tmp_path / "out")]
    stdout = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert stdout == "['0.mp4', '1.mp4', '2.mp4'] set()\n"


def test_missing_beam_names_the_extra(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ["--input", str(videos), "--output", str(tmp_path / "out"), "--runner", "DirectRunner"]
    assert cli.main(["prepare", "videos", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "[beam]" in line and not list(tmp_path.iterdir())


def test_runner_options_without_runner_raise(videos, tmp_path):
    with pytest.raises(ValueError, match="--runner-options"):
        prepare_videos([str(videos)], str(tmp_path / "out"), runner_options=["--streaming"], **SMALL)


@on_beam
@pytest.mark.slow
@pytest.mark.parametrize("runner, option, message", [
    ("Nope", "", "Nope"),
    ("DirectRunner", "--direct_num_worker=2", "--direct_num_worker,"),
    ("DirectRunner", "--direct_num_workers=x", "'x'"),
])  # fmt: skip
def test_invalid_runner_options_fail(videos, tmp_path, runner, option, message):
    arguments = ["--input", str(videos), "--output", str(tmp_path / "out"), "--runner", runner]
    done = subprocess.run([*PREPARE, *arguments, f"--runner-options={option}"], capture_output=True, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING:")]  # warnings of Beam
    assert len(lines) == 1 and lines[0].startswith("emo prepare: ") and message in lines[0]


@on_beam
@pytest.mark.slow
def test_direct_runner_with_processes(videos, prepared, tmp_path):
    stderr = run(videos, tmp_path / "out", *PROCESSES)
    assert stderr.count("Python sdk harness starting") == 2 and "videos: 4/4 videos" in stderr
    assert_equal_datasets(prepared, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@on_beam
@pytest.mark.slow
def test_portable_runner(videos, prepared, tmp_path):
    port = tmp_path / "service" / "port"
    with open(tmp_path / "log", "w") as log:
        service = subprocess.Popen(
            [sys.executable, "-m", JOB_SERVICE, "--port_file", str(port)], stderr=log, stdout=log
        )
    try:
        limit = time.monotonic() + 120
        while not port.exists():
            assert service.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        options = f"--job_endpoint=localhost:{port.read_text()} --environment_type=LOOPBACK"
        run(videos, tmp_path / "out", "--runner", "PortableRunner", f"--runner-options={options}")
    finally:
        service.terminate()
        service.wait()
    assert "with state DONE" in (tmp_path / "log").read_text()
    assert_equal_datasets(prepared, tmp_path / "out")


@on_beam
@pytest.mark.slow
@pytest.mark.parametrize("ending", [[], ["--runner", "DirectRunner"]])
def test_killed_beam_run_resumes(videos, prepared, tmp_path, ending):
    command = [*PREPARE, "--input", str(videos), "--output", str(tmp_path / "out"), *PROCESSES]
    beam_run, work = subprocess.Popen(command, stderr=subprocess.DEVNULL), tmp_path / ".out.partial"
    wait_until(lambda: shards_with_records(work), beam_run)
    children = psutil.Process(beam_run.pid).children(recursive=True)
    beam_run.send_signal(signal.SIGKILL)
    beam_run.wait()
    assert len(children) >= 3 and not psutil.wait_procs(children, timeout=60)[1]
    complete = shards_with_records(work)
    if len(complete) == 3:  # the workers have finished after the kill: make one shard incomplete
        complete.pop().unlink()
    files = {path.with_suffix(".array_record").stat().st_ino for path in complete}
    assert not (tmp_path / "out").exists()
    run(videos, tmp_path / "out", *ending)
    assert files <= {path.stat().st_ino for path in (tmp_path / "out").iterdir()}  # not made again
    assert_equal_datasets(prepared, tmp_path / "out")


@on_beam
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of Beam
def test_video_that_crashes_its_process_is_rejected(videos, tmp_path):
    from emo_jax.preparation.beam import make_beam_runner

    build = build_with_crash(videos, tmp_path / "out", max_shards=2)
    assert build.begin()
    make_beam_runner("DirectRunner", [])(build, progress=Progress(4, "videos", "video"))
    videos = outcomes(build)
    assert "crashed" in videos["1.mp4"]["reason"]
    assert {name: outcome["records"] for name, outcome in videos.items()} == {
        "0.mp4": 1,
        "1.mp4": 0,
        "1b.txt": 0,
        "2.mp4": 1,
    }

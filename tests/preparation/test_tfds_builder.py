"""The data set built on Beam is the one built without; needs the extra `beam`, whose absence is told in one line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from emo_jax.cli import main as cli
from emo_jax.preparation import shards
from emo_jax.preparation.prepare import find_videos, prepare_videos
from emo_jax.preparation.shots import Rules
from emo_jax.preparation.video_records import Settings
from tests.faces import heads
from tests.preparation.test_shards import COMMAND, OPTIONS, same

PREPARE = [sys.executable, "-m", "emo_jax.cli", "prepare", "videos", *COMMAND]
PROCESSES = (
    "--runner",
    "DirectRunner",
    "--runner-options=--direct_num_workers=2 --direct_running_mode=multi_processing",
)
JOB_SERVICE = "apache_beam.runners.portability.local_job_service_main"
OPEN = """
import sys
from emo_jax.preparation.prepare import prepare_videos
prepare_videos([sys.argv[1]], sys.argv[2], size=64, min_seconds=1.0, min_face=40.0, workers=1)
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[2]).as_data_source("train")
print([example["source"].decode() for example in source], {"tensorflow", "apache_beam"} & set(sys.modules))
"""

on_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs the extra beam")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three heads, with a click and a flash together, and a text file."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(3):
        frames, sound = heads.heads(40 + 5 * k), heads.voice(1.6 + 0.2 * k, seed=k) * 0.05
        frames[25, 12:26], sound[16000:16020] = 255, 0.9
        heads.write(folder / f"{k}.mp4", frames, 25, sound)
    (folder / "1b.mp4").write_text("no video\n")
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """What one process without Beam writes."""
    output = tmp_path_factory.mktemp("whole") / "out"
    report = prepare_videos([str(videos)], str(output), **OPTIONS)
    assert report["records"] == 3 and report["videos_rejected"] == 1
    return output


def run(videos, output, *options):
    """Runs `emo prepare videos`; returns what it said."""
    command = [*PREPARE, "--input", str(videos), "--output", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def filled(work):
    """The finished shards that hold records."""
    return [path for path in work.glob("shard-*.json") if json.loads(path.read_text())["records"]]


def test_without_beam_and_tensorflow(videos, tmp_path):
    command = [sys.executable, "-c", OPEN, str(videos), str(tmp_path / "out")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == "['0.mp4', '1.mp4', '2.mp4'] set()\n"


def test_beam_that_is_missing_is_one_line(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ["--input", str(videos), "--output", str(tmp_path / "out"), "--runner", "DirectRunner"]
    assert cli.main(["prepare", "videos", *arguments]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert "pip install -c constraints.txt -e '.[beam]'" in told and not list(tmp_path.iterdir())


def test_options_without_a_runner_are_refused(videos, tmp_path):
    with pytest.raises(ValueError, match="give --runner too"):
        prepare_videos([str(videos)], str(tmp_path / "out"), runner_options=["--streaming"], **OPTIONS)


@on_beam
@pytest.mark.slow
@pytest.mark.parametrize("runner, option, message", [
    ("Nope", "", "Unexpected pipeline runner: Nope"),
    ("DirectRunner", "--direct_num_worker=2", "--direct_num_worker, which Beam's DirectRunner does not know"),
    ("DirectRunner", "--direct_num_workers=x", "argument --direct_num_workers: invalid int value: 'x'"),
])  # fmt: skip
def test_bad_options_are_one_line(videos, tmp_path, runner, option, message):
    arguments = ["--input", str(videos), "--output", str(tmp_path / "out"), "--runner", runner]
    done = subprocess.run([*PREPARE, *arguments, f"--runner-options={option}"], capture_output=True, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    told = [line for line in done.stderr.splitlines() if not line.startswith("WARNING:")]  # Beam's own
    assert len(told) == 1 and told[0].startswith("emo prepare: ") and message in told[0]


@on_beam
@pytest.mark.slow
def test_direct_runner_with_processes(videos, whole, tmp_path):
    told = run(videos, tmp_path / "out", *PROCESSES)
    assert told.count("Python sdk harness starting") == 2 and "videos: 4/4 videos" in told
    same(whole, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@on_beam
@pytest.mark.slow
def test_portable_runner(videos, whole, tmp_path):
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
    same(whole, tmp_path / "out")


@on_beam
@pytest.mark.slow
@pytest.mark.parametrize("ending", [[], ["--runner", "DirectRunner"]])
def test_begun_on_beam_and_killed(videos, whole, tmp_path, ending):
    command = [*PREPARE, "--input", str(videos), "--output", str(tmp_path / "out"), *PROCESSES]
    begun = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    work, limit = tmp_path / ".out.partial", time.monotonic() + 120
    while not filled(work):
        assert begun.poll() is None and time.monotonic() < limit
        time.sleep(0.002)
    children = psutil.Process(begun.pid).children(recursive=True)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert len(children) >= 3 and not psutil.wait_procs(children, timeout=60)[1]
    finished = filled(work)
    if len(finished) == 3:  # the workers outlived their parent for long enough: as if killed a moment earlier
        finished.pop().unlink()
    files = {path.with_suffix(".array_record").stat().st_ino for path in finished}
    assert not (tmp_path / "out").exists()
    run(videos, tmp_path / "out", *ending)
    assert files <= {path.stat().st_ino for path in (tmp_path / "out").iterdir()}  # not made again
    same(whole, tmp_path / "out")


class Fatal(str):
    """A video's name that takes down the process which writes its record, as a decoder with a bug would."""

    def encode(self, *_):
        os._exit(9)


@on_beam
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Beam's own
def test_a_video_that_takes_its_process_down_is_rejected(videos, tmp_path):
    from emo_jax.preparation.tfds_builder import beam_maker
    from emo_jax.progress import Progress

    settings = Settings(Rules(10.0, 1.0, 40.0, 64), "haar", None, "unknown")
    found = find_videos([str(videos)])
    names = tuple((path, Fatal(name) if name == "1.mp4" else name) for path, name in found)
    plan = shards.Plan(tmp_path / "out", names, settings, limit=2)
    assert plan.begin()
    beam_maker("DirectRunner", [])(plan, progress=Progress(4, "videos", "video"))
    summaries = [json.loads(plan.summary(index).read_text()) for index in range(2)]
    outcomes = {video["source"]: video for summary in summaries for video in summary["videos"]}
    assert "took the process down" in outcomes["1.mp4"]["reason"]
    assert {name: outcome["records"] for name, outcome in outcomes.items()} == {
        "0.mp4": 1,
        "1.mp4": 0,
        "1b.mp4": 0,
        "2.mp4": 1,
    }

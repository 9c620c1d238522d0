"""Builds that are killed, crash or are repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from emo_jax.data import records
from emo_jax.preparation.prepare import find_inputs, prepare_videos
from emo_jax.preparation.shots import Rules
from emo_jax.preparation.video_records import Settings
from emo_jax.preparation.video_shards import VideoBuild, make_shard, publish_records
from emo_jax.preparation.workers import make_shard_isolated, make_shards
from emo_jax.progress import Progress
from emo_jax.workers import crash_cause
from tests.preparation.conftest import SMALL

COMMAND = ("--size", "64", "--min-seconds", "1", "--min-face", "40")


def assert_equal_datasets(first, second):
    """Asserts that two directories hold the same files; records are compared after reading."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (first, second)]
    assert names[0] == names[1]
    for name in names[0]:
        if "array_record-" not in name:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    sources = [records.open_records(folder, "train") for folder in (first, second)]
    assert len(sources[0]) == len(sources[1])
    for one, other in zip(*([source[i] for i in range(len(source))] for source in sources), strict=True):
        for field in one:
            np.testing.assert_array_equal(one[field], other[field], err_msg=field)


def make_build(videos, output, max_shards=256):
    settings = Settings(Rules(10.0, 1.0, 40.0, 64), "haar", None, "unknown")
    return VideoBuild(output, find_inputs([str(videos)]), settings, max_shards)


def wait_until(condition, process, seconds=180):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.002)


def test_index_and_ids(prepared):
    source = records.open_records(prepared, "train")
    rows = [source[i] for i in range(len(source))]
    assert [record["source"] for record in rows] == ["0.mp4", "1.mp4", "2.mp4"]
    assert len({record["id"] for record in rows}) == 3 and rows[1]["id"].startswith("1-")
    index = source.index()
    assert index["frames"].tolist() == [30, 35, 40] and index["sound"].all() and (index["fps"] == 25).all()
    [line] = (prepared / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "1b.txt"


def test_workers_do_not_change_records(videos, prepared, tmp_path):
    prepare_videos([str(videos)], str(tmp_path / "out"), **SMALL | {"workers": 2})
    assert_equal_datasets(prepared, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_killed_run_ends_its_workers_and_resumes(videos, prepared, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "emo_jax.cli", "prepare", "videos", "--input", str(videos), *COMMAND]
    run = subprocess.Popen([*command, "--output", str(tmp_path / "out"), "--workers", "2"], stderr=subprocess.DEVNULL)
    work = tmp_path / ".out.partial"
    wait_until(lambda: list(work.glob("*.current")) and list(work.glob("shard-*.json")), run)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert not (tmp_path / "out").exists()
    complete = [int(path.stem[-5:]) for path in work.glob("shard-*.json")]
    assert 1 <= len(complete) < 4
    made = []

    def recording_make_shard(build, index, tick):
        made.append(index)
        make_shard(build, index)

    monkeypatch.setattr("emo_jax.preparation.workers.make_shard", recording_make_shard)
    prepare_videos([str(videos)], str(tmp_path / "out"), **SMALL)
    assert sorted(made + complete) == [0, 1, 2, 3]  # complete shards are not made again
    assert_equal_datasets(prepared, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_kill_while_publishing_resumes(videos, prepared, tmp_path):
    build = make_build(videos, tmp_path / "out")
    assert build.begin()
    for index in range(build.shards):
        make_shard(build, index)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_records(build, interrupt)
    assert not build.target.exists()
    prepare_videos([str(videos)], str(build.target), **SMALL)
    assert_equal_datasets(prepared, build.target)


def test_finished_build_is_not_repeated(videos, prepared, monkeypatch):
    monkeypatch.setattr("emo_jax.preparation.workers.make_shards", lambda *_: pytest.fail("made again"))
    assert prepare_videos([str(videos)], str(prepared), **SMALL)["records"] == 3


def test_other_options_raise(videos, prepared, tmp_path):
    with pytest.raises(ValueError, match=f"{prepared} exists"):
        prepare_videos([str(videos)], str(prepared), **SMALL | {"size": 96})
    make_build(videos, tmp_path / "out").begin()
    with pytest.raises(ValueError, match="unfinished build"):
        prepare_videos([str(videos)], str(tmp_path / "out"), **SMALL | {"size": 96})


def test_no_records_raises(tmp_path):
    (tmp_path / "a.mp4").write_text("nothing")
    with pytest.raises(ValueError, match="none of 1 videos .*rejected.jsonl"):
        prepare_videos([str(tmp_path / "a.mp4")], str(tmp_path / "out"), **SMALL)
    [line] = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "a.mp4"


def test_many_videos_share_shards(tmp_path):
    paths = tuple((tmp_path / f"{k:04d}", f"{k:04d}") for k in range(600))
    build = VideoBuild(tmp_path, paths, Settings(), 256)
    parts = [build.shard_videos(index) for index in range(build.shards)]
    assert build.shards == 256 and sum(parts, ()) == paths and {len(part) for part in parts} == {2, 3}
    assert VideoBuild(tmp_path, paths, Settings(), 400).shards == 400


def test_max_shards(videos, prepared, tmp_path):
    prepare_videos([str(videos)], str(tmp_path / "out"), **SMALL | {"shards": 2})
    assert len(list((tmp_path / "out").glob("*array_record-*-of-00002"))) == 2
    sources = [records.open_records(folder, "train") for folder in (prepared, tmp_path / "out")]
    ids = [[source[i]["id"] for i in range(len(source))] for source in sources]
    assert ids[0] == ids[1] and len(ids[0]) == 3
    with pytest.raises(ValueError, match="exists"):
        prepare_videos([str(videos)], str(tmp_path / "out"), **SMALL)


def test_unfinished_build_of_another_version_raises(videos, tmp_path, monkeypatch):
    build = make_build(videos, tmp_path / "out")
    assert build.begin() and build.begin()
    monkeypatch.setattr(records.EmoRecords, "VERSION", "0.0.1")
    with pytest.raises(ValueError, match="unfinished build"):
        build.begin()


def test_error_ends_only_the_processes_of_its_pool(videos, tmp_path):
    """Each thread of Beam has a pool; if one ended the processes of another, the other's video would seem to crash."""
    build = make_build(videos, tmp_path / "out")
    text, video = 2, 3
    assert build.begin() and build.shard_videos(text)[0][1] == "1b.txt"
    build.data(text).mkdir()  # obstructs the finished shard
    with ThreadPoolExecutor(2) as threads:
        fails, works = (threads.submit(make_shard_isolated, build, index, {}) for index in (text, video))
    assert isinstance(fails.exception(), OSError)
    assert works.exception() is None and json.loads(build.summary(video).read_text())["videos"][0]["records"] == 1


class CrashingName(str):
    """Name of a video that crashes the process that writes its record, as a faulty decoder would."""

    def encode(self, *_):
        os._exit(9)


class BusErrorName(str):
    """Name of a video whose process is ended by a write to shared memory that is full."""

    def encode(self, *_):
        os.kill(os.getpid(), signal.SIGBUS)


def build_with_crash(videos, output, max_shards, name_type=CrashingName):
    """Returns a build in which the video 1.mp4 crashes its process."""
    build = make_build(videos, output, max_shards)
    names = tuple((path, name_type(name) if name == "1.mp4" else name) for path, name in build.videos)
    return VideoBuild(build.target, names, build.settings, max_shards)


def outcomes(build):
    """Returns {name: outcome} of the videos in the complete shards."""
    return {video["source"]: video for summary in build.read_summaries() for video in summary["videos"]}


@pytest.mark.slow
def test_video_that_crashes_its_process_is_rejected(videos, tmp_path):
    build = build_with_crash(videos, tmp_path / "out", 256)
    assert build.begin()
    make_shards(build, 2, Progress(4, "videos", "video"))
    videos = outcomes(build)
    assert "crashed" in videos["1.mp4"]["reason"]
    assert [videos[name]["records"] for name in ("0.mp4", "1.mp4", "2.mp4")] == [1, 0, 1]


def test_full_shared_memory_is_named(videos, tmp_path):
    build = build_with_crash(videos, tmp_path / "out", 256, BusErrorName)
    assert build.begin() and build.shard_videos(1)[0][1] == "1.mp4"
    make_shard_isolated(build, 1, {})
    [outcome] = json.loads(build.summary(1).read_text())["videos"]
    assert "/dev/shm" in outcome["reason"] and "--shm-size" in outcome["reason"]
    assert crash_cause([0, -signal.SIGTERM, -signal.SIGSEGV]) == "SIGSEGV"

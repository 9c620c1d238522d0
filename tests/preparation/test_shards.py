"""Runs that are killed, crash or are given again."""

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
from emo_jax.preparation import shards
from emo_jax.preparation.prepare import find_videos, prepare_videos
from emo_jax.preparation.shots import Rules
from emo_jax.preparation.video_records import Settings
from emo_jax.preparation.workers import make_alone, make_shards
from emo_jax.progress import Progress
from tests.faces import heads

OPTIONS = dict(size=64, min_seconds=1.0, min_face=40.0, workers=1)
COMMAND = ("--size", "64", "--min-seconds", "1", "--min-face", "40")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three heads and a text file."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(3):
        heads.write(folder / f"{k}.mp4", heads.heads(30 + 5 * k), 25, heads.voice(1.2 + 0.2 * k, seed=k))
    (folder / "1b.txt").write_text("no video\n")
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """What a run that nobody disturbs writes."""
    output = tmp_path_factory.mktemp("whole") / "out"
    prepare_videos([str(videos)], str(output), **OPTIONS)
    return output


def same(first, second):
    """That two directories hold the same files with the same content; records are compared as they are read."""
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


def plan_of(videos, output):
    settings = Settings(Rules(10.0, 1.0, 40.0, 64), "haar", None, "unknown")
    return shards.Plan(output, find_videos([str(videos)]), settings, 256)


def test_the_index_and_the_ids(whole):
    source = records.open_records(whole, "train")
    made = [source[i] for i in range(len(source))]
    assert [record["source"] for record in made] == ["0.mp4", "1.mp4", "2.mp4"]
    assert len({record["id"] for record in made}) == 3 and made[1]["id"].startswith("1-")
    index = source.index()
    assert index["frames"].tolist() == [30, 35, 40] and index["sound"].all() and (index["fps"] == 25).all()
    [line] = (whole / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "1b.txt"


def test_workers_change_nothing(videos, whole, tmp_path):
    prepare_videos([str(videos)], str(tmp_path / "out"), **OPTIONS | {"workers": 2})
    same(whole, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_kill_and_run_again(videos, whole, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "emo_jax.cli", "prepare", "videos", "--input", str(videos), *COMMAND]
    run = subprocess.Popen([*command, "--output", str(tmp_path / "out"), "--workers", "1"], stderr=subprocess.DEVNULL)
    work = tmp_path / ".out.partial"
    limit = time.monotonic() + 120
    while not list(work.glob("*.current")) or not list(work.glob("shard-*.json")):
        assert run.poll() is None and time.monotonic() < limit
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "out").exists()
    ready = {path: path.stat().st_mtime_ns for path in work.glob("shard-*.json")}
    assert 1 <= len(ready) < 4
    made = []
    monkeypatch.setattr(
        "emo_jax.preparation.workers.make_shard", lambda plan, index, tick: made.append(index) or real(plan, index)
    )
    real = shards.make_shard
    prepare_videos([str(videos)], str(tmp_path / "out"), **OPTIONS)
    assert len(made) == 4 - len(ready)  # nothing done twice but the open shard
    same(whole, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_workers_go_with_their_parent(videos, tmp_path):
    command = [sys.executable, "-m", "emo_jax.cli", "prepare", "videos", "--input", str(videos), *COMMAND]
    run = subprocess.Popen([*command, "--output", str(tmp_path / "out"), "--workers", "2"], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 180
    while not list((tmp_path / ".out.partial").glob("*.current")):
        assert run.poll() is None and time.monotonic() < limit
        time.sleep(0.002)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.kill()
    run.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_a_kill_while_the_shards_are_put_together(videos, whole, tmp_path):
    plan = plan_of(videos, tmp_path / "out")
    assert plan.begin()
    for index in range(plan.shards):
        shards.make_shard(plan, index)

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.finish(plan, killed)
    assert not plan.target.exists()
    prepare_videos([str(videos)], str(plan.target), **OPTIONS)
    same(whole, plan.target)


def test_a_finished_run_is_not_done_again(videos, whole, monkeypatch):
    monkeypatch.setattr("emo_jax.preparation.workers.make_shards", lambda *_: pytest.fail("made again"))
    assert prepare_videos([str(videos)], str(whole), **OPTIONS)["records"] == 3


def test_other_options_are_another_run(videos, whole, tmp_path):
    with pytest.raises(ValueError, match="exists already, made with other options"):
        prepare_videos([str(videos)], str(whole), **OPTIONS | {"size": 96})
    plan_of(videos, tmp_path / "out").begin()
    with pytest.raises(ValueError, match="begun with other options"):
        prepare_videos([str(videos)], str(tmp_path / "out"), **OPTIONS | {"size": 96})


def test_no_record_at_all_is_one_line(tmp_path):
    (tmp_path / "a.mp4").write_text("nothing")
    with pytest.raises(ValueError, match="none of 1 videos gave a record: .*rejected.jsonl"):
        prepare_videos([str(tmp_path / "a.mp4")], str(tmp_path / "out"), **OPTIONS)
    assert "cannot be read" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_many_videos_share_shards(tmp_path):
    paths = tuple((tmp_path / f"{k:04d}", f"{k:04d}") for k in range(600))
    plan = shards.Plan(tmp_path, paths, Settings(), 256)
    parts = [plan.shard(index) for index in range(plan.shards)]
    assert plan.shards == 256 and sum(parts, ()) == paths and {len(part) for part in parts} == {2, 3}
    assert shards.Plan(tmp_path, paths, Settings(), 400).shards == 400


def test_the_most_shards_are_a_choice(videos, whole, tmp_path):
    prepare_videos([str(videos)], str(tmp_path / "out"), **OPTIONS | {"shards": 2})
    assert len(list((tmp_path / "out").glob("*array_record-*-of-00002"))) == 2
    sources = [records.open_records(folder, "train") for folder in (whole, tmp_path / "out")]
    ids = [[source[i]["id"] for i in range(len(source))] for source in sources]
    assert ids[0] == ids[1] and len(ids[0]) == 3
    with pytest.raises(ValueError, match="made with other options"):
        prepare_videos([str(videos)], str(tmp_path / "out"), **OPTIONS)


def test_unfinished_work_of_older_records_is_not_gone_on_with(videos, tmp_path, monkeypatch):
    plan = plan_of(videos, tmp_path / "out")
    assert plan.begin() and plan.begin()
    monkeypatch.setattr(records.EmoRecords, "VERSION", "0.0.1")
    with pytest.raises(ValueError, match="holds a run that was begun with other options"):
        plan.begin()


def test_an_error_ends_its_own_processes_alone(videos, tmp_path):
    """Beam's threads have a pool each: were all ended, the other's video would be taken for one that crashes."""
    plan = plan_of(videos, tmp_path / "out")
    text, video = 2, 3
    assert plan.begin() and plan.shard(text)[0][1] == "1b.txt"
    plan.data(text).mkdir()  # in the way of the finished shard
    with ThreadPoolExecutor(2) as threads:
        fails, works = (threads.submit(make_alone, plan, index, set()) for index in (text, video))
    assert isinstance(fails.exception(), OSError)
    assert works.exception() is None and json.loads(plan.summary(video).read_text())["videos"][0]["records"] == 1


class Fatal(str):
    """A video's name that takes down the process which writes its record, as a decoder with a bug would."""

    def encode(self, *_):
        os._exit(9)


def test_a_video_that_takes_its_process_down_is_rejected(videos, tmp_path):
    plan = plan_of(videos, tmp_path / "out")
    names = tuple((path, Fatal(name) if name == "1.mp4" else name) for path, name in plan.videos)
    plan = shards.Plan(plan.target, names, plan.settings, 256)
    assert plan.begin()
    make_shards(plan, 2, Progress(4, "videos", "video"))
    summaries = [json.loads(plan.summary(index).read_text()) for index in range(4)]
    outcomes = {video["source"]: video for summary in summaries for video in summary["videos"]}
    assert "took the process down" in outcomes["1.mp4"]["reason"]
    assert [outcomes[name]["records"] for name in ("0.mp4", "1.mp4", "2.mp4")] == [1, 0, 1]

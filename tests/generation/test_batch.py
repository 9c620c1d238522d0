"""Manifests, claims, and batches of videos."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.files import process_tag
from emo_jax.generation import batch, claims
from emo_jax.generation.claims import claim
from emo_jax.generation.manifest import read_manifest
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.audio import write_wav
from emo_jax.media.video import probe, read_video
from emo_jax.progress import Progress
from tests.generation.media import random_portrait, random_voice
from tests.runs import FLAGS, python_path


@pytest.fixture
def folder(tmp_path):
    """Two portraits, two recordings, and a manifest of five videos of which one fails."""
    for index in range(2):
        Image.fromarray(random_portrait(index)).save(tmp_path / f"p{index}.png")
        write_wav(tmp_path / f"v{index}.wav", random_voice(2500 + 640 * index, index))
    lines = ["portrait,audio,output,seed,face"]
    lines += [f'p{index % 2}.png,v{index // 2}.wav,,{index},"60,50,130,150"' for index in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, "none.png,v0.wav,bad.webm,,"]) + "\n")
    return tmp_path


def report(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def test_manifests_as_csv_and_json_lines(folder):
    items = read_manifest(folder / "pairs.csv")
    names = ["p0_v0.mp4", "p1_v0.mp4", "p0_v1.mp4", "p1_v1.mp4", "bad.webm"]
    assert [item.name for item in items] == names
    assert items[1].portrait == str(folder / "p1.png") and items[1].seed == 1 and items[1].face == "60,50,130,150"
    row = dict(portrait="/a/p.png", audio="v.wav", vocals="auto", soundtrack="s.wav", speed="c.csv")
    (folder / "a.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps(row | dict(vocals='x.wav', speed=0.5))}\n")
    first, second = read_manifest(folder / "a.jsonl")
    assert (first.name, second.name) == ("p_v.mp4", "p_v_1.mp4") and first.portrait == "/a/p.png"
    assert first.vocals == "auto" and second.vocals == str(folder / "x.wav") and second.speed == "0.5"
    assert first.speed == str(folder / "c.csv") and first.soundtrack == str(folder / "s.wav")


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.csv", "portrait,audio\n", "no videos"),
        ("a.csv", "portrait,audio,sede\na,b,1\n", "sede"),
        ("a.csv", "portrait,audio\na\n", "line 2 has no audio"),
        ("a.csv", "portrait,audio,output\na,b,../c.mp4\n", "output"),
        ("a.csv", "portrait,audio,output\na,b,c.mp4\na,b,c.mp4\n", "line 3 writes c.mp4 again"),
        ("a.csv", "portrait,audio,seed\na,b,x\n", "seed"),
        ("a.csv", "portrait,audio\na,b,c\n", "more than"),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "object"),
        ("a.txt", "", "rename"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=word):
        read_manifest(tmp_path / name)


def leave_claim(target, tag, age=0.0):
    """Leaves the claim of another process on a file."""
    folder = target.with_name(f".{target.name}.claim")
    folder.mkdir()
    (folder / "1").write_text(tag)
    os.utime(folder / "1", (time.time() - age,) * 2)
    return folder


def tag_of(process_id):
    return f"{process_tag().rpartition('-')[0]}-{process_id}"


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_claims_exclude_each_other_and_abandoned_ones_are_taken_over(tmp_path, gone):
    target = tmp_path / "a.mp4"
    with claim(target) as ours:
        with claim(target) as again:
            assert ours and not again
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    for tag, age, free in (
        (tag_of(gone), 0, True),
        (process_tag(), 0, True),  # of a container that was started again: the same host and number
        (tag_of(os.getppid()), 0, False),
        (f"other-host-{os.getpid()}", 0, False),
        (f"other-host-{os.getpid()}", claims.STALE + 1, True),
    ):
        left = leave_claim(target, tag, age)
        with claim(target) as ours:
            assert ours == free
        assert left.exists() != free
        shutil.rmtree(left, ignore_errors=True)
    target.write_text("done")
    for process, left in ((gone, False), (os.getppid(), True)):
        folder = leave_claim(target, tag_of(process))
        claims.remove_abandoned(tmp_path)
        assert folder.exists() == left
        shutil.rmtree(folder, ignore_errors=True)
    with claim(target) as ours:
        assert not ours
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("look", [1, 2])
def test_claim_is_taken_over_once_if_two_processes_find_it_abandoned(tmp_path, gone, monkeypatch, look):
    target, looks = tmp_path / "a.mp4", []
    leave_claim(target, tag_of(gone))
    abandoned, rival = claims._abandoned, contextlib.ExitStack()

    def late(path):  # the rival takes the claim over between this look and what follows it
        answer = abandoned(path)
        looks.append(path)
        if len(looks) == look:
            looks.append(rival.enter_context(claim(target)))
        return answer

    monkeypatch.setattr(claims, "_abandoned", late)
    with rival, claim(target) as ours:
        assert [ours, *(taken for taken in looks if isinstance(taken, bool))].count(True) <= 1
    monkeypatch.undo()
    with claim(target) as ours:
        assert ours
    assert not list(tmp_path.iterdir())


def test_abandoned_claims_are_taken_over_once_by_many_processes(tmp_path, gone):
    for index in range(150):
        leave_claim(tmp_path / f"{index}.mp4", tag_of(gone))
    program = f"""
import os, pathlib, time
from emo_jax.generation.claims import claim
folder = pathlib.Path({str(tmp_path)!r})
for index in range(150):
    with claim(folder / f"{{index}}.mp4") as ours:
        if ours:
            os.close(os.open(folder / f"{{index}}.work", os.O_CREAT | os.O_EXCL))  # fails if another one is at it
            time.sleep(0.001)
            os.unlink(folder / f"{{index}}.work")
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": python_path()})
        for _ in range(4)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * 4


def test_batch_waits_for_other_processes_and_takes_over_what_they_leave(pipeline, folder, monkeypatch, capsys):
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    monkeypatch.setattr(batch, "WAIT", 0.2)
    out = folder / "out"
    out.mkdir()
    others = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    left = [leave_claim(out / name, tag_of(other.pid)) for name, other in zip(("0.mp4", "1.mp4"), others, strict=True)]
    rows = [dict(portrait="p0.png", audio="v0.wav", output=f"{i}.mp4", face="60,50,130,150") for i in range(3)]
    (folder / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    say = Progress.say

    def finish(self, text):  # one of the others makes its video, and one ends without it
        say(self, text)
        if "waiting for 2" in text:
            (out / "0.mp4").write_text("made")
            shutil.rmtree(left[0])
            for other in others:
                other.communicate(b"\n")

    monkeypatch.setattr(Progress, "say", finish)
    command = ["generate", "--manifest", str(folder / "three.jsonl"), "-o", str(out), "--framing", "crop"]
    assert cli.main(command) == 0
    assert "2 made, 0 were there, 0 failed, 1 made by other processes" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["0.mp4", "1.mp4", "2.mp4", "report.jsonl"]


@pytest.mark.parametrize("size", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_batch_makes_what_is_missing_and_lists_failures(pipeline, folder, monkeypatch, capsys, size):
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    out = folder / "out"
    command = ["generate", "--manifest", str(folder / "pairs.csv"), "-o", str(out), "--framing", "crop"]
    command += [] if size is None else ["--batch", str(size)]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert "4 made, 0 were there, 1 failed" in captured.out and "bad.webm: " in captured.err
    assert "none.png does not exist" in captured.err.splitlines()[-1]
    names = {"p0_v0.mp4", "p1_v0.mp4", "p0_v1.mp4", "p1_v1.mp4", "report.jsonl"}
    assert {path.name for path in out.iterdir()} == names
    lines = report(out)
    assert sorted(line["output"] for line in lines if line["status"] == "done") == sorted(names - {"report.jsonl"})
    assert [line["output"] for line in lines if "none.png" in line.get("reason", "")] == ["bad.webm"]
    single = folder / "single.mp4"
    files = ["--portrait", str(folder / "p1.png"), "--audio", str(folder / "v1.wav"), "--face", "60,50,130,150"]
    assert cli.main(["generate", *files, "-o", str(single), "--seed", "3", "--framing", "crop"]) == 0
    if size is None:
        assert single.read_bytes() == (out / "p1_v1.mp4").read_bytes()
    else:  # equal up to rounding, which lossy video amplifies; test_many_at_once compares the frames themselves
        files = single, out / "p1_v1.mp4", out / "p0_v1.mp4"
        frames = [np.stack([frame for frame, _ in read_video(path)]).astype(int) for path in files]
        assert np.abs(frames[0] - frames[1]).mean() < 3 < 10 < np.abs(frames[0] - frames[2]).mean()
    (out / "p0_v0.mp4").unlink()
    before = (out / "p1_v1.mp4").stat().st_mtime_ns
    assert cli.main(command) == 1 and "1 made, 3 were there, 1 failed" in capsys.readouterr().out
    assert (out / "p1_v1.mp4").stat().st_mtime_ns == before and probe(out / "p0_v0.mp4")["frames"] == 4


def test_interrupted_batch_leaves_no_half_video_and_no_claim(pipeline, folder, monkeypatch, request):
    # A shell's background job ignores SIGINT, and so would this test.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    streams, calls = EmoPipeline.streams, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return streams(self, *arguments, **options)

    monkeypatch.setattr(EmoPipeline, "streams", interrupted)
    command = ["generate", "--manifest", str(folder / "pairs.csv"), "-o", str(folder / "out"), "--framing", "crop"]
    assert cli.main(command) == 130
    assert {path.name for path in (folder / "out").iterdir()} == {"p0_v0.mp4", "report.jsonl"}


def test_options_that_belong_into_the_manifest_are_refused(folder, capsys):
    command = ["generate", "--manifest", str(folder / "pairs.csv")]
    for more, word in (
        (["-o", "x", "--audio", "a.wav"], "--audio"),
        ([], "--output"),
        (["-o", str(folder / "x"), "--batch", "0"], "--batch"),
        (["-o", "x", "--face", "1"], "face"),
    ):
        assert cli.main([*command, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_killed_and_shared_batches_make_every_video_once(weights_dir, folder, size):
    """One process of two devices is killed in the middle, then two such processes finish together."""
    rows = [
        dict(portrait="p0.png", audio="v0.wav", output=f"{i:02}.mp4", seed=i, face="60,50,130,150") for i in range(40)
    ]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    program = "import sys; from emo_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "generate", "--manifest", str(folder / "many.jsonl"), "-o", str(out)]
    command += ["--checkpoint", str(weights_dir), "--framing", "crop", "--batch", str(size)]
    flags = f"{FLAGS} --xla_force_host_platform_device_count=2"
    environment = os.environ | dict(PYTHONPATH=python_path(), JAX_PLATFORMS="cpu", XLA_FLAGS=flags)

    def begin():
        return subprocess.Popen(command, env=environment)

    def made():
        return list(out.glob("[0-9]*.mp4"))

    def held():
        return [path for path in out.glob(".*.claim") if not (out / path.name[1:].removesuffix(".claim")).exists()]

    killed = begin()
    deadline = time.monotonic() + 900
    # It is stopped before it is looked at: at the end of a batch, fewer videos than a batch are held for a moment.
    while True:
        killed.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, killed.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if len(made()) >= 5 and len(held()) >= size:
            break
        killed.send_signal(signal.SIGCONT)
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    before = {path.name: path.stat().st_mtime_ns for path in made()}
    assert 5 <= len(before) < 40
    assert size <= len(held()) <= 2 * size  # it was in the middle of videos, which are taken over
    both = [begin(), begin()]
    assert [process.wait(timeout=1800) for process in both] == [0, 0]
    assert sorted(path.name for path in out.iterdir()) == [f"{i:02}.mp4" for i in range(40)] + ["report.jsonl"]
    assert all(probe(path)["frames"] == 4 for path in out.glob("[0-9]*.mp4"))
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
    done = [line["output"] for line in report(out) if line["status"] == "done"]
    assert len(done) == len(set(done)) and set(done) | set(before) == {f"{i:02}.mp4" for i in range(40)}
    assert len({line["process"] for line in report(out)}) == 3

"""`emo sweep`: every sweep's points fit its config; finished points are skipped, and a table is made of them."""

import concurrent.futures
import csv
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from emo_jax.configs import base
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.cli.arguments import sampling_fields
from emo_jax.config import parse_fields, set_fields
from emo_jax.evaluation import sweep as sweep_lib
from emo_jax.evaluation.evaluate import select_properties
from emo_jax.evaluation.sweep import FINISHED, _run, load_sweep, plan, resolve
from emo_jax.models.emo import build
from emo_jax.weights.runs import save_weights_as_run
from tests.small import small_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections

ROOT = pathlib.Path(base.__file__).parents[1]
FILES = sorted((ROOT / "configs/sweeps").glob("[a-z]*.py"))


QUICK = ("guidance", "prediction", "sampling_steps")  # their points share networks


@pytest.mark.parametrize("file", [
    pytest.param(path, marks=[] if path.stem in QUICK else [pytest.mark.slow]) for path in FILES
], ids=lambda path: path.stem)  # fmt: skip
def test_every_point_is_a_config_that_builds(file, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    found, configs = load_sweep(file), []
    monkeypatch.setattr(sweep_lib, "resolve", lambda *a, resolve=resolve: configs.append(resolve(*a)) or configs[-1])
    assert len(found.points) >= 2
    for name in found.points:
        commands = plan(found, name, tmp_path / name, "runs/vae", "small")
        assert [command[0] for command, _ in commands] == ["train"] * len(found.stages) + ["evaluate"]
        args, rest = cli.make_parser("evaluate").parse_known_args(commands[-1][0])
        select_properties(args.only)
        sampling_fields(rest)
    texts = [config.to_json_best_effort() for config in configs]
    assert len(set(texts)) == len(texts) == len(found.points) * max(1, len(found.stages))  # no two points are the same
    for config in configs:
        config.model.unet.layers = config.model.vae.layers = 1  # the depth does not matter here and takes long to trace
        build(config).abstract_params()


TINY = """
CONFIG = "{root}/configs/tiny.py"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips")


def get_sweep():
    yield "one", {{"clip.motion_frames": 1}}
    yield "two", {{"clip.motion_frames": 2}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(TINY.format(root=ROOT))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    save_weights_as_run(folder, small_config(), {"vae/a": np.ones(3, np.float32)})
    return folder / "checkpoints" / "0"


@pytest.fixture
def ran(monkeypatch, checkpoint):
    """Records commands and writes the files that they would write; `fails(command)` is their exit status."""
    commands = types.SimpleNamespace(done=[], fails=lambda command: 0)

    def run(command):
        assert command[:3] == [sys.executable, "-m", "emo_jax.cli"]
        verb, options = command[3], dict(a.split("=", 1) for a in command if a.startswith("--") and "=" in a)
        status = commands.fails(command)
        if isinstance(status, BaseException):
            raise status
        commands.done.append((verb, options.get("--config", "").rpartition(":")[2]))
        if status:
            return status
        if verb == "train":
            steps = options["--config.train.steps"]
            shutil.copytree(checkpoint, pathlib.Path(options["--workdir"]) / "checkpoints" / steps)
        else:
            folder = pathlib.Path(command[command.index("--output") + 1])
            folder.mkdir()
            rows = [{"property": "lips", "value": len(str(folder)) / 100}, {"property": "seams", "value": 1.5}]
            (folder / "report.json").write_text(json.dumps({"rows": rows}))
        return 0

    monkeypatch.setattr(sweep_lib, "_run", run)
    return commands


def emo(file, output, *more, start=("--init-from", "runs/vae")):
    return cli.main(["sweep", str(file), "--output", str(output), "--config.train.steps=7", *start, *more])


POINT = [("train", "image"), ("train", "video"), ("evaluate", "")]


def test_interrupted_sweep_resumes_and_skips_finished_commands(file, ran, tmp_path, capsys):
    ran.fails = lambda command: KeyboardInterrupt() if len(ran.done) == 4 else 0
    assert emo(file, tmp_path / "out") == 130  # in the second point's second stage
    assert ran.done == POINT + POINT[:1]
    ran.fails = lambda command: 0
    assert emo(file, tmp_path / "out") == 0
    assert ran.done == POINT + POINT
    output = capsys.readouterr().out
    assert "point 1/2 one: finished" in output and "sweep.csv" in output
    table = list(csv.reader((tmp_path / "out/sweep.csv").read_text().splitlines()))
    assert table[0] == ["point", "clip.motion_frames", "lips", "seams"]
    assert [row[:2] + row[3:] for row in table[1:]] == [["one", "1", "1.5000"], ["two", "2", "1.5000"]]
    assert all("".join(row) in output.replace(" ", "") for row in table)
    with Image.open(tmp_path / "out/sweep.png") as picture:
        assert picture.convert("L").getextrema()[0] < 100
    assert emo(file, tmp_path / "out") == 0 and len(ran.done) == 6  # nothing is left to do


@pytest.mark.parametrize("name, content, field", [
    (FINISHED, "{", "report.json is not a JSON file"),
    (FINISHED, '{"rows": [{"property": "lips", "value": []}]}', r"report.json: rows\[0\].value"),
    (FINISHED, "[]", "report.json: the content"),
    ("point.json", "[", "point.json is not a JSON file"),
])  # fmt: skip
def test_damaged_results_of_a_sweep_are_named(file, ran, tmp_path, capsys, name, content, field):
    assert emo(file, tmp_path / "out") == 0
    (tmp_path / "out/one" / name).write_text(content)
    capsys.readouterr()
    assert emo(file, tmp_path / "out") == 2
    errors = capsys.readouterr().err.splitlines()
    assert re.search(field, errors[-1]), errors


def test_table_option_runs_no_commands(file, ran, tmp_path, capsys):
    assert emo(file, tmp_path / "out", "--table") == 2
    assert f"{tmp_path}/out" in capsys.readouterr().err
    assert emo(file, tmp_path / "out", "--points", "one") == 0
    assert emo(file, tmp_path / "out", "--table") == 0 and ran.done == POINT
    assert "\none " in capsys.readouterr().out and not (tmp_path / "out/two").exists()


def test_a_stage_whose_checkpoint_is_damaged_is_trained_again(file, ran, tmp_path, capsys):
    ran.fails = lambda command: KeyboardInterrupt() if len(ran.done) == 2 else 0
    assert emo(file, tmp_path / "out", "--points", "one") == 130 and ran.done == POINT[:2]  # both stages are trained
    video = tmp_path / "out/one/video"
    (video / "checkpoints/7/state/_METADATA").write_text("{")
    ran.fails = lambda command: 0
    assert emo(file, tmp_path / "out", "--points", "one") == 0 and ran.done == POINT[:2] + POINT[1:]
    lines = capsys.readouterr().err.splitlines()
    assert any("video/checkpoints/7" in line and "_METADATA" in line for line in lines), lines
    assert (video / "damaged-7").is_dir() and (video / "checkpoints/7").is_dir()


def test_a_point_that_fails_does_not_stop_the_others(file, ran, tmp_path, capsys):
    ran.fails = lambda command: int("one/video" in " ".join(command) and command[3] == "train")
    assert emo(file, tmp_path / "out") == 1
    assert ran.done == POINT[:2] + POINT
    captured = capsys.readouterr()
    assert "failed: one" in captured.err and "\ntwo " in captured.out and "\none " not in captured.out
    ran.fails = lambda command: 2 + ("/one/" in " ".join(command))
    assert emo(file, tmp_path / "out") == 3 and len(ran.done) == 6  # schedulers decide by it whether to retry
    assert emo(file, tmp_path / "other") == 1  # one failed with 3, one with 2
    ran.fails = lambda command: 143  # ended by SIGTERM: the sweep ends at once too
    assert emo(file, tmp_path / "out") == 143
    assert len(ran.done) == 9


def test_killed_command_has_exit_status_128_plus_the_signal():
    assert _run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_a_dry_run_prints_the_commands(file, ran, tmp_path, capsys):
    assert emo(file, tmp_path / "out", "--dry-run", "--points", "two") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["#", "two"]] + [["emo", verb] for verb, _ in POINT]
    assert lines[1].endswith("--config.train.init_from=runs/vae") and "--config.clip.motion_frames=2" in lines[1]
    assert lines[2].endswith(f"--config.train.init_from={tmp_path}/out/two/image")
    assert f"--checkpoint {tmp_path}/out/two/video" in lines[3] and lines[3].endswith("--only lips")
    assert emo(file, tmp_path / "out", "--list") == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert not ran.done and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, pattern", [
    (["--config.train.stepz=3"], "point one: .*stepz"),
    (["--config.clip.frames=1"], "point one: clip.motion_frames|point two: clip.motion_frames"),
    (["--config.diffusion.prediction=eps"], "point one: diffusion.prediction"),
    (["--config.sampling.solver=euler"], "point one: .*'euler'"),
    (["--config.sampling.steps=0"], "point one: steps is 0"),
    (["--config.clip.motion_frames=1"], "point one .*clip.motion_frames"),
    (["--points", "three"], "--points .*'three'"),
    (["extra"], "'extra'"),
])  # fmt: skip
def test_bad_values_are_reported_before_any_point_runs(file, ran, tmp_path, capsys, more, pattern):
    assert emo(file, tmp_path / "out", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(pattern, line), line
    assert not ran.done and not (tmp_path / "out").exists()


def test_a_first_stage_needs_the_run_of_the_stage_before(file, ran, tmp_path, capsys):
    assert emo(file, tmp_path / "out", start=()) == 2
    assert "--init-from" in capsys.readouterr().err
    assert not ran.done and not (tmp_path / "out").exists()
    assert emo(file, tmp_path / "out", "--dry-run", "--config.train.init_from=runs/vae", start=()) == 0
    file.write_text(file.read_text().replace('"image", "video"', '"vae", "image"'))
    assert emo(file, tmp_path / "out", "--dry-run", start=()) == 0


def test_checks_do_not_initialise_the_accelerator(file, checkpoint):
    """A TPU belongs to one process, and training runs in another one."""
    code = f"""
import pathlib
from jax._src import xla_bridge
from emo_jax.evaluation.sweep import _is_done, load_sweep, plan
found = load_sweep({str(file)!r})
plan(found, "one", pathlib.Path("out"), "runs/vae")
assert _is_done(pathlib.Path({str(checkpoint)!r})) and not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_other_settings_in_the_same_folder_are_rejected(file, ran, tmp_path, capsys):
    assert emo(file, tmp_path / "out") == 0
    assert emo(file, tmp_path / "out", "--config.train.seed=1") == 2
    assert "out/one" in capsys.readouterr().err


@pytest.mark.parametrize("text, field", [
    (None, "bad.py"),
    ("CONFIG = STAGES = ''", "get_sweep"),
    (TINY.replace('"two"', '"one"'), "'one'"),
    (TINY.replace('"two"', '"../two"'), "'../two'"),
    (TINY.replace('"image", "video"', ""), "clip.motion_frames"),
])  # fmt: skip
def test_bad_sweep_file_is_reported_on_one_line(ran, tmp_path, capsys, text, field):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text.format(root=ROOT) if "{root}" in text else text)
    assert emo(path, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert field in line


def test_sampling_is_set_by_name():
    sampling = base.get_config().sampling
    texts = ["--sampling.solver=dpm++2m", "--sampling.steps=8", "--sampling.audio_scale=2"]
    set_fields(sampling, parse_fields(texts, "sampling"), "sampling")
    assert (sampling.solver, sampling.steps, sampling.audio_scale) == ("dpm++2m", 8, 2.0)
    for change in ("stepz=8", "steps", "steps=many", "steps=1.5", "steps="):
        with pytest.raises(ValueError, match="sampling.*step"):
            set_fields(sampling, parse_fields([f"--sampling.{change}"], "sampling"), "sampling")


def test_interrupted_sweep_terminates_its_command_and_waits(tmp_path, monkeypatch):
    """It gets SIGTERM and time to save a checkpoint."""
    code = f"import signal, sys, time, pathlib as p; f = p.Path({str(tmp_path)!r})\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), (f / 'saved').touch(), sys.exit(143)))\n"
    code += "(f / 'up').touch(); time.sleep(60)"
    wait = subprocess.Popen.wait

    def interrupted(process, *args):
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run([sys.executable, "-c", code])
    assert (tmp_path / "saved").exists()


def test_signal_while_a_command_starts(monkeypatch):
    """The command is ended, although the signal comes before its process is known."""
    popen, started = subprocess.Popen, []

    def interrupted(command):
        started.append(popen(command))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored where tests run in the background.
    try:
        with pytest.raises(KeyboardInterrupt):
            _run([sys.executable, "-c", "import time; time.sleep(60)"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].poll() == -signal.SIGTERM


def test_ignored_signals_stay_ignored_in_commands():
    code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) != signal.SIG_IGN)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert _run([sys.executable, "-c", code]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_commands_run_outside_the_main_thread():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(_run, [sys.executable, "-c", "raise SystemExit(3)"]).result() == 3


SAMPLED = """
CONFIG = "{root}/configs/tiny.py"
STAGES = ()
EVALUATE = ("--only", "silence", "--identities", "2", "--seconds", "0.8")


def get_sweep():
    yield "one", {{"sampling.steps": 1}}
    yield "two", {{"sampling.solver": "ddim", "sampling.steps": 2}}
"""


@pytest.mark.slow
def test_terminated_sweep_of_real_commands_resumes(weights_dir, tmp_path):
    file, output = tmp_path / "sweep.py", tmp_path / "out"
    file.write_text(SAMPLED.format(root=ROOT))
    command = [sys.executable, "-m", "emo_jax.cli", "sweep", str(file)]
    command += ["--output", str(output), "--checkpoint", str(weights_dir)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (output / "two/point.json").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.terminate()
    printed, errors = first.communicate()
    assert first.returncode == 143 and "terminated" in errors, (printed, errors)
    assert (output / "one" / FINISHED).exists() and not (output / "two" / FINISHED).exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "point 1/2 one: finished" in again.stdout, again
    table = list(csv.reader((output / "sweep.csv").read_text().splitlines()))
    assert [row[:3] for row in table] == [
        ["point", "sampling.steps", "sampling.solver"], ["one", "1", ""], ["two", "2", "ddim"]
    ]  # fmt: skip
    report = json.loads((output / "two" / FINISHED).read_text())
    assert report["settings"]["sampling"]["solver"] == "ddim" and report["settings"]["sampling"]["steps"] == 2

"""`train` on a few records: interrupted and resumed, it ends bit for bit where it ends uninterrupted."""

import functools
import itertools
import os
import re
import shutil
import signal
import time

import jax
import numpy as np
import psutil
import pytest

from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.data.pipeline import make_iterator
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import make_mesh, place_batch
from emo_jax.models.emo import build
from emo_jax.models.placement import state_sharding
from emo_jax.training import loop
from emo_jax.training.initial_weights import initial_params
from emo_jax.training.loop import train
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import new_state
from emo_jax.weights.checkpoint import Checkpoints
from tests.steps import step_of, training_config
from tests.training.test_metrics_writer import events


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """The step of the VAE's stage is compiled once, for the other tests too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", lambda *args: step_of("vae")[2])
        yield


@pytest.fixture
def config(talking_records):
    """The VAE's stage on drawn people."""
    config = training_config("vae")
    config.data.directory = str(talking_records)
    return config


@pytest.fixture(scope="module")
def whole(talking_records, tmp_path_factory):
    """(folder, final state) of a run that nothing interrupts."""
    config = training_config("vae")
    config.data.directory = str(talking_records)
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return directory, jax.device_get(train(config, directory))


def saved(config, workdir, step):
    """The state and the next batch that a run's checkpoint leads to."""
    shapes = jax.eval_shape(functools.partial(new_state, config), build(config).abstract_params())
    placed = state_sharding(make_mesh(devices=jax.devices()[:1]), shapes)
    shapes = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    iterator = make_iterator(config.data, clip_of(config, get_stage("vae")), batch_size=2, seed=config.train.seed)
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(step, shapes, iterator)
    checkpoints.close()
    return jax.device_get(state), next(iterator)


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def test_interrupted_and_resumed_equals_uninterrupted(config, whole, tmp_path, monkeypatch, capsys):
    place, calls = place_batch, []

    def place_until_interrupted(mesh, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return place(mesh, batch)

    monkeypatch.setattr(loop, "place_batch", place_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2"}  # the third step will be done again
    parts = jax.device_get(train(config, tmp_path))
    assert len(calls) == 4 + 2

    directory, end = whole
    assert int(end.step) == int(parts.step) == 4
    assert same(end, parts)
    (state, batch), (state_parts, batch_parts) = (saved(config, run, 4) for run in (directory, tmp_path))
    assert same(state, state_parts) and same(state, end)
    assert same(batch, batch_parts)

    early, early_batch = saved(config, directory, 2)  # what is compared does change
    assert not same(early.trained, end.trained) and not same(early.ema, end.ema)
    assert not same(early_batch, batch) and same(early_batch, calls[2])
    assert "step 4/4" in capsys.readouterr().out


def test_a_sigterm_saves_and_the_rest_equals_uninterrupted(config, whole, tmp_path, monkeypatch, capsys):
    place, calls = place_batch, []

    def place_and_terminate(mesh, batch):
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(mesh, batch)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "place_batch", place_and_terminate)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 143
    assert capsys.readouterr().err == "emo train: terminated; step 3 is saved\n"
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(calls) == 3 and (tmp_path / "checkpoints" / "3").is_dir()
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 0
    assert len(calls) == 4  # no step was done again
    (state, batch), (state_parts, batch_parts) = (saved(config, run, 4) for run in (whole[0], tmp_path))
    # The scale of the latents, which no loss sees, is taken anew at every checkpoint.
    assert same(state, state_parts) and same(batch, batch_parts)


@pytest.mark.parametrize("batch, told, saved", [
    (1, "before the first step", None), (3, "step 2 is saved", 2), (4, "step 3 is saved", 3),
])  # fmt: skip
def test_a_sigterm_ends_a_run_that_waits_for_its_data(config, tmp_path, monkeypatch, capsys, batch, told, saved):
    def stalls(iterator, step, seconds):
        if step == batch:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return next(iterator)

    monkeypatch.setattr(loop, "next_batch", stalls)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 143
    assert capsys.readouterr().err == f"emo train: terminated; {told}\n"
    assert max((int(path.name) for path in (tmp_path / "checkpoints").iterdir()), default=None) == saved


def test_a_sigterm_while_a_sample_video_is_made_does_not_wait_for_data():
    ending = processes.Ending()
    ending.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(processes.Told), ending.waiting():
            pytest.fail("the batch is waited for")
    finally:
        ending.close()


def test_a_truncated_newest_checkpoint_costs_the_steps_behind_the_one_before(config, whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    (values, *_) = sorted((tmp_path / "run/checkpoints/4/state").rglob("d/*"), key=lambda p: -p.stat().st_size)
    values.write_bytes(values.read_bytes()[:1000])
    end = jax.device_get(train(config, tmp_path / "run"))
    assert same(end, whole[1])
    told = capsys.readouterr()
    assert "warning: " in told.err and "checkpoints/4 is damaged" in told.err and "step 4/4" in told.out


def test_steps_that_are_never_finite_end_the_run_in_one_line(config, tmp_path, monkeypatch, capsys):
    def poisoned(*args):
        step = step_of("vae")[2]

        def go(state, batch):
            state, metrics = step(state, batch)
            return state, metrics | ({"skipped": 1.0, "loss": np.nan} if state.step > 2 else {})

        return go

    left = []
    monkeypatch.setattr(loop, "make_step", poisoned)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    monkeypatch.setattr(processes, "leave", left.append)
    config.train.max_skipped = 2
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == cli.DIVERGED == 3
    assert left == [3]  # of several processes, too
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("emo train: step 4: loss or gradients were not finite 2 times in a row (loss nan")
    assert "2" in {path.name for path in (tmp_path / "checkpoints").iterdir()}


def test_a_profile_is_written(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    config.train.update(save_every=4, stall_seconds=1e3)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any", "--profile=2"]) == 0
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000 and b"train" in trace.read_bytes()
    assert capsys.readouterr().err == f"2 steps traced: xprof --logdir {tmp_path}/profile\n"
    scalars, _ = events(tmp_path)
    tags = {tag for tag, _ in scalars}
    assert {"grad_norm/vae", "speed/tflops"} <= tags and "speed/mfu" not in tags
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any", "--profile=-1"]) == 2


def test_a_data_worker_that_is_killed_ends_the_run_in_one_line(config, tmp_path, monkeypatch, capsys):
    place, since = place_batch, []

    def workers():
        return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in str(child.cmdline())]

    def place_and_kill(mesh, batch):
        if not since:
            workers()[0].kill()
            since.append(time.monotonic())
        return place(mesh, batch)

    monkeypatch.setattr(loop, "place_batch", place_and_kill)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    config.data.num_workers = 2
    config.train.update(steps=100, save_every=3)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 1
    assert since and time.monotonic() - since[0] < 60
    (line,) = capsys.readouterr().err.splitlines()
    found = re.match(r"emo train: a data worker of process 0 of 1 on .* ended before step (\d+) \(exit code -9", line)
    saved = max((int(path.name) for path in (tmp_path / "checkpoints").iterdir()), default=0)
    assert saved == (int(found[1]) - 1) // 3 * 3  # nothing lost but the steps since
    assert not workers()


def test_a_finished_run_is_left_as_it_is(config, whole, monkeypatch):
    monkeypatch.delattr(loop, "place_batch")  # nothing is left to do
    directory, end = whole
    assert same(jax.device_get(train(config, directory)), end)


def test_every_checkpoint_of_the_vae_has_the_scale_of_its_latents(config, whole):
    """Unit variance over the last batch, by the averaged weights."""
    directory, end = whole
    *_, last = itertools.islice(make_iterator(config.data, clip_of(config, get_stage("vae")), batch_size=2, seed=0), 4)
    latents = jax.jit(build(config).encode)(end.params(ema=True), last["frames"])
    np.testing.assert_allclose(np.std(latents), 1.0, rtol=1e-3)
    early = saved(config, directory, 2)[0].frozen["vae/scaling_factor"]
    assert early not in (np.float32(0.18215), end.frozen["vae/scaling_factor"])


def test_a_run_of_another_config_is_one_line(config, whole):
    config.model.vae.update(channels=(8, 16, 16))
    with pytest.raises(ValueError, match="does not fit this config") as caught:
        train(config, whole[0])
    assert "\n" not in str(caught.value)


def test_a_stage_starts_from_the_weights_of_the_one_before(whole, capsys):
    directory, end = whole
    config = training_config("image")
    config.train.init_from = str(directory)
    emo = build(config)
    params = initial_params(config, emo)
    np.testing.assert_array_equal(params["vae"]["encoder"]["conv_in"]["kernel"], end.ema["vae/encoder/conv_in/kernel"])
    np.testing.assert_array_equal(params["vae"]["scaling_factor"], end.frozen["vae/scaling_factor"])
    assert "warning" not in capsys.readouterr().err
    config.train.init_from = ""
    initial_params(config, emo)
    assert capsys.readouterr().err.count("starts from nothing") == 1
    config.train.init_from = str(directory)
    config.model.vae.channels = (8, 16, 16)
    with pytest.raises(ValueError, match="weights are of another config: vae/.*has shape .* expected"):
        initial_params(config, build(config))


@pytest.mark.parametrize("field, value", [
    ("model.reference_attention", "concat"), ("model.reference_attention", "off"), ("model.audio_attention", False),
    ("model.face_locator", False), ("model.speed_layers", False), ("clip.audio_window", 1), ("clip.frames", 6),
    ("clip.motion_frames", 1), ("model.locator_channels", (4, 4, 8, 16)),
])  # fmt: skip
def test_an_ablation_starts_from_the_same_vae(whole, capsys, field, value):
    config = training_config("image")
    config.train.init_from = str(whole[0])
    branch, name = field.split(".")
    config[branch][name] = value
    params = initial_params(config, build(config))
    kernel = whole[1].ema["vae/encoder/conv_in/kernel"]
    np.testing.assert_array_equal(params["vae"]["encoder"]["conv_in"]["kernel"], kernel)
    told = capsys.readouterr().err
    assert ("start fresh" in told) == (name in ("audio_window", "locator_channels")), told


def test_a_stage_that_skips_one_is_told(whole, capsys):
    config = training_config("speed")
    config.train.init_from = str(whole[0])
    initial_params(config, build(config))
    assert "meant to start from stage video" in capsys.readouterr().err

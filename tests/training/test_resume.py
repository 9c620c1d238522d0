"""`train` on a few records: interrupted and resumed, it ends bit for bit as without the interruption."""

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
from emo_jax.training.termination import Terminated, Termination
from emo_jax.weights.checkpoint import Checkpoints
from tests.steps import step_of, training_config
from tests.training.test_metrics_writer import events

pytestmark = pytest.mark.usefixtures("cheap_vae_start")


@pytest.fixture
def config(talking_records):
    """The VAE's stage on rendered people."""
    config = training_config("vae")
    config.data.directory = str(talking_records)
    return config


@pytest.fixture(scope="module")
def uninterrupted(talking_records, tmp_path_factory):
    """(folder, final state) of a run without interruption."""
    config = training_config("vae")
    config.data.directory = str(talking_records)
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return directory, jax.device_get(train(config, directory))


def restore(config, workdir, step):
    """Returns the state and the next batch after a checkpoint of a run."""
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


@pytest.mark.slow
def test_resumed_after_an_error_equals_uninterrupted(config, uninterrupted, tmp_path, monkeypatch, capsys):
    place, calls = place_batch, []

    def place_until_interrupted(mesh, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return place(mesh, batch)

    monkeypatch.setattr(loop, "place_batch", place_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2"}  # the third step is repeated
    parts = jax.device_get(train(config, tmp_path))
    assert len(calls) == 4 + 2

    directory, end = uninterrupted
    assert int(end.step) == int(parts.step) == 4
    assert same(end, parts)
    (state, batch), (state_parts, batch_parts) = (restore(config, run, 4) for run in (directory, tmp_path))
    assert same(state, state_parts) and same(state, end)
    assert same(batch, batch_parts)

    early, early_batch = restore(config, directory, 2)  # the comparison can fail
    assert not same(early.trained, end.trained) and not same(early.ema, end.ema)
    assert not same(early_batch, batch) and same(early_batch, calls[2])
    printed = capsys.readouterr().out
    assert "records: 5 of 5 in" in printed and "trained (vae)" in printed and "devices: 1 x cpu" in printed
    assert "random weights" in printed and "from step 2" in printed and "step 4/4" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, word",
    [(signal.SIGTERM, "terminated"), pytest.param(signal.SIGINT, "interrupted", marks=pytest.mark.slow)],
)
def test_signal_saves_and_the_resumed_run_equals_uninterrupted(
    config, uninterrupted, tmp_path, monkeypatch, capsys, number, word
):
    place, calls = place_batch, []

    def place_and_terminate(mesh, batch):
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return place(mesh, batch)

    handler = signal.getsignal(number)
    monkeypatch.setattr(loop, "place_batch", place_and_terminate)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 128 + number
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"emo train: {word}") and "step 3" in line
    assert signal.getsignal(number) is handler
    assert len(calls) == 3 and (tmp_path / "checkpoints" / "3").is_dir()
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 0
    assert len(calls) == 4  # no step was repeated
    (state, batch), (state_parts, batch_parts) = (restore(config, run, 4) for run in (uninterrupted[0], tmp_path))
    # Only the scale of the latents, which no loss uses, is measured again at every checkpoint.
    assert same(state, state_parts) and same(batch, batch_parts)


@pytest.mark.slow
@pytest.mark.parametrize("batch, saved", [(1, None), (3, 2), (4, 3)])
def test_sigterm_while_waiting_for_data(config, tmp_path, monkeypatch, capsys, batch, saved):
    def stall(iterator, step, seconds):
        if step == batch:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return next(iterator)

    monkeypatch.setattr(loop, "next_batch", stall)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 143
    [line] = capsys.readouterr().err.splitlines()
    assert (f"step {saved}" if saved else "first step") in line
    assert max((int(path.name) for path in (tmp_path / "checkpoints").iterdir()), default=None) == saved


def test_sigterm_before_waiting_for_data_does_not_wait():
    termination = Termination()
    termination.nothing_to_save = False
    with termination.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Terminated), termination.interrupting():
            pytest.fail("waits for the batch")


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(config, uninterrupted, tmp_path, capsys):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    (values, *_) = sorted((tmp_path / "run/checkpoints/4/state").rglob("d/*"), key=lambda p: -p.stat().st_size)
    values.write_bytes(values.read_bytes()[:1000])
    end = jax.device_get(train(config, tmp_path / "run"))
    assert same(end, uninterrupted[1])
    printed = capsys.readouterr()
    assert "warning: " in printed.err and "checkpoints/4" in printed.err and "step 4/4" in printed.out


@pytest.mark.slow
def test_consecutive_non_finite_steps_end_the_run(config, tmp_path, monkeypatch, capsys):
    def make_poisoned_step(*args):
        step = step_of("vae")[2]

        def poisoned_step(state, batch):
            state, metrics = step(state, batch)
            return state, metrics | ({"skipped": 1.0, "loss": np.nan} if state.step > 2 else {})

        return poisoned_step

    statuses = []
    monkeypatch.setattr(loop, "make_step", make_poisoned_step)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    monkeypatch.setattr(processes, "exit_at_end", statuses.append)
    config.train.max_skipped = 2
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == cli.DIVERGED == 3
    assert statuses == [3]  # with several processes, too
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("emo train: step 4: ") and "nan" in line
    assert "2" in {path.name for path in (tmp_path / "checkpoints").iterdir()}


@pytest.mark.slow
def test_profile(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    config.train.update(save_every=4, stall_seconds=1e3)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any", "--profile=2"]) == 0
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000 and b"train" in trace.read_bytes()
    assert capsys.readouterr().err.endswith(f"{tmp_path}/profile\n")
    scalars, _ = events(tmp_path)
    tags = {tag for tag, _ in scalars}
    assert {"grad_norm/vae", "speed/tflops"} <= tags and "speed/mfu" not in tags
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any", "--profile=-1"]) == 2


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_run(config, tmp_path, monkeypatch, capsys):
    place, killed_at = place_batch, []

    def workers():
        return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in str(child.cmdline())]

    def place_and_kill(mesh, batch):
        if not killed_at:
            workers()[0].kill()
            killed_at.append(time.monotonic())
        return place(mesh, batch)

    monkeypatch.setattr(loop, "place_batch", place_and_kill)
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    config.data.num_workers = 2
    config.train.update(steps=100, save_every=3)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any"]) == 1
    assert killed_at and time.monotonic() - killed_at[0] < 60
    (line,) = capsys.readouterr().err.splitlines()
    match = re.match(r"emo train: .*process 0 of 1 on .* step (\d+) \(exit code -9", line)
    saved = max((int(path.name) for path in (tmp_path / "checkpoints").iterdir()), default=0)
    assert saved == (int(match[1]) - 1) // 3 * 3  # only the steps since the last checkpoint are lost
    assert not workers()


@pytest.mark.slow
def test_a_finished_run_does_nothing(config, uninterrupted, monkeypatch):
    monkeypatch.delattr(loop, "place_batch")  # which every step calls
    directory, end = uninterrupted
    assert same(jax.device_get(train(config, directory)), end)


@pytest.mark.slow
def test_checkpoints_of_the_vae_have_the_scale_of_its_latents(config, uninterrupted):
    """The averaged weights give the last batch's latents unit variance."""
    directory, end = uninterrupted
    *_, last = itertools.islice(make_iterator(config.data, clip_of(config, get_stage("vae")), batch_size=2, seed=0), 4)
    latents = jax.jit(build(config).encode)(end.params(ema=True), last["frames"])
    np.testing.assert_allclose(np.std(latents), 1.0, rtol=1e-3)
    early = restore(config, directory, 2)[0].frozen["vae/scaling_factor"]
    assert early not in (np.float32(0.18215), end.frozen["vae/scaling_factor"])


def test_resuming_with_another_config_raises(config, uninterrupted):
    config.model.vae.update(channels=(8, 16, 16))
    with pytest.raises(ValueError, match="vae/") as caught:
        train(config, uninterrupted[0])
    assert "\n" not in str(caught.value)


def test_init_from_loads_the_previous_stage(uninterrupted, capsys):
    directory, end = uninterrupted
    config = training_config("image")
    config.train.init_from = str(directory)
    emo = build(config)
    params = initial_params(config, emo)
    np.testing.assert_array_equal(params["vae"]["encoder"]["conv_in"]["kernel"], end.ema["vae/encoder/conv_in/kernel"])
    np.testing.assert_array_equal(params["vae"]["scaling_factor"], end.frozen["vae/scaling_factor"])
    assert "warning" not in capsys.readouterr().err
    config.train.init_from = ""
    initial_params(config, emo)
    assert capsys.readouterr().err.count("warning: stage image") == 1
    config.train.init_from = str(directory)
    config.model.vae.channels = (8, 16, 16)
    with pytest.raises(ValueError, match="vae/.* shape"):
        initial_params(config, build(config))


@pytest.mark.slow
@pytest.mark.parametrize("field, value", [
    ("model.reference_attention", "concat"), ("model.reference_attention", "off"), ("model.audio_attention", False),
    ("model.face_locator", False), ("model.speed_layers", False), ("clip.audio_window", 1), ("clip.frames", 6),
    ("clip.motion_frames", 1), ("model.locator_channels", (4, 4, 8, 16)),
])  # fmt: skip
def test_ablations_start_from_the_same_vae(uninterrupted, capsys, field, value):
    config = training_config("image")
    config.train.init_from = str(uninterrupted[0])
    branch, name = field.split(".")
    config[branch][name] = value
    params = initial_params(config, build(config))
    kernel = uninterrupted[1].ema["vae/encoder/conv_in/kernel"]
    np.testing.assert_array_equal(params["vae"]["encoder"]["conv_in"]["kernel"], kernel)
    warned = "initialised" in capsys.readouterr().err
    assert warned == (name in ("audio_window", "locator_channels"))


def test_skipping_a_stage_warns(uninterrupted, capsys):
    config = training_config("speed")
    config.train.init_from = str(uninterrupted[0])
    initial_params(config, build(config))
    assert "stage video" in capsys.readouterr().err

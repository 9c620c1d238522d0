"""The validation loss: fixed clips, timesteps and noise; the best checkpoint; what a run's log and folder say."""

import csv
import json

import jax
import numpy as np
import pytest

from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.data.sources import open_held_out
from emo_jax.distributed.mesh import make_mesh
from emo_jax.models.emo import build
from emo_jax.training import loop
from emo_jax.training.loop import train
from emo_jax.training.validation import Validation, spread_timesteps
from emo_jax.weights.runs import best_step
from tests.small import draw_people
from tests.steps import training_config

pytestmark = pytest.mark.usefixtures("cheap_vae_start")


@pytest.fixture
def config(talking_records):
    """The VAE's stage, which trains on three people and is validated on two others after each step."""
    config = training_config("vae")
    config.data.update(directory=str(talking_records), split="train[:3]")
    config.train.log = ("csv",)
    config.train.validation.update(every=1, split="train[3:]", clips=4)
    return config


def curve(folder):
    """Returns the rows of the validation in metrics.csv."""
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.reader(file) if row[1].startswith("validation/")]


@pytest.mark.parametrize("start", [0, 5, 17])
def test_any_consecutive_timesteps_cover_the_schedule(start):
    steps = spread_timesteps(64, 1000)
    assert steps.min() >= 0 and steps.max() < 1000 and len(set(steps)) == 64
    assert np.diff(np.sort([-1, *steps[start : start + 16], 1000])).max() < 160


@pytest.mark.slow
def test_a_resumed_run_has_the_same_validation_curve(config, tmp_path, monkeypatch, capsys):
    train(config, tmp_path / "one")
    printed = capsys.readouterr().out
    assert "validation: 4 clips" in printed and "train[3:]" in printed
    assert f"checkpoint of step 4: {tmp_path}/one/checkpoints/4" in printed
    place, calls = loop.place_batch, []

    def place_until_interrupted(mesh, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return place(mesh, batch)

    monkeypatch.setattr(loop, "place_batch", place_until_interrupted)
    config.train.validation.keep_best = False  # so that step 3 is not saved, and is done again
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    rows = curve(tmp_path / "one")
    assert [row[0] for row in rows if row[1] == "validation/loss"] == ["1", "2", "3", "4"]
    assert len({row[2] for row in rows if row[1] == "validation/loss"}) == 4  # the weights change, and so does the loss
    assert rows == curve(tmp_path / "parts")
    assert "since the last start" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_exported_also_after_a_resume(config, tmp_path, monkeypatch, capsys):
    losses = iter([3.0, 1.0, 2.0, float("nan"), 1.5, 0.5])
    monkeypatch.setattr(Validation, "__call__", lambda self, state: {"loss": next(losses)})
    config.train.update(keep=1, save_every=1)
    train(config, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "4"}
    assert best_step(tmp_path) == 2
    config.train.steps = 5
    train(config, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "5"}
    assert "since the last start: train.steps is 5, was 4" in capsys.readouterr().out
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    config.train.update(steps=6, save_every=100)
    assert cli.main(["train", "--workdir", str(tmp_path), "--config=any", "--log", "csv"]) == 0
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"6"} and best_step(tmp_path) == 6
    assert cli.main(["export", "--workdir", str(tmp_path), "--step", "best", "-o", str(tmp_path / "best")]) == 0
    capsys.readouterr()
    for step, word in (("99", "99"), ("newest", "--step")):
        assert cli.main(["export", "--workdir", str(tmp_path), "--step", step, "-o", str(tmp_path / "best")]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.slow
def test_config_json_has_the_fields_and_the_versions(config, tmp_path, monkeypatch):
    config.train.steps = 1
    monkeypatch.setattr(Validation, "__call__", lambda self, state: {"loss": 1.0})
    train(config, tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["train"]["validation"]["clips"] == 4 and found["versions"]["jax"] == jax.__version__
    assert {"python", "emo_jax", "numpy"} <= found["versions"].keys()


def test_held_out_records_of_each_source_that_has_them(config, tmp_path, talking_records):
    other = str(draw_people(tmp_path / "other", 2, 1.2))
    config.data.update(directory="", sources=((str(talking_records), "train", 1.0), (other, "train", 2.0)))
    assert [(s.directory, w) for s, w in open_held_out(config.data, "", "train[:1]")] == [
        (str(talking_records), 1.0), (other, 2.0)
    ]  # fmt: skip
    mesh = make_mesh(devices=jax.devices()[:1])
    config.train.validation.update(split="validation")
    found = Validation(config, build(config), mesh)
    assert not found.sources and "validation" in found.summary and not found.due(1)
    config.train.validation.update(directory=other)
    with pytest.raises(ValueError, match="no split 'validation'"):
        Validation(config, build(config), mesh)
    config.train.validation.update(clips=0)
    with pytest.raises(ValueError, match=r"validation\.clips"):
        Validation(config, build(config), mesh)


def test_when_to_validate(config):
    mesh = make_mesh(devices=jax.devices()[:1])
    config.train.steps = 7
    config.train.validation.every = 3
    assert [step for step in range(1, 8) if Validation(config, build(config), mesh).due(step)] == [3, 6, 7]
    config.train.validation.every = 7
    assert [step for step in range(1, 8) if Validation(config, build(config), mesh).due(step)] == [7]
    config.train.validation.every = 8
    assert not any(Validation(config, build(config), mesh).due(step) for step in range(1, 8))

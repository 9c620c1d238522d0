"""The rows of `train.log`: CSV, Weights & Biases (here a stand-in), and missing packages."""

import importlib
import sys
import types

import numpy as np
import pytest

from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.training.metrics import MetricsWriter
from emo_jax.training.writers import check_writers
from tests.small import small_config


def test_csv_drops_rows_of_steps_that_are_done_again(tmp_path):
    writer = MetricsWriter(tmp_path, first=0, total=9, log=("csv",))
    for step in (2, 4, 6):
        writer.validation({"loss": step / 3}, step, None)
    writer.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,valid")  # a killed run's last row
    writer = MetricsWriter(tmp_path, first=4, total=9, log=("csv",))
    writer.validation({"loss": 0.5}, 6, (4, 0.25))
    writer.image("strip", np.zeros((4, 6, 3), np.uint8), 6)
    writer.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,name,value", "2,validation/loss,0.66666667", "4,validation/loss,1.3333333", "6,validation/loss,0.5"
    ]  # fmt: skip


def test_lines_of_a_validation_name_the_best(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, first=0, total=9, log=())
    writer.validation({"loss": 0.5, "loss_t0": 1.0}, 6, None)
    writer.validation({"loss": 0.5}, 8, (6, 0.25))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("validation at step 6/9 loss 0.5 loss_t0 1 ") and "at step 6 " not in first[15:]
    assert "0.25" in second and second.endswith("step 6)")


class Run:
    """What wandb.init returns: keeps what it is given."""

    def __init__(self):
        self.logged, self.ended = [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.ended = True


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    runs, options = [], []

    def init(**given):
        options.append(given)
        runs.append(Run())
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda image: image.shape))
    for first in (0, 4):
        writer = MetricsWriter(tmp_path / "mine", first, 9, log=("wandb",), config={"train": {"steps": 9}})
        writer.validation({"loss": 0.5}, first + 2, None)
        writer.image("strip", np.zeros((4, 6, 3), np.uint8), first + 2)
        writer.close()
    assert options[0] == options[1] and options[0]["resume"] == "allow" and len(options[0]["id"]) == 32
    assert options[0]["name"] == "mine" and options[0]["config"] == {"train": {"steps": 9}}
    assert runs[1].logged == [(6, {"validation/loss": 0.5}), (6, {"strip": (4, 6, 3)})] and runs[1].ended


def test_missing_packages_and_unknown_names_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = small_config("vae")
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    assert cli.main(["train", "--workdir", str(tmp_path / "run"), "--config=any", "--log", "wandb"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install" in line and "[wandb]" in line and not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"train\.log has 'paper'"):
        check_writers(("csv", "paper"))


def test_with_the_real_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    importlib.import_module("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = MetricsWriter(tmp_path, 0, 9, log=("wandb",), config={"train": {"steps": 9}})
    writer.validation({"loss": 0.5}, 2, None)
    writer.image("strip", np.zeros((4, 6, 3), np.uint8), 2)
    writer.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))

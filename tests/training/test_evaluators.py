"""Evaluators in the training loop: which run when, the best checkpoint by one of them, and their measures."""

import csv

import jax
import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.evaluation.in_training import Measures
from emo_jax.models.emo import build
from emo_jax.training.evaluators import check_evaluators
from emo_jax.training.loop import train
from emo_jax.weights.runs import best_step
from tests.steps import training_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections


@pytest.fixture
def config(talking_records, cheap_vae_start):
    """Four steps of the VAE's stage, with two evaluators and no validation."""
    config = training_config("vae")
    config.data.update(directory=str(talking_records), split="train[:3]")
    config.train.update(log=("csv",), evaluators=(("lips", 2), ("seams", 3)), keep=1, save_every=100)
    config.train.validation.update(every=0, best_by="lips")
    return config


class Fake:
    """Answers with prepared values and records the calls."""

    def __init__(self, **values):
        self.values, self.calls = {name: iter(found) for name, found in values.items()}, []

    def __call__(self, config, params, names):
        assert params["vae"]["encoder"]["conv_in"]["kernel"].shape
        self.calls.append(tuple(names))
        return {name: (next(self.values[name]), name == "seams") for name in names}


@pytest.mark.slow
def test_evaluators_run_at_their_steps_and_the_best_checkpoint_is_by_one_of_them(config, tmp_path, capsys):
    fake = Fake(lips=[0.9, 0.5], seams=[1.25, 1.5])
    train(config, tmp_path, measure=fake)
    assert fake.calls == [("lips",), ("seams",), ("lips", "seams")]
    assert best_step(tmp_path) == 2  # higher lips are better
    assert "evaluation at step 4/4 lips 0.5 seams 1.5" in capsys.readouterr().out
    with (tmp_path / "metrics.csv").open() as file:
        rows = [tuple(row) for row in csv.reader(file) if row[1].startswith("evaluation/")]
    assert rows == [
        ("2", "evaluation/lips", "0.9"), ("3", "evaluation/seams", "1.25"),
        ("4", "evaluation/lips", "0.5"), ("4", "evaluation/seams", "1.5"),
    ]  # fmt: skip
    config.train.update(steps=6)
    config.train.validation.best_by = "seams"
    train(config, tmp_path, measure=Fake(lips=[0.1], seams=[1.1]))
    assert best_step(tmp_path) == 6  # lower seams are better; the score of lips at step 2 is another measure


@pytest.mark.slow
def test_an_evaluation_that_fails_is_a_warning(config, tmp_path, capsys):
    def fail(*_):
        raise ValueError("no such\nrecords")

    state = train(config, tmp_path, measure=fail)
    assert int(state.step) == 4
    assert "warning: no evaluation at step 2: no such records" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no checkpoint"):
        best_step(tmp_path)


@pytest.mark.parametrize("rows, best_by, word", [
    ((("lips",),), "loss", "every N steps"),
    ((("lips", 0),), "loss", "at least 1"),
    (((3, "lips"),), "loss", "property"),
    ((("lips", 2), ("lips", 3)), "loss", "twice"),
    ((("lips", 2),), "seams", "best_by is 'seams'; expected loss or lips"),
])  # fmt: skip
def test_rows_that_cannot_be_used(rows, best_by, word):
    config = training_config("vae")
    config.train.evaluators = rows
    config.train.validation.best_by = best_by
    with pytest.raises(ValueError, match=word):
        check_evaluators(config.train)


@pytest.mark.parametrize("name, word", [("lipz", "unknown property 'lipz'"), ("memory", "memory")])
def test_unknown_properties_end_the_command_before_training(name, word, tmp_path, capsys):
    arguments = ["--config=small:video", f"--config.train.evaluators=(('{name}',5),)"]
    assert cli.main(["train", "--workdir", str(tmp_path / "run"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert word in line and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_measures_of_other_weights_compile_nothing_new():
    config = training_config("video")
    config.train.evaluators = (("silence", 1), ("seams", 1))
    config.train.evaluation.update(identities=2, seconds=0.7)
    measures, emo = Measures(config), build(config)
    found = measures(config, emo.init(jax.random.key(0)), ["silence", "seams"])
    assert set(found) == {"silence", "seams"} and found["silence"][1] and np.isfinite(found["seams"][0])
    samplers = measures._evaluation.samplers
    programs = {off: sampler.compilations() for off, sampler in samplers.items()}
    params = jax.tree.map(lambda a: 1.1 * a, emo.init(jax.random.key(1)))
    again = measures(config, params, ["silence"])
    assert set(again) == {"silence"} and again["silence"][0] != found["silence"][0]
    assert {off: sampler.compilations() for off, sampler in samplers.items()} == programs

"""Configs from the command line: names, files, defaults, and errors that name the field."""

import pytest

from emo_jax import config as config_lib
from tests.small import small_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("train.lr", "train.optimizer.learning_rate"),
        ("train.stepz", "train.steps"),
        ("sampling.step", "sampling.steps"),
        ("trian.steps", "train.steps"),
        ("model.heads", "model.unet.heads"),
    ],
)
def test_unknown_field_names_the_nearest_one(name, nearest):
    with pytest.raises(ValueError, match=f"'{name}'.*'{nearest}'"):
        config_lib.parse(["--config=tiny:video", f"--config.{name}=1"])


def test_config_is_found_by_name_and_a_file_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_lib.parse(["--config", "base:video"]).train.stage == "video"
    lines = (
        "from ml_collections import ConfigDict\n\n\ndef get_config(stage):\n    return ConfigDict(dict(mine=stage))\n"
    )
    (tmp_path / "mine.py").write_text(lines)
    (tmp_path / "base").write_text(lines)
    assert config_lib.parse(["--config=mine.py:image"]).mine == "image"
    assert config_lib.locate("base").resolve() == tmp_path / "base"
    with pytest.raises(ValueError, match="'bass'.*base, echomimic, echomimic_acc, hallo, relatives, small, tiny"):
        config_lib.parse(["--config=bass:video"])


def test_overrides_apply_to_a_default():
    default = small_config()
    config = config_lib.parse(["--config.train.steps=7"], default)
    assert config.train.steps == 7 != default.train.steps
    with pytest.raises(ValueError, match="'train.steps'"):
        config_lib.parse(["--config.train.stepz=7"], default)


def test_fields_are_typed():
    fields = config_lib.parse_fields(["--sampling.steps=8", "--sampling.solver=ddim", "--sampling.eta=0.5"], "sampling")
    assert fields == dict(steps=8, solver="ddim", eta=0.5)
    sampling = small_config().sampling
    config_lib.set_fields(sampling, fields, "sampling")
    assert (sampling.steps, sampling.solver, sampling.eta) == (8, "ddim", 0.5)
    for bad in (dict(steps="many"), dict(steps=1.5), dict(stepz=8)):
        with pytest.raises(ValueError, match=f"sampling.*{next(iter(bad))}"):
            config_lib.set_fields(sampling, bad, "sampling")

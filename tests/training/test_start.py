"""What `emo train` says about data that do not suit a stage, before anything is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.data import records
from emo_jax.training.stages import get_stage
from emo_jax.training.step import TrainState
from emo_jax.training.summary import start_lines
from tests.small import small_config


@pytest.mark.parametrize("stage, changes, words", [
    ("video", dict(audio=np.zeros(0, np.int16)), ["sound"]),
    ("speed", dict(flags="roll-only"), ["--faces landmarks", "roll-only"]),
    ("speed", dict(speed_confidence=0.2), ["--faces landmarks", "speed_confidence"]),
])  # fmt: skip
def test_records_that_lack_what_the_stage_needs(tmp_path, make_record, monkeypatch, capsys, stage, changes, words):
    def unsuitable():
        for k in (0, 2, 3):
            record = make_record(k)
            confidence = np.full(len(record.boxes), changes.get("speed_confidence", 0.9), np.float32)
            yield dataclasses.replace(record, **changes | dict(speed_confidence=confidence))

    records.write_records(tmp_path / "data", {"train": unsuitable}, progress=False)
    config = small_config(stage)
    config.data.directory = str(tmp_path / "data")
    config.train.batch_size = 1
    monkeypatch.setattr(config_lib, "parse", lambda rest: config)
    assert cli.main(["train", "--workdir", str(tmp_path / "run"), "--config=any"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words) and "smaller" not in line and "lower" not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step, origin, last", [
    (0, "", "starts from random weights"), (0, "runs/image", "starts from runs/image"), (7, "", "resumed from step 7"),
])  # fmt: skip
def test_first_lines_name_records_parameters_devices_and_step(record_dir, step, origin, last):
    config = small_config("video")
    config.train.update(init_from=origin, steps=90)
    source = records.open_records(record_dir, "train")
    state = TrainState(step, dict(a=jnp.zeros((1000, 500))), dict(b=jnp.zeros(250_000)), {}, None)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    stage, *found = start_lines(config, get_stage("video"), [(source, 1.0)], mesh, state)
    assert stage.split() == ["stage", "video:", "90", "steps"]
    lines = dict(line.split(": ") for line in found[:-1])
    used, total = (int(word) for word in lines["records"].split() if word.isdigit())
    assert 0 < used <= total == len(source) and str(record_dir) in lines["records"]
    assert "0.5 M trained" in lines["parameters"] and "0.25 M frozen" in lines["parameters"]
    assert lines["devices"].startswith("1 x ") and found[-1] == last

"""What `emo train` says about data that do not suit a stage, before anything is compiled."""

import dataclasses

import numpy as np
import pytest

from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.data import records
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

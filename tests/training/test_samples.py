"""Sample videos during training."""

import numpy as np
import pytest

from emo_jax.data import records
from emo_jax.models.emo import build
from emo_jax.training.metrics import MetricsWriter
from emo_jax.training.samples import SampleWriter
from tests.distributed.layouts import report
from tests.small import small_config


def sample_writer(config, workdir):
    return SampleWriter(config, build(config), workdir, MetricsWriter(workdir, first=0, total=1))


@pytest.mark.slow
def test_samples_are_generated_on_all_devices_in_the_networks_precision():
    found = report("sampled_weights()")  # the four frames of a clip; without guidance, there is one pass
    assert found == dict(devices=4, kernel="bfloat16", last="float32", equal=True)


def test_an_error_in_a_sample_is_a_warning(tmp_path, monkeypatch, capsys):
    def full(self, step, params):
        raise OSError("no space left on\ndevice")

    monkeypatch.setattr(SampleWriter, "_write", full)
    sample_writer(small_config("video"), tmp_path).write(5, {})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "step 5" in line and "no space left on device" in line


def test_sampled_people_come_from_all_sources_and_those_with_sound_first(tmp_path, record_dir, make_record):
    silent = tmp_path / "silent"
    records.write_records(silent, {"train": lambda: [make_record(4)]}, progress=False)
    config = small_config("video")
    config.data.sources = ((str(silent), "train", 9.0), (str(record_dir), "train", 1.0))
    references, masks, voices = sample_writer(config, tmp_path)._people
    assert references.shape[0] == masks.shape[0] == voices.shape[0] == 2
    assert np.abs(voices).max(axis=1).all()
    config.data.sources = ((str(silent), "train", 1.0),)
    references, _, voices = sample_writer(config, tmp_path)._people
    assert len(references) == 1 and not voices.any()

"""A run that overfits eight records: the training loss falls, and the validation curve turns."""

import csv

import pytest

from emo_jax.training.loop import train
from emo_jax.weights.runs import best_step
from tests.small import draw_people
from tests.steps import training_config


@pytest.mark.slow
def test_the_validation_curve_turns_when_a_run_overfits_eight_records(tmp_path):
    config = training_config("image")
    config.data.update(directory=str(draw_people(tmp_path / "data", 16, 0.3)), split="train[:8]", crop_scale=(1.0, 1.0))
    config.diffusion.update(prediction="x0", min_snr_gamma=1.0)
    config.train.update(
        steps=240, batch_size=8, log=("csv",), log_every=30, save_every=1000, keep=1,
        drop_reference=0.0, drop_audio=0.0, drop_both=0.0,
    )  # fmt: skip
    config.train.optimizer.update(learning_rate=3e-3, warmup=20, schedule="constant", weight_decay=0.0)
    config.train.validation.update(every=30, split="train[8:]", clips=16)
    train(config, tmp_path / "run")
    curves = {"loss": {}, "validation/loss": {}}
    with (tmp_path / "run/metrics.csv").open() as file:
        for step, name, value in csv.reader(file):
            if name in curves:
                curves[name][step] = float(value)
    trained, held_out = (dict(sorted((int(s), v) for s, v in curve.items())) for curve in curves.values())
    best = min(held_out, key=held_out.__getitem__)
    assert trained[240] < 0.1 * trained[60]
    assert 30 < best <= 150 and held_out[240] > 1.05 * held_out[best]
    assert best_step(tmp_path / "run") == best

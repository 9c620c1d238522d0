"""A sweep on top of hallo's networks: its points train the speed layers that they lack."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emo_jax.evaluation.sweep import FINISHED
from emo_jax.models.emo import build
from emo_jax.models.parts import part_of
from emo_jax.weights.store import read_flat, save_weights
from tests.distributed.layouts import smallest_config
from tests.runs import python_path
from tests.small import WAV2VEC2, as_hallo

SWEEP = """
CONFIG = "{folder}/hallo.py"
STAGES = ("speed",)
EVALUATE = ("--only", "silence", "--identities", "2", "--seconds", "0.4")


def get_sweep():
    yield "speed-only", {{"train.only": ("speed_layers",)}}
"""
CONFIG = """
from tests.evaluation.test_hallo_sweep import small_hallo as get_config
"""


def small_hallo(stage="video"):
    """Returns a small config with the parts of hallo and a training of one step."""
    config = as_hallo(smallest_config(stage))
    config.model.audio.update(WAV2VEC2 | dict(timing="frames"))
    config.train.update(steps=1, save_every=1, log_every=1, ema=0.0)
    config.train.optimizer.update(warmup=0)
    config.sampling.update(steps=1, reference_scale=2.0, audio_scale=2.0, clips=1)
    return config


@pytest.mark.slow
def test_a_sweep_trains_and_evaluates_on_top_of_hallo(talking_records, tmp_path):
    """The speed layers that hallo lacks are trained; its temporal modules stay as they were."""
    rng, video = np.random.default_rng(0), small_hallo()
    video.model.speed_layers = False
    shapes = flatten_dict(build(video).abstract_params(), sep="/")
    before = {path: np.float16(0.05 * rng.standard_normal(a.shape)) for path, a in shapes.items()}
    save_weights(tmp_path / "weights", video, before)
    (tmp_path / "sweep.py").write_text(SWEEP.format(folder=tmp_path))
    (tmp_path / "hallo.py").write_text(CONFIG)
    command = [sys.executable, "-m", "emo_jax.cli", "sweep", str(tmp_path / "sweep.py"), "-o", str(tmp_path / "out")]
    command += ["--init-from", str(tmp_path / "weights"), f"--config.data.directory={talking_records}"]
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout, done.stderr)
    rows = json.loads((tmp_path / "out/speed-only" / FINISHED).read_text())["rows"]
    assert [row["property"] for row in rows] == ["silence"]
    _, after = read_flat(tmp_path / "out/speed-only/speed")
    assert {part_of(path) for path in set(after) - set(before)} == {"speed_layers"}
    assert all(np.array_equal(before[path], after[path]) for path in before)

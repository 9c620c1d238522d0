"""Training on batches of several image sizes."""

import jax
import numpy as np
import pytest

from emo_jax.data import records
from emo_jax.training import loop
from emo_jax.training.loop import train
from emo_jax.training.termination import Termination
from tests.data.clips import plain_record
from tests.steps import FAST, training_config

SIZES = ((64, 64), (32, 64))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Four square records and four that are twice as wide as high."""

    def record(k):
        size = SIZES[k % 2]
        frames = np.random.default_rng(k).integers(0, 256, (12, *size, 3), np.uint8)
        return plain_record(f"shape-{k}", frames, 25, (8, 8, 24, 24), np.ones(12))

    directory = tmp_path_factory.mktemp("buckets") / "records"
    records.write_records(directory, {"train": lambda: map(record, range(8))}, progress=False)
    return directory


@pytest.mark.slow
def test_steps_of_both_sizes_train_one_model_and_resume(directory, tmp_path, monkeypatch):
    config = training_config("vae")  # stage video takes seven minutes
    config.data.update(directory=str(directory), buckets=SIZES, crop_scale=(1.0, 1.0), without_sound="videos")
    original, steps, sizes = loop.make_step, {}, []

    def make_step(emo, *arguments):
        size = tuple(emo.config.clip.image_size)
        jitted = original(emo, *arguments)

        def step(state, batch):
            sizes.append((size, batch["frames"].shape[-3:-1]))
            if size not in steps:  # all runs share the compiled steps
                steps[size] = jitted.lower(state, batch).compile(FAST)
            return steps[size](state, batch)

        return step

    monkeypatch.setattr(loop, "make_step", make_step)
    monkeypatch.setattr(loop, "step_flops", lambda *arguments: 10**9)
    complete = train(config, tmp_path / "complete")
    assert {size for size, _ in sizes} == set(SIZES) and all(size == given for size, given in sizes)
    assert len(sizes) == 4 and all(np.isfinite(a).all() for a in jax.tree.leaves(jax.device_get(complete.ema)))

    termination = Termination()
    monkeypatch.setattr(termination, "requested", lambda step: step == 2)
    train(config, tmp_path / "parts", termination=termination)
    resumed = train(config, tmp_path / "parts")
    pairs = zip(jax.tree.leaves(complete.trained), jax.tree.leaves(resumed.trained), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)

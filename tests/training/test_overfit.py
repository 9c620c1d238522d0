"""Every stage learns: overfitting one batch, its loss falls to a tenth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.distributed.mesh import make_mesh, place_batch
from emo_jax.models.emo import build
from emo_jax.models.placement import state_sharding
from emo_jax.training.stages import STAGES
from emo_jax.training.step import make_step, new_state
from tests.distributed.layouts import smallest_config
from tests.steps import FAST, fixed_batch, random_params

STEPS = 100
STAGES_RUN = [stage if stage == "vae" else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
"""A step of the others takes 40 s of CPU time to compile."""


def smooth_batch(config):
    """Returns a batch of two samples whose pictures are smooth waves; those of a sample differ in phase."""

    def picture(phase):
        height, width = config.clip.image_size
        y, x = np.mgrid[:height, :width] / height
        waves = np.sin(2 * phase + 3 * x), np.cos(phase + 2 * y), np.sin(3 * phase + x + y)
        return np.uint8(127.5 + 100 * np.stack(waves, axis=-1))

    batch = fixed_batch(config)
    for sample in range(2):
        batch["reference"][sample] = picture(sample)
        for name, step in (("motion", -0.3), ("frames", 0.3)):
            for frame in range(batch[name].shape[1]):
                batch[name][sample, frame] = picture(sample + step * frame)
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES_RUN)
def test_loss_of_one_batch_falls_to_a_tenth(stage):
    config = smallest_config(stage)
    config.train.update(drop_reference=0.0, drop_audio=0.0, motion_noise=0.0, kl_weight=1e-6, steps=STEPS)
    config.train.optimizer.update(learning_rate=1e-2, warmup=5, weight_decay=0.0)
    emo, mesh = build(config), make_mesh(devices=jax.devices()[:1])
    state = new_state(config, random_params(emo))
    batch = place_batch(mesh, smooth_batch(config))
    step = make_step(emo, config, mesh, state).lower(state, batch).compile(FAST)
    state = jax.device_put(state, state_sharding(mesh, state))
    losses = []
    while len(losses) < STEPS and (not losses or losses[-1] > losses[0] / 10):
        # Step 0 again and again has the same timesteps and the same noise; the optimizer counts its steps separately.
        state, metrics = step(dataclasses.replace(state, step=jnp.zeros((), jnp.int32)), batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 10, losses

"""The first steps of each stage on a fixed batch; one compiled program per stage, shared by all tests."""

import dataclasses
import functools

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.data.pipeline import element_spec
from emo_jax.distributed.mesh import make_mesh, place_batch
from emo_jax.media.moments import moment_frames
from emo_jax.models.emo import EMO, build
from emo_jax.models.placement import state_sharding
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import TrainState, make_step, new_state
from tests.small import small_config

STEPS = 3
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options that halve compile time, which dominates these tests."""


def training_config(stage):
    """Returns `small_config` with a batch of two and four steps; the learning rate is 0 in the first step only.

    Every number that a training run may tune is fixed here, so that golden numbers do not depend on configs/tiny.py.
    """
    config = small_config(stage)
    config.diffusion.update(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True, prediction="v",
        spacing="trailing", min_snr_gamma=5.0, noise_offset=0.0,
    )  # fmt: skip
    config.sampling.update(solver="ddim", steps=2, eta=0.0, clips=2, reference_scale=1.0, audio_scale=1.0)
    config.data.update(crop_scale=(0.8, 0.8), min_reference_gap=1.0, first_clip_prob=0.1, flip_prob=0.0, num_workers=0)
    config.train.update(
        steps=4, batch_size=2, accumulate=1, seed=0, ema=0.9, drop_reference=0.05, drop_audio=0.05, drop_both=0.0,
        motion_noise=0.1, kl_weight=1e-3, face_weight=1.0, save_every=2, log_every=2, sample_every=0,
    )  # fmt: skip
    config.train.optimizer.update(
        name="adamw", learning_rate=1e-3, warmup=1, schedule="cosine", beta1=0.9, beta2=0.99, weight_decay=1e-4,
        clip_norm=1.0,
    )  # fmt: skip
    return config


def fixed_batch(config, size=2, seed=0):
    """Returns a fixed batch of noise; its first sample has motion frames, its second starts a video."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, (shape, dtype) in element_spec(clip_of(config, get_stage(config.train.stage)), size).items():
        if name == "has_sound":
            batch[name] = np.ones(shape, dtype)
            continue
        draw = rng.integers(0, 256, shape) if dtype == np.uint8 else rng.uniform(0, 1, shape)
        batch[name] = draw.astype(dtype)
    batch["audio"] = 0.4 * batch["audio"] - 0.2
    batch["audio_moments"] = np.stack([moment_frames(audio, 10, 5) for audio in batch["audio"]])
    batch["has_motion"] = np.arange(size) % 2 == 0
    batch["mask"] = (batch["mask"] > 100).astype(np.uint8)
    return batch


def fresh_params(emo):
    """Returns freshly initialised params."""
    key = emo.config.model.to_json_best_effort(), str(emo.config.clip)
    if key not in _FRESH:
        _FRESH[key] = emo.init(jax.random.key(0))
    return _FRESH[key]


_FRESH = {}


def random_params(emo, fresh=None):
    """Returns the same with noise added: weights that start at zero would hide the layers after them.

    Args:
        emo: the networks.
        fresh: a compiled regular expression; paths that match it get no noise.
    """
    rng = np.random.default_rng(1)
    flat = flatten_dict(fresh_params(emo), sep="/")
    noise = {path: rng.normal(0, 0.05, np.shape(a)).astype(np.float32) for path, a in flat.items()}
    keep = {path for path in flat if path.endswith("scaling_factor") or (fresh and fresh.search(path))}
    return unflatten_dict({path: a if path in keep else a + noise[path] for path, a in flat.items()}, sep="/")


@functools.cache
def step_of(stage):
    """Returns (emo, mesh, compiled step) of `training_config(stage)` on one device."""
    config = training_config(stage)
    emo = build(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    step = make_step(emo, config, mesh, shapes)
    return emo, mesh, step.lower(shapes, fixed_batch(config)).compile(compiler_options=FAST)


@dataclasses.dataclass(frozen=True)
class FirstSteps:
    """The first STEPS steps of a stage: states[k] and metrics[k] after k and k + 1 steps."""

    emo: EMO
    states: list[TrainState]
    metrics: list[dict]


@functools.cache
def first_steps(stage):
    """Runs the first steps of a stage from random params."""
    config = training_config(stage)
    emo, mesh, step = step_of(stage)
    state = new_state(config, random_params(emo))
    states, metrics = [jax.device_get(state)], []
    state = jax.device_put(state, state_sharding(mesh, state))
    for k in range(STEPS):
        state, step_metrics = step(state, place_batch(mesh, fixed_batch(config, seed=k)))
        states.append(jax.device_get(state))
        metrics.append({name: np.asarray(value).tolist() for name, value in step_metrics.items()})
    return FirstSteps(emo, states, metrics)

"""Optimizer, averaging, accumulation and schedules, with a loss of two parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emo_jax.distributed.mesh import make_mesh
from emo_jax.models.emo import build
from emo_jax.training import step as step_lib
from emo_jax.training.optimizer import learning_rate, make_optimizer
from emo_jax.training.step import make_step, new_state
from tests.small import small_config

PARAMS = {
    "vae": {"line": {"kernel": np.float32([[1.0], [-2.0]]), "bias": np.float32([0.5])}},
    "backbone": {"idle": {"kernel": np.ones((2, 2), np.float32)}},
}
BATCH = {"x": np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32), "y": np.arange(8, dtype=np.float32)}


def regression(params, batch, key):
    line = params["vae"]["line"]
    loss = jnp.mean(((batch["x"] @ line["kernel"] + line["bias"])[:, 0] - batch["y"]) ** 2)
    draw = jax.random.uniform(key)
    return loss, {"draw": draw, "square": draw**2, "scale": params["backbone"]["idle"]["kernel"].sum()}


@pytest.fixture
def run(monkeypatch):
    """A function of steps, loss and fields of `train` and its optimizer, which returns (states, metrics).

    `changes` {k: arrays} replaces arrays of the batch of step k.
    """

    def go(steps, loss=regression, changes=None, **train):
        monkeypatch.setattr(step_lib, "make_loss", lambda emo, config: loss)
        config = small_config("vae")
        config.train.update(steps=20, ema=0.99)
        config.train.optimizer.update(warmup=1, learning_rate=0.1, weight_decay=0.0, schedule="constant")
        for name, value in train.items():
            (config.train if name in config.train else config.train.optimizer)[name] = value
        state = new_state(config, PARAMS)
        mesh = make_mesh(devices=jax.devices()[:1])
        step = make_step(build(config), config, mesh, state)
        states, metrics = [jax.device_get(state)], []
        for k in range(steps):
            state, step_metrics = step(state, BATCH | (changes or {}).get(k, {}))
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(step_metrics))
        return states, metrics

    return go


def test_loss_falls_and_frozen_parameters_stay(run):
    states, metrics = run(20)
    losses = [m["loss"] for m in metrics]
    assert losses[-1] < 0.6 * losses[0]
    np.testing.assert_array_equal(states[-1].frozen["backbone/idle/kernel"], np.ones((2, 2)))
    assert set(optax.tree_utils.tree_get(states[-1].opt_state, "mu")) == {"vae/line/kernel", "vae/line/bias"}


def test_exponential_moving_average(run):
    states, _ = run(4, ema=0.3)  # (1 + k) / (10 + k) passes 0.3 at k = 3
    average = states[0].trained["vae/line/kernel"]
    for k, state in enumerate(states[1:]):
        decay = min(0.3, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * state.trained["vae/line/kernel"]
        np.testing.assert_allclose(state.ema["vae/line/kernel"], average, rtol=1e-5)
    assert not np.allclose(states[-1].ema["vae/line/kernel"], states[-1].trained["vae/line/kernel"], rtol=1e-4)
    nested = states[-1].params(ema=True)
    np.testing.assert_array_equal(nested["vae"]["line"]["kernel"], states[-1].ema["vae/line/kernel"])
    np.testing.assert_array_equal(states[-1].params()["vae"]["line"]["kernel"], states[-1].trained["vae/line/kernel"])


@pytest.mark.parametrize("count", [2, 4])
def test_accumulation_equals_the_full_batch(run, count):
    full, metrics = run(3)
    parts, part_metrics = run(3, accumulate=count)
    for path in ("vae/line/kernel", "vae/line/bias"):
        np.testing.assert_allclose(parts[-1].trained[path], full[-1].trained[path], rtol=1e-5, atol=1e-6)
    for one, other in zip(metrics, part_metrics, strict=True):
        np.testing.assert_allclose([one["loss"], one["grad_norm"]], [other["loss"], other["grad_norm"]], rtol=1e-5)


def test_every_step_and_every_part_of_a_batch_has_its_own_key(run):
    _, metrics = run(3, accumulate=2)
    assert len({float(m["draw"]) for m in metrics}) == 3
    for m in metrics:
        assert m["square"] - m["draw"] ** 2 > 1e-5  # a mean of two different draws
    _, other = run(3, accumulate=2, seed=1)
    assert metrics[0]["draw"] != other[0]["draw"]


def test_accumulate_that_does_not_divide_the_batch_raises(run):
    with pytest.raises(ValueError, match="train.accumulate") as caught:
        run(1, accumulate=3)
    assert "\n" not in str(caught.value)


def test_gradients_are_clipped_by_their_global_norm(run):
    states, metrics = run(1, clip_norm=0.25, beta1=0.9)
    first = optax.tree_utils.tree_get(states[1].opt_state, "mu")
    assert metrics[0]["grad_norm"] > 1  # measured before clipping
    np.testing.assert_allclose(optax.tree.norm(first), 0.1 * 0.25, rtol=1e-5)


def square_root(params, batch, key):
    """`regression`, whose gradients are NaN at a finite loss where batch['z'] is 0."""
    loss, metrics = regression(params, batch, key)
    return loss + 1e-3 * jnp.sqrt(jnp.mean(batch["z"]) * params["vae"]["line"]["bias"][0] ** 2), metrics


NAN, ZERO, ONE = (np.full(8, value, np.float32) for value in (np.nan, 0, 1))


@pytest.mark.parametrize("loss, batch", [
    (regression, dict(y=NAN)), (regression, dict(y=1e30 * ONE)), (square_root, dict(z=ZERO)),
])  # fmt: skip
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_that_is_not_finite_changes_only_the_step_count(run, loss, batch, count):
    every = {k: dict(z=ONE) for k in range(5)}
    without, _ = run(4, loss, every, accumulate=count)
    states, metrics = run(5, loss, every | {2: every[2] | batch}, accumulate=count)
    assert [m["skipped"] for m in metrics] == [0, 0, 1, 0, 0]
    assert not np.isfinite(metrics[2]["grad_norm"]) and np.isfinite(metrics[2]["loss"]) == (loss is square_root)
    before, after = states[2], states[3]
    assert (before.step, after.step) == (2, 3)
    for one, other in zip(jax.tree.leaves(before.replace(step=3)), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(states[-1]))
    assert not np.array_equal(states[4].trained["vae/line/bias"], after.trained["vae/line/bias"])
    # The skipped step has no effect on the weights; only the decay of the average counts it.
    np.testing.assert_array_equal(states[-1].trained["vae/line/kernel"], without[-1].trained["vae/line/kernel"])


def test_weight_decay_applies_to_kernels_only(run):
    def nothing(params, batch, key):
        return 0.0 * sum(a.sum() for a in jax.tree.leaves(params)), {}

    states, _ = run(2, loss=nothing, weight_decay=0.5)  # the first step's rate is 0
    np.testing.assert_allclose(states[2].trained["vae/line/kernel"], [[0.95], [-1.9]], rtol=1e-5)
    np.testing.assert_array_equal(states[2].trained["vae/line/bias"], [0.5])


def test_muon_orthogonalises_kernels_and_uses_adam_elsewhere(run):
    states, _ = run(2, name="muon", clip_norm=1e3)  # the first step's rate is 0
    adam, _ = run(2, clip_norm=1e3)
    paths = ("vae/line/kernel", "vae/line/bias")
    (kernel, bias), (adam_kernel, adam_bias) = (
        [s[2].trained[path] - s[1].trained[path] for path in paths] for s in (states, adam)
    )
    np.testing.assert_allclose(bias, adam_bias, rtol=0.2)  # optax's Muon gives AdamW Nesterov's momentum
    # One direction here: its step is 0.2 sqrt(2) of the rate (arXiv 2502.16982, Eq. 4), up to Newton-Schulz.
    assert 0.6 < np.linalg.norm(kernel) / (0.1 * 0.2 * np.sqrt(2)) < 1.3
    assert not np.allclose(np.abs(kernel), np.abs(adam_kernel), rtol=0.1)


def test_muon_updates_only_kernels_between_hidden_features():
    shapes = {
        "backbone/down_blocks_0/resnets_0/conv1/kernel": (3, 3, 4, 4),
        "backbone/conv_in/kernel": (3, 3, 4, 4),
        "vae/decoder/conv_out/kernel": (3, 3, 4, 4),
        "backbone/down_blocks_0/resnets_0/conv1/bias": (4,),
    }
    state = make_optimizer(optimizer_config(name="muon"), 10).init({p: jnp.ones(s) for p, s in shapes.items()})
    moments = optax.tree_utils.tree_get(state[1].inner_states["muon"], "mu")
    assert [path for path in moments if isinstance(moments[path], jax.Array)] == list(shapes)[:1]
    with pytest.raises(ValueError, match="optimizer.name"):
        make_optimizer(optimizer_config(name="sgd"), 10)


def optimizer_config(**changes):
    config = small_config("vae").train.optimizer
    config.update(learning_rate=1e-3, warmup=10, **changes)
    return config


def test_learning_rate_schedules():
    constant = learning_rate(optimizer_config(schedule="constant"), 100)
    np.testing.assert_allclose([constant(k) for k in (0, 5, 10, 99)], [0, 5e-4, 1e-3, 1e-3], rtol=1e-5)
    cosine = learning_rate(optimizer_config(schedule="cosine"), 110)
    wanted = [0, 5e-4, 1e-3, 1e-3 * (0.02 + 0.98 * 0.5), 2e-5]
    np.testing.assert_allclose([cosine(k) for k in (0, 5, 10, 60, 110)], wanted, rtol=1e-4)
    short = learning_rate(optimizer_config(schedule="constant"), 4)  # a short run has a shorter warm-up
    np.testing.assert_allclose(short(2), 1e-3, rtol=1e-5)
    with pytest.raises(ValueError, match="optimizer.schedule"):
        make_optimizer(optimizer_config(schedule="linear"), 10)


def test_learning_rate_is_a_metric(run):
    _, metrics = run(4, warmup=2, learning_rate=0.2)
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], [0, 0.1, 0.2, 0.2], rtol=1e-5)

"""Placement on meshes: eight CPU devices give what one gives, and parameters are really split."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from emo_jax import sharding
from emo_jax.models.emo import build
from tests.small import small_config

MESHES = {"data 8": dict(data=8, fsdp=1), "fsdp 8": dict(data=1, fsdp=8), "data 2 fsdp 4": dict(data=2, fsdp=4)}


def eight_devices(stage, names):
    """Prints how far two steps on each mesh are from two steps on one device; run where there are eight."""
    from emo_jax.training.step import make_step, new_state
    from tests.steps import FAST, fixed_batch, random_params, training_config

    config = training_config(stage)
    config.train.update(batch_size=8)
    config.train.optimizer.update(learning_rate=1e-3, clip_norm=1e3)
    emo = build(config)
    start = jax.device_get(new_state(config, random_params(emo)))

    def run(mesh):
        state = jax.device_put(start, sharding.state_sharding(mesh, start))
        batches = [sharding.place_batch(mesh, fixed_batch(config, 8, seed)) for seed in (0, 1)]
        step = make_step(emo, config, mesh, state).lower(state, batches[0]).compile(compiler_options=FAST)
        losses = []
        for batch in batches:
            state, told = step(state, batch)
            losses.append([float(told["loss"]), float(told["grad_norm"])])
        return state, losses

    alone, losses = run(sharding.make_mesh(devices=jax.devices()[:1]))
    alone, report = jax.device_get(alone), {}
    for name in names:
        state, told = run(sharding.make_mesh(**MESHES[name]))
        shard = sum(a.addressable_shards[0].data.size for a in state.trained.values())
        report[name] = dict(
            losses=float(np.abs(np.array(told) / np.array(losses) - 1).max()),
            share=shard / sum(a.size for a in state.trained.values()),
            optimizer_share=sum(a.addressable_shards[0].data.size for a in jax.tree.leaves(state.opt_state))
            / sum(a.size for a in jax.tree.leaves(state.opt_state)),
        )
        after = jax.device_get(state)
        report[name] |= {
            "gradients": _distance(_moments(after), _moments(alone)),
            "parameters": _distance(after.trained, alone.trained, start.trained),
            "average": _distance(after.ema, alone.ema, start.ema),
            "frozen": _distance(after.frozen, alone.frozen),
        }
    print("REPORT", json.dumps(report))


def _moments(state):
    import optax

    return optax.tree_utils.tree_get(state.opt_state, "mu")


def _distance(one, other, origin=None):
    """Norm of the difference over the norm of (the change of) the other; 0 for equal ones."""
    flat = [np.concatenate([np.ravel(tree[path]) for path in sorted(other)]) for tree in (one, other)]
    change = flat[1] if origin is None else flat[1] - np.concatenate([np.ravel(origin[path]) for path in sorted(other)])
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(change))


def check_meshes(stage, names):
    code = f"from tests.test_sharding import eight_devices; eight_devices({stage!r}, {names!r})"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("REPORT")]
    report = json.loads(line.removeprefix("REPORT"))
    assert set(report) == set(names)
    for name, found in report.items():
        assert found["losses"] < 1e-4 and found["gradients"] < 1e-3, (name, found)
        assert found["parameters"] < 0.02 and found["average"] < 0.02 and found["frozen"] == 0, (name, found)
        fsdp = MESHES[name]["fsdp"]
        for share in (found["share"], found["optimizer_share"]):
            assert 1 / fsdp <= share < 1 / fsdp + (0.15 if fsdp > 1 else 1e-9), (name, found)


def test_two_axes_of_eight_devices_equal_one_device():
    check_meshes("vae", ["data 2 fsdp 4"])


@pytest.mark.slow
@pytest.mark.parametrize("stage, names", [("vae", ["data 8", "fsdp 8"]), ("video", list(MESHES))])
def test_eight_devices_equal_one_device(stage, names):
    check_meshes(stage, names)


def test_every_parameter_has_a_place():
    paths = flatten_dict(build(small_config()).abstract_params(), sep="/")
    split = 0
    for path, leaf in paths.items():
        spec = sharding.parameter_spec(path, leaf.shape, 8)
        if spec != PartitionSpec():
            split += leaf.size
            axis = spec.index("fsdp")
            assert leaf.shape[axis] % 8 == 0 and leaf.shape[axis] == max(s for s in leaf.shape if s % 8 == 0)
        assert sharding.parameter_spec(path, leaf.shape, 1) == PartitionSpec()
    assert split > 0.9 * sum(leaf.size for leaf in paths.values())
    with pytest.raises(ValueError, match="no sharding rule matches parameter 'backbone/odd/weight'"):
        sharding.parameter_spec("backbone/odd/weight", (8, 8), 8)


def test_meshes_and_batches_that_do_not_fit_are_one_line():
    (device,) = jax.devices()[:1]
    assert dict(sharding.make_mesh(devices=[device]).shape) == dict(data=1, fsdp=1)
    for axes in (dict(data=3), dict(data=2, fsdp=4), dict(data=1, fsdp=2)):
        with pytest.raises(ValueError, match="train.mesh is data=") as caught:
            sharding.make_mesh(**axes, devices=[device])
        assert "\n" not in str(caught.value)


class _Mesh:
    local_devices = range(8)


def test_a_batch_that_does_not_divide_over_the_devices_is_one_line():
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 8 devices"):
        sharding.place_batch(_Mesh, {"speed": np.zeros((6, 2))})

"""Memory of the training state: precision of each array, no duplicates, donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import jaxprs_in_params

from emo_jax.distributed import parameters
from emo_jax.distributed.mesh import AXES, make_mesh, traced_for_mesh
from emo_jax.distributed.parameters import GATHERED
from emo_jax.models.emo import build
from emo_jax.training.step import at_rest, make_flat_loss, make_loss, make_step, new_state
from tests.distributed.layouts import smallest_config
from tests.small import WAV2VEC2, small_config
from tests.steps import fixed_batch, random_params


def shapes_of(config):
    return jax.eval_shape(functools.partial(new_state, config), build(config).abstract_params())


@pytest.mark.parametrize("stage", ["vae", "image", "video", "speed"])
def test_frozen_parameters_have_no_optimizer_state_and_no_float32_kernels(stage):
    state = shapes_of(small_config(stage, dtype="bfloat16"))
    assert {a.dtype for a in jax.tree.leaves((state.trained, state.ema))} == {jnp.dtype("float32")}
    assert state.ema.keys() == state.trained.keys() and not state.trained.keys() & state.frozen.keys()
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    kept = {keys[-1].key for keys, _ in leaves if hasattr(keys[-1], "key")}
    assert kept <= state.trained.keys()
    fine = sum(a.size for a in state.frozen.values() if a.dtype == jnp.float32)
    assert fine < 0.1 * sum(a.size for a in state.frozen.values())
    others = [a for path, a in state.frozen.items() if not path.endswith(("/kernel", "/weight_v"))]
    assert all(a.dtype == jnp.float32 for a in others)
    assert {a.dtype for a in shapes_of(small_config(stage)).frozen.values()} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_frozen_kernels_at_rest_give_the_same_loss_bit_for_bit():
    config = smallest_config("speed")
    config.model.dtype = "bfloat16"
    emo = build(config)
    loss, batch = jax.jit(make_loss(emo, config)), fixed_batch(config)
    flat = flatten_dict(random_params(emo), sep="/")
    cast = {path: at_rest(path, np.asarray(a), "bfloat16") for path, a in flat.items()}
    assert sum(a.dtype == jnp.bfloat16 for a in cast.values()) > 50
    found = [loss(unflatten_dict(tree, sep="/"), batch, jax.random.key(1))[0] for tree in (flat, cast)]
    assert found[0] == found[1]


@pytest.mark.slow
def test_parameters_are_gathered_in_the_networks_precision(monkeypatch):
    monkeypatch.setattr(parameters, "SMALL", 1)
    config = small_config("speed", dtype="bfloat16", audio=WAV2VEC2)
    state, mesh = shapes_of(config), jax.sharding.AbstractMesh((1, 2, 1, 1), AXES)
    loss = traced_for_mesh(mesh, make_flat_loss(build(config), config))
    jaxpr = jax.make_jaxpr(loss)(state.trained, state.frozen, fixed_batch(config), jax.random.key(0))
    gathers = [e.outvars[0].aval for e in equations(jaxpr.jaxpr) if e.params.get("name") == GATHERED]
    outputs = [state.frozen["vae/decoder/conv_out/kernel"].shape, state.frozen["backbone/conv_out/kernel"].shape]
    assert [a.shape for a in gathers if a.dtype == jnp.float32] == outputs
    assert sum(a.dtype == jnp.bfloat16 for a in gathers) > 100


def equations(jaxpr):
    """Yields the equations of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.slow
@pytest.mark.parametrize("donate", [True, False])
def test_donate_lets_the_step_overwrite_the_old_state(donate):
    config = smallest_config("vae")
    config.train.donate = donate
    shapes, mesh = shapes_of(config), make_mesh(devices=jax.devices()[:1])
    program = make_step(build(config), config, mesh, shapes).lower(shapes, fixed_batch(config)).as_text()
    assert ("tf.aliasing_output" in program or "jax.buffer_donor" in program) == donate


def test_unknown_remat_raises():
    config = small_config()
    config.model.unet.remat = "some"
    with pytest.raises(ValueError, match="model.unet.remat"):
        build(config)

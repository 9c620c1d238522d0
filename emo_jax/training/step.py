"""Training state and the jitted step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.diffusion.schedule import make_schedule
from emo_jax.distributed.mesh import batch_sharding, replicated, traced_for_mesh
from emo_jax.models.emo import EMO
from emo_jax.models.parts import layer_of, part_of
from emo_jax.models.placement import state_sharding
from emo_jax.training import losses
from emo_jax.training.optimizer import learning_rate, make_optimizer
from emo_jax.training.stages import split, stage_of


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the frozen params beside it.

    Attributes:
        step: () int32, steps done.
        trained, frozen: {path: array}, which together are the model; trained in float32, frozen as `at_rest`.
        ema: exponential moving average of `trained`.
        opt_state: optax state over `trained` alone.
    """

    step: Any
    trained: Any
    frozen: Any
    ema: Any
    opt_state: Any

    def flat(self, ema=False):
        """{path: array} of the whole model, with the averaged weights if `ema`."""
        return {**self.frozen, **(self.ema if ema else self.trained)}

    def params(self, ema=False):
        """The same as a nested params tree."""
        return unflatten_dict(self.flat(ema), sep="/")


def new_state(config, params):
    """The state at step 0 of the config's stage, from a nested params tree."""
    trained, frozen = split(flatten_dict(params, sep="/"), stage_of(config))
    frozen = {path: at_rest(path, a, config.model.dtype) for path, a in frozen.items()}
    optimizer = make_optimizer(config.train.optimizer, config.train.steps)
    ema = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, ema, optimizer.init(trained))


def at_rest(path, array, dtype):
    """A frozen parameter in the precision that it is computed in: kernels in the networks' `dtype`, others as they are.

    The networks would cast these kernels themselves, so that nothing changes but the memory.
    """
    return array.astype(dtype) if layer_of(path).frozen_dtype == "networks" else array


def make_loss(emo: EMO, config):
    """loss(params, batch, key) -> (loss, metrics) of the config's stage."""
    stage = stage_of(config)
    if config.train.stage == "vae":
        return functools.partial(losses.vae_loss, emo, config.train)
    return functools.partial(losses.denoising_loss, emo, make_schedule(config.diffusion), stage, config.train)


def make_flat_loss(emo: EMO, config):
    """loss(trained, frozen, batch, key) -> (loss, metrics) of the config's stage, of params as {path: array}."""
    loss = make_loss(emo, config)
    return lambda trained, frozen, batch, key: loss(unflatten_dict({**frozen, **trained}, sep="/"), batch, key)


def make_step(emo: EMO, config, mesh, state):
    """The jitted step(state, batch) -> (state, metrics) over a mesh; the old state is donated (`train.donate`).

    Args:
        state: the state, or its shapes (jax.eval_shape).
    """
    train = config.train
    loss_of, update = make_flat_loss(emo, config), make_update(config)

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)
        grads, metrics = _accumulate(jax.value_and_grad(loss_of, has_aux=True), state, batch, key, train.accumulate)
        return update(state, grads, metrics)

    placed = state_sharding(mesh, state)
    return jax.jit(
        traced_for_mesh(mesh, step),
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),  # the metrics: every process reads them
        donate_argnums=0 if train.donate else (),
    )


def make_update(config):
    """update(state, grads, metrics) -> (state, metrics): what a step does with its gradients {path: array}.

    A step whose loss or gradients are not finite changes nothing but the count of steps; its metric `skipped` is 1.
    """
    train = config.train
    optimizer = make_optimizer(train.optimizer, train.steps)
    rate = learning_rate(train.optimizer, train.steps)

    def update(state, grads, metrics):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        decay = jnp.minimum(train.ema, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(trained, state.ema, 1 - decay)
        norm = optax.tree.norm(grads)
        fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        changed = jax.tree.map(
            lambda new, old: jnp.where(fine, new, old),
            (trained, ema, opt_state),
            (state.trained, state.ema, state.opt_state),
        )
        metrics |= {"grad_norm": norm, "learning_rate": rate(state.step), "skipped": 1.0 - fine} | _part_norms(grads)
        trained, ema, opt_state = changed
        return TrainState(state.step + 1, trained, state.frozen, ema, opt_state), metrics

    return update


def _part_norms(grads):
    """{'grad_norm/PART': norm} of gradients {path: array}, by the parts of training.stages."""
    parts = {}
    for path, grad in grads.items():
        parts.setdefault(part_of(path), []).append(grad)
    return {f"grad_norm/{part}": optax.tree.norm(grads) for part, grads in parts.items()}


def _accumulate(grad_fn, state, batch, key, count):
    """Mean gradients and metrics over `count` equal parts of the batch, one part in memory at a time."""

    def one(part, key):
        (loss, metrics), grads = grad_fn(state.trained, state.frozen, part, key)
        return grads, {"loss": loss, **metrics}

    if count == 1:
        return one(batch, key)
    size = len(jax.tree.leaves(batch)[0])
    if size % count:
        raise ValueError(f"train.accumulate is {count}, which does not divide the batch of {size}; choose a divisor")
    parts = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, one(*inputs)), None

    keys = jax.random.split(key, count)
    shapes = jax.eval_shape(one, jax.tree.map(lambda a: a[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (parts, keys))
    return jax.tree.map(lambda a: a / count, total)

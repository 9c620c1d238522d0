"""The training state and the jitted training step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Key, PyTree
from ml_collections import ConfigDict

from emo_jax.diffusion.schedule import make_schedule
from emo_jax.distributed.mesh import batch_sharding, replicated, traced_for_mesh
from emo_jax.models import lora
from emo_jax.models.emo import EMO
from emo_jax.models.parts import is_of_teacher, layer_of, part_of
from emo_jax.models.placement import state_sharding
from emo_jax.training import distillation, losses, vae_losses
from emo_jax.training.optimizer import learning_rate, make_optimizer
from emo_jax.training.stages import split, stage_of

Metrics = dict[str, Array]
"""{name: scalar, or (sum, count) over the samples that have a value}."""
Loss = Callable[..., tuple[Array, Metrics]]


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the frozen parameters.

    With LoRA, adapters are among the trained parameters, and their kernels among the frozen ones. In stage distill, the
    teacher is among the frozen ones.

    Attributes:
        step: () int32, the number of steps done.
        trained: {path: float32 array}, the parameters with gradients.
        frozen: {path: array}, the other parameters, stored as `at_rest`.
        ema: exponential moving average of `trained`.
        opt_state: optax state over `trained` alone.
    """

    step: Any
    trained: Any
    frozen: Any
    ema: Any
    opt_state: Any

    def flat(self, ema: bool = False) -> dict[str, Any]:
        """Returns the networks' parameters {path: array}, the trained ones averaged if `ema`, adapters merged."""
        frozen = {path: a for path, a in self.frozen.items() if not is_of_teacher(path)}
        return lora.merge({**frozen, **(self.ema if ema else self.trained)})

    def params(self, ema: bool = False) -> dict[str, Any]:
        """Returns the same as a nested params tree."""
        return unflatten_dict(self.flat(ema), sep="/")


def new_state(config: ConfigDict, params: PyTree) -> TrainState:
    """Returns the state at step 0 of the config's stage.

    Args:
        config: the full config.
        params: nested params tree of all networks; in stage distill it may have a branch `teacher`.
    """
    stage, flat = stage_of(config), flatten_dict(params, sep="/")
    if stage.distills and "teacher" not in params:
        flat |= distillation.teacher_of(flat, config.train.distill.guidance)
    trained, frozen = split(flat, stage)
    if "lora" in config.train and config.train.lora.rank:
        rank, parts = config.train.lora.rank, config.train.lora.parts
        base = {path: trained.pop(path) for path in lora.adapted_paths(list(trained), rank, parts)}
        kernels = {path: a for path, a in base.items() if lora.has_adapter(path)}
        trained |= lora.new_adapters(kernels, rank, config.train.seed)
        frozen |= base
    frozen = {path: at_rest(path, a, config.model.dtype) for path, a in frozen.items()}
    optimizer = make_optimizer(config.train.optimizer, config.train.steps)
    ema = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, ema, optimizer.init(trained))


def at_rest(path: str, array: Any, dtype: str) -> Any:
    """Casts a frozen parameter to the precision that it is used in: kernels to the networks' `dtype`.

    The networks cast these kernels in any case, so results do not change; only memory is saved.
    """
    return array.astype(dtype) if layer_of(path).frozen_dtype == "networks" else array


def make_loss(emo: EMO, config: ConfigDict) -> Loss:
    """Returns loss(params, batch, key) -> (loss, metrics) of the config's stage."""
    if config.train.stage == "vae":
        return functools.partial(vae_losses.vae_loss, emo, config.train)
    return make_denoising_loss(emo, config, config.train)


def make_denoising_loss(emo: EMO, config: ConfigDict, train: ConfigDict) -> Loss:
    """Returns loss(params, batch, key, timesteps=None) -> (loss, metrics) of a stage other than vae.

    Args:
        emo: the networks.
        config: the full config.
        train: its `train`, or a variant of it.
    """
    schedule, stage = make_schedule(config.diffusion), stage_of(config)
    if stage.distills:
        distillation.check(train.distill, schedule.train_steps)
        return functools.partial(distillation.distillation_loss, emo, schedule, stage, train, config.sampling)
    return functools.partial(losses.denoising_loss, emo, schedule, stage, train)


def make_flat_loss(emo: EMO, config: ConfigDict) -> Loss:
    """Returns loss(trained, frozen, batch, key) -> (loss, metrics), with params as {path: array}."""
    loss = make_loss(emo, config)
    return lambda trained, frozen, batch, key: loss(nested(trained, frozen), batch, key)


def nested(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters {path: array} as one params tree, adapters merged."""
    return unflatten_dict(lora.merge({**frozen, **trained}), sep="/")


def make_step(
    emo: EMO, config: ConfigDict, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]:
    """Returns the jitted step(state, batch) -> (state, metrics) over a mesh.

    Args:
        emo: the networks.
        config: the full config. With `train.donate` the step overwrites the old state.
        mesh: the mesh that the state and the batch are placed on.
        state: the state, or its shapes (`jax.eval_shape`).
    """
    train = config.train
    loss, update = make_flat_loss(emo, config), make_update(config)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)
        grads, metrics = _accumulate(jax.value_and_grad(loss, has_aux=True), state, batch, key, train.accumulate)
        return update(state, grads, metrics)

    placement = state_sharding(mesh, state)
    return jax.jit(
        traced_for_mesh(mesh, step),
        in_shardings=(placement, batch_sharding(mesh)),
        out_shardings=(placement, replicated(mesh)),  # every process reads the metrics
        donate_argnums=0 if train.donate else (),
    )


def make_update(config: ConfigDict) -> Callable[[TrainState, dict[str, Any], Metrics], tuple[TrainState, Metrics]]:
    """Returns update(state, grads, metrics) -> (state, metrics): what a step does with its gradients {path: array}.

    A step whose loss or gradients are not finite changes only the count of steps; its metric `skipped` is 1.
    """
    train = config.train
    optimizer = make_optimizer(train.optimizer, train.steps)
    rate = learning_rate(train.optimizer, train.steps)

    def update(state: TrainState, grads: dict[str, Array], metrics: Metrics) -> tuple[TrainState, Metrics]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        decay = jnp.minimum(train.ema, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(trained, state.ema, 1 - decay)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        trained, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (trained, ema, opt_state),
            (state.trained, state.ema, state.opt_state),
        )
        metrics |= {"grad_norm": norm, "learning_rate": rate(state.step), "skipped": 1.0 - finite} | _part_norms(grads)
        return TrainState(state.step + 1, trained, state.frozen, ema, opt_state), metrics

    return update


def _part_norms(grads: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
    """Returns {'grad_norm/PART': norm} of gradients {path: array}."""
    parts: dict[str, list[Array]] = {}
    for path, grad in grads.items():
        parts.setdefault(part_of(path), []).append(grad)
    return {f"grad_norm/{part}": optax.tree.norm(grads) for part, grads in parts.items()}


def _accumulate(
    grad_fn: Callable[..., Any], state: TrainState, batch: Mapping[str, ArrayLike], key: Key[Array, ""], count: int
) -> tuple[dict[str, Array], Metrics]:
    """Returns mean gradients and metrics over `count` equal parts of the batch, one part in memory at a time."""

    def gradients(part: Mapping[str, ArrayLike], key: Key[Array, ""]) -> tuple[dict[str, Array], Metrics]:
        (loss, metrics), grads = grad_fn(state.trained, state.frozen, part, key)
        return grads, {"loss": loss, **metrics}

    if count == 1:
        return gradients(batch, key)
    size = len(jax.tree.leaves(batch)[0])
    if size % count:
        raise ValueError(f"train.accumulate is {count}, which does not divide the batch of {size}; choose a divisor")
    parts = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Any, inputs: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(*inputs)), None

    keys = jax.random.split(key, count)
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda a: a[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (parts, keys))
    return jax.tree.map(lambda a: a / count, total)

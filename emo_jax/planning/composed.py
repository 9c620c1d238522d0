"""Plans a training step from its parts: every kind of block is compiled once, and the compiler's figures are added up.

Compiling a full-size step for TPU takes XLA 20 minutes and 20 GB. Most of the step consists of blocks (resnets,
transformers, temporal modules, resamplings) that occur several times. Here each kind is compiled once as a separate
program: forward and backward pass with the gathers and sums of its parameters, placed as in the step. Two more
programs are the rest of the loss, with stand-ins for the blocks, and the optimizer's update.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from emo_jax.distributed.activations import activation_spec, constrain
from emo_jax.distributed.mesh import batch_sharding, replicated, traced_for_mesh
from emo_jax.models.attention import SpatialTransformer
from emo_jax.models.audio_module import AudioModule
from emo_jax.models.emo import EMO
from emo_jax.models.layers import Downsample, ResnetBlock, Upsample
from emo_jax.models.placement import parameter_spec, state_sharding
from emo_jax.models.temporal import MotionModule
from emo_jax.models.unet import UNet, UNetConfig, part_of_level
from emo_jax.planning.compile_stats import compile_stats, merge_collectives
from emo_jax.planning.topologies import Device
from emo_jax.progress import Progress
from emo_jax.training.step import TrainState, make_flat_loss, make_update, new_state

BLOCKS = (ResnetBlock, SpatialTransformer, AudioModule, MotionModule, Downsample, Upsample)
_FLAX_FIELDS = ("parent", "name")  # fields of every module
_VAE_MODULES = ("encoder", "decoder")  # which contain resnets, too
_BEFORE_BLOCKS = {
    "reference_net": ("reference_net/conv_in/", "reference_net/time_embedding/"),
    "backbone": ("backbone/conv_in/", "backbone/time_embedding/", "face_locator/"),
}
"""Parameters that act before a network's first block. If none of them and no earlier block is trained, a block needs
no backward pass."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a block in the forward pass.

    Attributes:
        prefix: path of its parameters.
        module: its class.
        fields: (name, value) of the module's fields.
        config: of the UNet that contains it.
        inputs, outputs: shapes.
    """

    prefix: str
    module: type
    fields: tuple[tuple[str, Any], ...]
    config: UNetConfig
    inputs: Any
    outputs: Any


@dataclasses.dataclass(frozen=True)
class Part:
    """One program of the step.

    Attributes:
        name: shown in the report.
        lower: lowers the program.
        count: how often it runs in each round of accumulation.
        once: whether it runs once in a step rather than in every round.
    """

    name: str
    lower: Callable[[], Any]
    count: float = 1
    once: bool = False


def parts_of_step(emo: EMO, config: ConfigDict, mesh: Mesh, state: TrainState, batch: Mapping[str, Any]) -> list[Part]:
    """Returns the parts of the config's training step.

    Args:
        emo: the networks.
        config: the full config.
        mesh: the mesh of the step.
        state: shapes of the training state.
        batch: shapes of the step's global batch.
    """
    if config.train.lora.rank:
        raise ValueError("train.lora is set, which --composed cannot plan; plan without --composed, or with rank 0")
    size = config.train.batch_size // config.train.accumulate
    batch = {name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in batch.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = make_flat_loss(emo, config)
    calls, loss_outputs = _record_calls(traced_for_mesh(mesh, loss), state.trained, state.frozen, batch, key)
    kinds: dict[Any, list[Any]] = {}
    backward = False
    for call in calls:
        trained, frozen = (_within(call.prefix, flat) for flat in (state.trained, state.frozen))
        before = _BEFORE_BLOCKS[_network(call.config)]
        backward = backward or bool(trained) or any(path.startswith(before) for path in state.trained)
        kind = call.module, call.fields, call.config, _hashable((call.inputs, trained, frozen)), backward
        kinds.setdefault(kind, [(call, trained, frozen, backward), 0])[1] += 1
    parts = []
    for arguments, count in kinds.values():
        lower = functools.partial(_lower_block, mesh, *arguments)
        parts.append(Part(_name(arguments[0], arguments[-1]), lower, count))
    rest = functools.partial(_lower_rest, loss, calls, mesh, state, batch, key)
    # AdamW's cost grows with the bytes of its parameters, so that one of each shape suffices; Muon's does not.
    sampled, share = _one_of_each(config, mesh, state) if config.train.optimizer.name == "adamw" else (state, 1)
    update = functools.partial(_lower_update, config, mesh, sampled, loss_outputs)
    return [*parts, Part("rest of the loss", rest), Part("update", update, 1 / share, once=True)]


def compose(parts: Sequence[Part], rounds: int, topology: str, device: Device) -> dict[str, Any]:
    """Compiles the parts of a step and adds up the compiler's figures, as if they were one program.

    Args:
        parts: of `parts_of_step`.
        rounds: rounds of accumulation in a step.
        topology: name of the topology.
        device: one of its devices.

    Returns:
        A dict as of `compile_stats`, with these differences: `temporaries` is the largest of all parts, `accessed` is
        per round, `parts` has a row for each part, `compiled` is the number of parts that were not cached. `peak` is
        present, and None, only if one part alone does not fit.
    """
    started = time.monotonic()
    stats = _compile_all(parts, topology, device)
    seconds = time.monotonic() - started
    collectives, rows = [], []
    for part, one in zip(parts, stats, strict=True):
        if one["peak"] is None:
            return dict(peak=None, accessed=None, collectives=[], why=f"{part.name}: {one['why']}", cached=False)
        for row in one["collectives"]:
            sums = {name: round(part.count * row[name]) for name in ("count", "bytes", "sent")}
            collectives.append(row | sums | dict(looped=row["looped"] or (rounds > 1 and not part.once)))
        accessed = (one["accessed"] or 0) / (rounds if part.once else 1)
        rows.append(dict(name=part.name, count=part.count, temporaries=one["temporaries"], accessed=accessed))
    return dict(
        temporaries=max(row["temporaries"] for row in rows),
        accessed=sum(row["count"] * row["accessed"] for row in rows),
        collectives=merge_collectives(collectives),
        parts=rows,
        seconds=round(seconds, 1),
        compiler=stats[0]["compiler"],
        cached=all(one["cached"] for one in stats),
        compiled=sum(not one["cached"] for one in stats),
    )


def _compile_all(parts: Sequence[Part], topology: str, device: Device) -> list[dict[str, Any]]:
    """Returns the `compile_stats` of every part; as many compile at once as there are cores."""
    with Progress(len(parts), "plan: compiling", "part", every=20) as progress:
        pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        pending = []
        try:
            for part in parts:
                pending.append(pool.submit(compile_stats, part.lower(), topology, device))
                pending[-1].add_done_callback(lambda _: progress.add())
            return [one.result() for one in pending]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# ---- the blocks of a forward pass


def _record_calls(loss: Callable[..., Any], *arguments: Any) -> tuple[list[Call], Any]:
    """Returns the block calls of a loss, in order, and the shapes of what the loss returns."""
    calls = []

    def record(run: Callable[[], Any], module: nn.Module, config: UNetConfig, prefix: str, inputs: Any) -> Any:
        outputs = run()
        names = [f.name for f in dataclasses.fields(module) if f.name not in _FLAX_FIELDS]
        fields = tuple((name, getattr(module, name)) for name in names)
        shapes = (jax.tree.map(_shape, tree) for tree in (inputs, outputs))
        calls.append(Call(prefix, type(module), fields, config, *shapes))
        return outputs

    with _intercept_blocks(record):
        loss_outputs = jax.eval_shape(loss, *arguments)
    return calls, loss_outputs


def _intercept_blocks(handle: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """Replaces calls of a UNet's blocks by handle(run, module, config of the UNet, prefix, inputs)."""
    networks = []

    def intercept(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, UNet):
            networks.append(module.config)
        is_block = context.method_name == "__call__" and isinstance(module, BLOCKS)
        if not is_block or context.module.scope.path[0] in _VAE_MODULES:
            return run(*args, **kwargs)
        prefix = "/".join((_network(networks[-1]), *context.module.scope.path))
        return handle(functools.partial(run, *args, **kwargs), module, networks[-1], prefix, args)

    return nn.intercept_methods(intercept)


def _network(config: UNetConfig) -> str:
    return "reference_net" if config.features_only else "backbone"


def _name(call: Call, backward: bool) -> str:
    shape = "x".join(map(str, call.inputs[0].shape[1:]))
    feature = ", to its feature" if dict(call.fields).get("feature_only") else ""
    return f"{call.module.__name__} {_network(call.config)} {shape}{feature}{'' if backward else ', forward'}"


def _shape(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _hashable(tree: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(tree)
    return tuple((a.shape, str(a.dtype)) if hasattr(a, "shape") else a for a in leaves), structure


def _within(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters {path: shape} of a block, by their paths within it."""
    start = f"{prefix}/"
    return {path.removeprefix(start): a for path, a in flat.items() if path.startswith(start)}


# ---- lowering


def _lower_block(mesh: Mesh, call: Call, trained: dict[str, Any], frozen: dict[str, Any], backward: bool) -> Any:
    """Lowers a block's forward pass and, if `backward`, its backward pass."""
    used = slice(None) if call.config.features_only else slice(1)  # nothing uses the Backbone's features

    def forward(trained: Any, frozen: Any, inputs: Any) -> Any:
        block = part_of_level(call.module, call.config)(**dict(call.fields))
        outputs = block.apply({"params": unflatten_dict({**trained, **frozen}, sep="/")}, *inputs)
        return outputs[used] if isinstance(outputs, tuple) else outputs

    def forward_and_backward(trained: Any, frozen: Any, inputs: Any, cotangents: Any) -> Any:
        outputs, pullback = jax.vjp(lambda trained, inputs: forward(trained, frozen, inputs), trained, inputs)
        return outputs, pullback(cotangents)

    outputs = call.outputs[used] if isinstance(call.outputs, tuple) else call.outputs
    trained_at, frozen_at = _parameter_sharding(mesh, trained), _parameter_sharding(mesh, frozen)
    inputs_at, outputs_at = (
        jax.tree.map(functools.partial(_activation_sharding, mesh), tree) for tree in (call.inputs, outputs)
    )
    if not backward:
        step = jax.jit(
            traced_for_mesh(mesh, forward), in_shardings=(trained_at, frozen_at, inputs_at), out_shardings=outputs_at
        )
        return step.lower(trained, frozen, call.inputs)
    step = jax.jit(
        traced_for_mesh(mesh, forward_and_backward),
        in_shardings=(trained_at, frozen_at, inputs_at, outputs_at),
        out_shardings=(outputs_at, (trained_at, inputs_at)),
    )
    return step.lower(trained, frozen, call.inputs, outputs)


def _parameter_sharding(mesh: Mesh, flat: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Returns where parameters {path: shape} are placed; paths may start at the root or within a block."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    return {path: NamedSharding(mesh, parameter_spec(path, a.shape, fsdp, tensor)) for path, a in flat.items()}


def _activation_sharding(mesh: Mesh, a: Any) -> NamedSharding:
    return NamedSharding(mesh, activation_spec(mesh, a.shape, "spatial"))


def _lower_rest(
    loss: Callable[..., Any], calls: Sequence[Call], mesh: Mesh, state: TrainState, batch: Mapping[str, Any], key: Any
) -> Any:
    """Lowers the loss and its gradients with a stand-in for every block."""
    outputs = {call.prefix: call.outputs for call in calls}
    inside = tuple(f"{prefix}/" for prefix in outputs)
    outside = {path: a for path, a in state.trained.items() if not path.startswith(inside)}
    others = {path: a for path, a in state.trained.items() if path not in outside} | state.frozen

    def replace(run: Callable[[], Any], module: nn.Module, config: UNetConfig, prefix: str, inputs: Any) -> Any:
        return _stand_in(inputs, outputs[prefix])

    def loss_without_blocks(*arguments: Any) -> Any:
        with _intercept_blocks(replace):
            return loss(*arguments)

    everywhere = replicated(mesh)
    outside_at, others_at = _parameter_sharding(mesh, outside), _parameter_sharding(mesh, others)
    step = jax.jit(
        traced_for_mesh(mesh, jax.value_and_grad(loss_without_blocks, has_aux=True)),
        in_shardings=(outside_at, others_at, batch_sharding(mesh), everywhere),
        out_shardings=(everywhere, outside_at),
    )
    return step.lower(outside, others, batch, key)


def _stand_in(args: Any, shapes: Any) -> Any:
    """Returns arrays of `shapes` that depend on every input: the features of its first position, everywhere.

    Features rather than a scalar: from a scalar, XLA for TPU would make arrays with the samples along its lanes, 64
    times as large.
    """
    arrays = [a for a in jax.tree.leaves(args) if jnp.issubdtype(a.dtype, jnp.inexact)]
    first = [a[(slice(None), *[0] * (a.ndim - 2))].astype(jnp.float32) for a in arrays]

    def fill(a: Any) -> Any:
        size, *positions, width = a.shape
        features = jnp.asarray(sum(jnp.tile(one, -(-width // one.shape[-1]))[:, :width] for one in first))
        filled = jnp.broadcast_to(features.reshape(size, *[1] * len(positions), width), a.shape)
        return constrain(filled.astype(a.dtype), "spatial")

    return jax.tree.map(fill, shapes)


def _one_of_each(config: ConfigDict, mesh: Mesh, state: TrainState) -> tuple[TrainState, float]:
    """Returns the state of one trained parameter for each shape and placement, and its share of all trained bytes."""
    kinds, total = {}, 0
    for path, placement in _parameter_sharding(mesh, state.trained).items():
        shape = state.trained[path].shape
        shard = math.prod(placement.shard_shape(shape))
        kinds.setdefault((shape, placement), (path, shard))
        total += shard
    params = unflatten_dict({path: state.trained[path] for path, _ in kinds.values()}, sep="/")
    sampled = jax.eval_shape(functools.partial(new_state, config), params)
    return sampled, sum(shard for _, shard in kinds.values()) / total


def _lower_update(config: ConfigDict, mesh: Mesh, state: TrainState, loss_outputs: Any) -> Any:
    """Lowers what a step does with its gradients."""
    placement, everywhere = state_sharding(mesh, state), replicated(mesh)
    loss, metrics = loss_outputs
    step = jax.jit(
        traced_for_mesh(mesh, make_update(config)),
        in_shardings=(placement, placement.trained, everywhere),
        out_shardings=(placement, everywhere),
        donate_argnums=0 if config.train.donate else (),
    )
    return step.lower(state, state.trained, {"loss": loss, **metrics})

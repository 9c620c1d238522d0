"""A training step planned from its parts: every kind of block is compiled once, and what the compiler tells added up.

A step of the full size takes XLA for TPU 20 minutes and 20 GB. Most of it are blocks (resnets, transformers, temporal
modules, resamplings) that occur several times. Here each kind is a program of its own: forward and backward pass with
the gathers and sums of its parameters, placed as in the step. Two more are the rest of the loss, with stand-ins for the
blocks, and the optimizer's update.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding

from emo_jax.distributed.activations import activation_spec, constrain
from emo_jax.distributed.mesh import batch_sharding, replicated, traced_for_mesh
from emo_jax.models.attention import SpatialTransformer
from emo_jax.models.layers import Downsample, ResnetBlock, Upsample
from emo_jax.models.placement import parameter_spec, state_sharding
from emo_jax.models.temporal import MotionModule
from emo_jax.models.unet import UNet, UNetConfig, part_of_level
from emo_jax.planning.compile_stats import joined, told_by_compiler
from emo_jax.progress import Progress
from emo_jax.training.step import make_flat_loss, make_update, new_state

BLOCKS = (ResnetBlock, SpatialTransformer, MotionModule, Downsample, Upsample)


@dataclasses.dataclass(frozen=True)
class Call:
    """A block's run in the forward pass: where its parameters are, how it is made, shapes of what goes in and out."""

    prefix: str
    module: type
    fields: tuple
    config: UNetConfig
    inputs: Any
    outputs: Any


@dataclasses.dataclass(frozen=True)
class Part:
    """A program of the step: `lower()` lowers it, the step has it `count` times in each round of accumulation.

    once: not in each round, but once.
    """

    name: str
    lower: Any
    count: float = 1
    once: bool = False


def parts_of_step(emo, config, mesh, state, batch):
    """The Parts of the config's training step.

    Args:
        state, batch: shapes, of a whole step's batch.
    """
    size = config.train.batch_size // config.train.accumulate
    batch = {name: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for name, a in batch.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = make_flat_loss(emo, config)
    calls, told = _calls(traced_for_mesh(mesh, loss), state.trained, state.frozen, batch, key)
    kinds, learns = {}, False
    for call in calls:
        trained, frozen = (_within(call.prefix, flat) for flat in (state.trained, state.frozen))
        before = _BEFORE[_network(call.config)]
        learns = learns or bool(trained) or any(path.startswith(before) for path in state.trained)
        kind = call.module, call.fields, call.config, _hashable((call.inputs, trained, frozen)), learns
        kinds.setdefault(kind, [(call, trained, frozen, learns), 0])[1] += 1
    parts = []
    for given, count in kinds.values():
        parts.append(Part(_name(given[0], given[-1]), functools.partial(_lower_block, mesh, *given), count))
    outside = functools.partial(_lower_rest, loss, calls, mesh, state, batch, key)
    adds_up = config.train.optimizer.name == "adamw"  # muon's products do not grow as its parameters' bytes
    some, share = _one_of_each(config, mesh, state) if adds_up else (state, 1)
    update = functools.partial(_lower_update, config, mesh, some, told)
    return [*parts, Part("rest of the loss", outside), Part("update", update, 1 / share, once=True)]


def _calls(loss, *arguments):
    """The Calls of a loss, first to last, and the shapes of what it returns."""
    found = []

    def note(run, module, config, prefix, inputs):
        outputs = run()
        fields = tuple((f.name, getattr(module, f.name)) for f in dataclasses.fields(module) if f.name not in _FLAX)
        shapes = (jax.tree.map(_shape, tree) for tree in (inputs, outputs))
        found.append(Call(prefix, type(module), fields, config, *shapes))
        return outputs

    with _each_block(note):
        told = jax.eval_shape(loss, *arguments)
    return found, told


_FLAX = ("parent", "name")  # fields of every module


def _each_block(handle):
    """Within it, a UNet's block that runs gives what handle(run, module, network's config, prefix, inputs) returns."""
    networks = []

    def intercept(run, args, kwargs, context):
        module = context.module
        if isinstance(module, UNet):
            networks.append(module.config)
        is_block = context.method_name == "__call__" and isinstance(module, BLOCKS)
        if not is_block or module.scope.path[0] in _VAE:
            return run(*args, **kwargs)
        prefix = "/".join((_network(networks[-1]), *module.scope.path))
        return handle(functools.partial(run, *args, **kwargs), module, networks[-1], prefix, args)

    return nn.intercept_methods(intercept)


_VAE = ("encoder", "decoder")  # it has resnets too


def _network(config):
    return "reference_net" if config.features_only else "backbone"


_BEFORE = {
    "reference_net": ("reference_net/conv_in/", "reference_net/time_embedding/"),
    "backbone": ("backbone/conv_in/", "backbone/time_embedding/", "face_locator/"),
}
"""Parameters that a network's first block comes after: where none is trained, and no block before, it is not either."""


def _name(call, learns):
    shape = "x".join(map(str, call.inputs[0].shape[1:]))
    short = ", to its feature" if dict(call.fields).get("feature_only") else ""
    return f"{call.module.__name__} {_network(call.config)} {shape}{short}{'' if learns else ', forward'}"


def _shape(a):
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _hashable(tree):
    leaves, structure = jax.tree.flatten(tree)
    return tuple((a.shape, str(a.dtype)) if hasattr(a, "shape") else a for a in leaves), structure


def _within(prefix, flat):
    """Those parameters of {path: shape} that lie in a block, by their paths within it."""
    start = f"{prefix}/"
    return {path.removeprefix(start): a for path, a in flat.items() if path.startswith(start)}


def _lower_block(mesh, call, trained, frozen, learns):
    """A block's forward pass and, where the stage has gradients for it, its backward pass."""
    used = slice(None) if call.config.features_only else slice(1)  # the Backbone's features serve nobody

    def forward(trained, frozen, inputs):
        block = part_of_level(call.module, call.config)(**dict(call.fields))
        outputs = block.apply({"params": unflatten_dict({**trained, **frozen}, sep="/")}, *inputs)
        return outputs[used] if isinstance(outputs, tuple) else outputs

    def both(trained, frozen, inputs, cotangents):
        outputs, backward = jax.vjp(lambda trained, inputs: forward(trained, frozen, inputs), trained, inputs)
        return outputs, backward(cotangents)

    outputs = call.outputs[used] if isinstance(call.outputs, tuple) else call.outputs
    learned, kept = _placed(mesh, trained), _placed(mesh, frozen)
    given, made = (jax.tree.map(functools.partial(_activation, mesh), tree) for tree in (call.inputs, outputs))
    if not learns:
        step = jax.jit(traced_for_mesh(mesh, forward), in_shardings=(learned, kept, given), out_shardings=made)
        return step.lower(trained, frozen, call.inputs)
    step = jax.jit(
        traced_for_mesh(mesh, both),
        in_shardings=(learned, kept, given, made),
        out_shardings=(made, (learned, given)),
    )
    return step.lower(trained, frozen, call.inputs, outputs)


def _placed(mesh, flat):
    """Where parameters {path: shape} lie, a part of the state or a block's own by their paths within it."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    return {path: NamedSharding(mesh, parameter_spec(path, a.shape, fsdp, tensor)) for path, a in flat.items()}


def _activation(mesh, a):
    return NamedSharding(mesh, activation_spec(mesh, a.shape, "spatial"))


def _lower_rest(loss, calls, mesh, state, batch, key):
    """The loss and its gradients without the blocks: in place of each stands an array that depends on its inputs."""
    outputs = {call.prefix: call.outputs for call in calls}
    inside = tuple(f"{prefix}/" for prefix in outputs)
    outside = {path: a for path, a in state.trained.items() if not path.startswith(inside)}
    others = {path: a for path, a in state.trained.items() if path not in outside} | state.frozen

    def replace(run, module, config, prefix, inputs):
        return _stand_in(inputs, outputs[prefix])

    def without(*given):
        with _each_block(replace):
            return loss(*given)

    whole = replicated(mesh)
    step = jax.jit(
        traced_for_mesh(mesh, jax.value_and_grad(without, has_aux=True)),
        in_shardings=(_placed(mesh, outside), _placed(mesh, others), batch_sharding(mesh), whole),
        out_shardings=(whole, _placed(mesh, outside)),
    )
    return step.lower(outside, others, batch, key)


def _stand_in(args, shapes):
    """Arrays of those shapes that depend on every input: the features of its first place, everywhere.

    Of a number in place of features XLA for TPU would make arrays with the samples along its lanes, 64 times as large.
    """
    arrays = [a for a in jax.tree.leaves(args) if jnp.issubdtype(a.dtype, jnp.inexact)]
    first = [a[(slice(None), *[0] * (a.ndim - 2))].astype(jnp.float32) for a in arrays]

    def fill(a):
        size, *places, width = a.shape
        seen = sum(jnp.tile(one, -(-width // one.shape[-1]))[:, :width] for one in first)
        filled = jnp.broadcast_to(seen.reshape(size, *[1] * len(places), width), a.shape)
        return constrain(filled.astype(a.dtype), "spatial")

    return jax.tree.map(fill, shapes)


def _one_of_each(config, mesh, state):
    """(the state of one trained parameter of each shape and place alone, the share of all bytes that those have)."""
    kinds, size = {}, 0
    for path, place in _placed(mesh, state.trained).items():
        shape = state.trained[path].shape
        shard = math.prod(place.shard_shape(shape))
        kinds.setdefault((shape, place), (path, shard))
        size += shard
    params = unflatten_dict({path: state.trained[path] for path, _ in kinds.values()}, sep="/")
    some = jax.eval_shape(functools.partial(new_state, config), params)
    return some, sum(shard for _, shard in kinds.values()) / size


def _lower_update(config, mesh, state, told):
    """What a step does with its gradients."""
    placed, whole = state_sharding(mesh, state), replicated(mesh)
    loss, metrics = told
    step = jax.jit(
        traced_for_mesh(mesh, make_update(config)),
        in_shardings=(placed, placed.trained, whole),
        out_shardings=(placed, whole),
        donate_argnums=0 if config.train.donate else (),
    )
    return step.lower(state, state.trained, {"loss": loss, **metrics})


def compose(parts, rounds, topology, device):
    """What the compiler tells of the Parts of a step of so many rounds, added up as if it were one program.

    `temporaries` are those of the part that has most of them, `accessed` is of a round, `parts` has a row of each,
    `compiled` is how many were not in the cache, `peak` None (and `why` the reason) where one of them alone is too
    much for a chip.
    """
    started = time.monotonic()
    told, seconds = _compile_all(parts, topology, device), time.monotonic() - started
    rows, found = [], []
    for part, one in zip(parts, told, strict=True):
        if one["peak"] is None:
            return dict(peak=None, accessed=None, collectives=[], why=f"{part.name}: {one['why']}", cached=False)
        for row in one["collectives"]:
            sums = {name: round(part.count * row[name]) for name in ("count", "bytes", "sent")}
            rows.append(row | sums | dict(looped=row["looped"] or (rounds > 1 and not part.once)))
        accessed = (one["accessed"] or 0) / (rounds if part.once else 1)
        found.append(dict(name=part.name, count=part.count, temporaries=one["temporaries"], accessed=accessed))
    return dict(
        temporaries=max(row["temporaries"] for row in found),
        accessed=sum(row["count"] * row["accessed"] for row in found),
        collectives=joined(rows), parts=found, seconds=round(seconds, 1),
        compiler=told[0]["compiler"], cached=all(one["cached"] for one in told),
        compiled=sum(not one["cached"] for one in told),
    )  # fmt: skip


def _compile_all(parts, topology, device):
    """What the compiler tells of each, in their order; as many at once as there are cores."""
    with Progress(len(parts), "plan: compiling", "part", every=20) as progress:
        pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        ahead = []
        try:
            for part in parts:
                ahead.append(pool.submit(told_by_compiler, part.lower(), topology, device))
                ahead[-1].add_done_callback(lambda _: progress.add())
            return [one.result() for one in ahead]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

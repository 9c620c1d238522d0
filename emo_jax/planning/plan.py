"""`emo plan`: whether a program fits the chips of a TPU slice, and how fast it can be there, before it is paid for.

emo plan --config configs/base.py:video --topology v5e:4x4 --config.train.mesh.fsdp=16 --config.train.mesh.data=1 \\
    --config.train.batch_size=16

compiles the training step of the config's stage for that slice, by the compiler of its chips (extra: tpu), without a
chip and without a number of the model in memory; `--program denoise` one guided denoising step of `emo generate`.
With `--composed` the step is not compiled in one, which takes 20 minutes and 20 GB at full size, but every kind of its
blocks once, and what they need is added up. What shapes alone tell is printed within a minute, and is all with
`--no-compile`. What was compiled once is read from the cache. Exit status 1: it does not fit.
"""

import dataclasses
import functools
import json
import math
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from emo_jax.data.pipeline import element_spec
from emo_jax.diffusion.guidance import guidance_mode
from emo_jax.distributed.devices import chip_of
from emo_jax.distributed.mesh import batch_sharding, check_mesh, make_mesh, replicated, traced_for_mesh
from emo_jax.files import write_text
from emo_jax.generation.sampler import guided_denoiser, mesh_for
from emo_jax.models.attention import Conditions
from emo_jax.models.emo import build
from emo_jax.models.placement import state_sharding
from emo_jax.ops.attention import traced_for
from emo_jax.planning.compile_stats import EFFORT, SLICES_EFFORT, told_by_compiler
from emo_jax.planning.composed import compose, parts_of_step
from emo_jax.planning.report import compiled_lines, counted_lines
from emo_jax.planning.roofline import roofline
from emo_jax.planning.topologies import find_devices
from emo_jax.progress import meanwhile
from emo_jax.training.flops import computed_flops, jaxpr_flops, step_activations, step_flops
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import make_step, new_state


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that was counted: `lower()` lowers it whole, `parts()` makes its composed.Parts, if it has any."""

    lower: Any
    parts: Any = None


def run_plan(
    config: ConfigDict,
    topology: str,
    slices: int = 1,
    *,
    program: str = "step",
    composed: bool = False,
    compile: bool = True,
    output: str | None = None,
) -> int:
    """Plans a program for a topology and prints what it needs.

    Args:
        config: the config.
        topology: such as "v5e:4x4", "cpu:8" or "gpu:8".
        slices: number of TPU slices of that topology.
        program: a key of PROGRAMS.
        composed: whether to compile each kind of block once and add up what they need.
        compile: whether to compile at all, or to print only what follows from shapes.
        output: a JSON file to write as well.

    Returns:
        The exit status: 1 if the program does not fit, else 0.

    Raises:
        ValueError: an unknown topology, or settings that do not go together.
    """
    if slices > 1 and program != "step":
        raise ValueError(f"--slices is {slices}; the program {program} runs on one slice")
    if composed and (program != "step" or config.train.stage == "vae"):
        what = f"the program {program}" if program != "step" else "stage vae"
        raise ValueError(f"--composed needs the step of a stage with UNets; leave it out for {what}")
    # Locations of traces would put the path of this checkout into a kernel's text, and so into its cache key.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    devices = find_devices(topology, slices)
    result, counted = count(config, devices, topology, program)
    print("\n".join(counted_lines(result)), flush=True)
    if compile and result["fits"] is None:
        result = compiled(result, counted, devices[0], composed)
        print("\n".join(compiled_lines(result)))
    if output:
        write_text(output, json.dumps(result, indent=1) + "\n")
    return 0 if result["fits"] is not False else 1


def count(config, devices, topology, program="step"):
    """What shapes tell of one program on the devices, and the Program.

    Returns:
        (dict, Program). Its `bytes` are those that a chip holds, by part, `held` their sum, `flops` the useful ones of
        all chips, `computed` those and what memory has them do anew, `activations` the bytes that a chip keeps for the
        backward pass, `rounds` how often the program goes through the networks. `fits` is False where the parts alone
        are too much for a chip, else None.
    """
    with _told("tracing"):
        made, sizes, work = PROGRAMS[program](config, devices)
    kind, memory = devices[0].device_kind, _memory(devices[0])
    found = dict(program=program, stage=config.train.stage, topology=topology, kind=kind, memory=memory) | work
    found["slices"] = len({getattr(device, "slice_index", None) for device in devices})
    found["chips"] = math.prod(found["mesh"].values())
    found["idle"] = len(devices) - found["chips"]
    found["bytes"] = sizes
    found["held"] = sum(size["held"] for size in sizes.values())
    found["fits"] = False if memory is not None and found["held"] > memory else None
    if limits := roofline(kind, found["chips"], found["flops"], found["computed"], 0, 0):
        found["roofline"] = dict(compute=limits.compute)
    return found, made


def compiled(found, program, device, composed=False):
    """The same with what the compiler tells: the `peak` of a chip's memory, collectives, and the Roofline.

    `peak` is the compiler's and the weights that the program does not read, `unread`: other programs do. Where it is
    `composed` it is the sum of what a chip holds, activations, gradients, and temporaries of the part with most, and
    `fits` is None where that is too near to the chip's memory to tell.
    """
    found = found | (_composed if composed else _whole)(program, found, device)
    if found["peak"] is not None:
        found["peak"] += found.get("unread", 0)
    memory, kind = found["memory"], found["kind"]
    found["fits"] = None if memory is None else found["peak"] is not None and found["peak"] <= memory
    if composed and found["peak"] is not None and memory and memory / SPREAD < found["peak"] < memory * SPREAD:
        found["fits"] = None
    sent = {False: 0, True: 0}  # within the slice, and to others
    for row in found["collectives"]:  # of which the compiler counts a loop's once
        sent[row["network"]] += row["sent"] * (found["rounds"] if row["looped"] else 1)
    moved = found["rounds"] * (found["accessed"] or 0), *sent.values()
    limits = roofline(kind, found["chips"], found["flops"], found["computed"], *moved)
    if found["accessed"] and limits:
        found["roofline"] = dict(compute=limits.compute, memory=limits.memory, links=limits.links)
        if sent[True]:
            found["roofline"]["network"] = limits.network or None
        for name in ("overlapped", "in_turn"):
            seconds = getattr(limits, name)
            row = dict(seconds=seconds, mfu=limits.utilisation(seconds), clips=found["clips"] / seconds)
            if "input" in found:
                row["input"] = found["input"] / seconds
            found["roofline"][name] = row
    return found


def _memory(device):
    """Bytes that JAX may take of a device: what it tells itself, else the data sheet's; None where neither is known."""
    stats = device.memory_stats() if device.platform == "gpu" else None  # a TPU's are descriptions alone
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.memory


def _step(config, devices):
    """(Program of the training step, bytes a chip holds by part, what all chips have to do)."""
    stage, train = get_stage(config.train.stage), config.train
    emo = build(config)
    mesh = make_mesh(**train.mesh, clips=stage.video, devices=list(devices))
    check_mesh(mesh, config)
    state = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    placed = state_sharding(mesh, state)
    spec = element_spec(clip_of(config, stage), train.batch_size)
    batch = {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()}
    shards = {name: jax.tree.map(lambda _: batch_sharding(mesh), array) for name, array in batch.items()}
    parts = {"batch": (batch, shards)}
    for name in ("trained", "frozen", "ema", "opt_state"):
        parts[name] = getattr(state, name), getattr(placed, name)
    sizes = {name: dict(held=_held(*part), whole=_held(part[0])) for name, part in parts.items()}
    shares = math.prod(mesh.shape[name] for name in ("data", "fsdp", "frame")) * train.accumulate
    with traced_for(devices[0].platform):
        kept = step_activations(emo, config, state, batch) * train.batch_size / shares
    work = dict(mesh=dict(mesh.shape), clips=train.batch_size, input=_held(batch), activations=kept)
    work["rounds"] = train.accumulate
    work["second"] = 0 if train.donate else sum(sizes[name]["held"] for name in ("trained", "ema", "opt_state"))
    work["flops"] = step_flops(emo, config, state, batch)
    work["computed"] = computed_flops(emo, config, state, batch)
    lower = functools.partial(make_step(emo, config, mesh, state).lower, state, batch)
    return Program(lower, functools.partial(parts_of_step, emo, config, mesh, state, batch)), sizes, work


def _denoise(config, devices):
    """The same of one guided denoising step of one clip, its passes and frames shared over the devices."""
    emo = build(config)
    f, n, m = config.clip.frames, config.clip.motion_frames, config.clip.audio_window
    scales = config.sampling.reference_scale, config.sampling.audio_scale
    mode = guidance_mode(*scales)
    mesh = mesh_for(mode, f, list(devices)) or make_mesh(devices=list(devices)[:1])
    dtype = jnp.dtype(config.model.dtype)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype if a.shape else a.dtype), emo.abstract_params())
    spec = {name: jax.ShapeDtypeStruct(*array) for name, array in element_spec(config.clip, 1).items()}

    def known(params, batch):
        images = jnp.concatenate([batch["reference"][:, None], batch["motion"]], axis=1)
        features = emo.reference_features(params, emo.encode(params, images))
        heard = emo.audio_features(params, batch["audio"], f + 2 * m)
        sees = config.model.reference_attention != "off"
        return Conditions(
            reference=jax.tree.map(lambda a: a[:, :1], features) if sees else None,
            motion=jax.tree.map(lambda a: a[:, 1:], features) if n else None,
            audio=emo.audio_tokens(params, heard),
            speed=emo.speed_features(params, batch["speed"]),
            location=emo.location(params, batch["mask"]),
        )

    def step(params, x, t, conditions):
        return guided_denoiser(emo, params, conditions, mode, scales)(x, t)

    conditions = jax.eval_shape(known, params, spec)
    latents = jax.ShapeDtypeStruct((1, f, *emo.latent_shape), np.float32)
    times = jax.ShapeDtypeStruct((1,), np.int32)
    given = params, latents, times, conditions
    with traced_for("cpu"):
        jaxpr = jax.make_jaxpr(step)(*given).jaxpr
    whole = replicated(mesh)
    jitted = jax.jit(traced_for_mesh(mesh, step), in_shardings=whole, out_shardings=whole)
    sizes = {
        name: dict(held=_held(tree), whole=_held(tree))
        for name, tree in (("weights", params), ("conditions", conditions))  # weights of all parts, used here or not
    }
    flops = jaxpr_flops(jaxpr)
    work = dict(mesh=dict(mesh.shape), clips=1, rounds=1, flops=flops, computed=flops)
    work["unread"] = _unread(jaxpr, params)
    return Program(functools.partial(jitted.lower, *given)), sizes, work


SPREAD = 1.4
"""Error of a composed sum: complete steps had peaks of 0.8 (small, on CPUs) to 1.3 times it (docs/benchmarks.md)."""
PROGRAMS = {"step": _step, "denoise": _denoise}
"""{name: function of (config, devices)}."""


def _unread(jaxpr, first):
    """Bytes of those arrays of a program's first argument that it does not look at."""
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    leaves = jax.tree.leaves(first)
    return _held([leaf for leaf, variable in zip(leaves, jaxpr.invars, strict=False) if id(variable) not in read])


def _held(tree, placed=None):
    """Bytes of a tree of shapes, those on one device if it is told how they are placed."""
    leaves = jax.tree.leaves(tree)
    spots = jax.tree.leaves(placed) if placed is not None else [None] * len(leaves)
    shapes = [a.shape if spot is None else spot.shard_shape(a.shape) for a, spot in zip(leaves, spots, strict=True)]
    return sum(math.prod(shape) * jnp.dtype(a.dtype).itemsize for shape, a in zip(shapes, leaves, strict=True))


def _whole(program, found, device):
    with _told("tracing"), traced_for(device.platform):
        lowered = program.lower()
    with _told("compiling"):
        return told_by_compiler(lowered, found["topology"], device, EFFORT if found["slices"] == 1 else SLICES_EFFORT)


def _composed(program, found, device):
    with traced_for(device.platform):
        with _told("tracing"):
            parts = program.parts()
        told = compose(parts, found["rounds"], found["topology"], device)
    if "temporaries" in told:
        gradients = found["bytes"]["trained"]["held"]
        told["gradients"] = gradients
        told["peak"] = found["held"] + found["activations"] + gradients + found["second"] + told["temporaries"]
        if found["rounds"] > 1:
            told["accessed"] += 3 * gradients  # each round's are added to the others'
    return told


def _told(what):
    """Within it, every half minute says that it is still at it."""
    started = time.monotonic()

    def tell():
        print(f"plan: {what}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    return meanwhile(tell, every=30)

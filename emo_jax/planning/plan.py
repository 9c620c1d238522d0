"""Plans a training or denoising step: its memory and FLOPs from shapes, and what the compiler and the roofline add.

Nothing is placed on a device and no weight is computed. `count_program` traces; `compile_program` compiles for the
chips of the topology, in one piece or composed of parts (see `composed`).
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from ml_collections import ConfigDict, FrozenConfigDict

from emo_jax.data.pipeline import element_spec
from emo_jax.distributed.devices import chip_of
from emo_jax.distributed.mesh import batch_sharding, check_mesh, make_mesh, replicated, traced_for_mesh
from emo_jax.files import write_text
from emo_jax.generation.guided import guidance_options, guided_denoiser, mesh_for, mode_of, tiles_bank
from emo_jax.models.conditions import Conditions
from emo_jax.models.emo import build
from emo_jax.models.frame_latents import encode_clips
from emo_jax.models.placement import state_sharding
from emo_jax.ops.attention import traced_for
from emo_jax.planning.compile_stats import EFFORT, SLICES_EFFORT, compile_stats
from emo_jax.planning.composed import Part, compose, parts_of_step
from emo_jax.planning.report import compiled_lines, counted_lines
from emo_jax.planning.roofline import roofline
from emo_jax.planning.topologies import Device, describe_devices, find_devices
from emo_jax.progress import report_waiting
from emo_jax.training.flops import computed_flops, jaxpr_flops, step_activations, step_flops
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import make_step, new_state

Plan = dict[str, Any]
"""Memory, FLOPs and limits of a program on its devices, as `emo plan --output` writes them; see `count_program`."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that has been counted.

    Attributes:
        lower: lowers it in one piece.
        parts: returns the parts it is composed of; None if it cannot be composed.
    """

    lower: Callable[[], Any]
    parts: Callable[[], list[Part]] | None = None


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
    if composed and (program != "step" or config.train.stage in ("vae", "distill")):
        what = f"the program {program}" if program != "step" else f"stage {config.train.stage}"
        raise ValueError(f"--composed needs the step of stage image, video or speed; leave it out for {what}")
    # Locations of traces would put the path of this checkout into a kernel's text, and so into its cache key.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    devices = find_devices(topology, slices) if compile else describe_devices(topology, slices)
    result, counted = count_program(config, devices, topology, program)
    print("\n".join(counted_lines(result)), flush=True)
    if compile and result["fits"] is None:
        result = compile_program(result, counted, devices[0], composed)
        print("\n".join(compiled_lines(result)))
    if output:
        write_text(output, json.dumps(result, indent=1) + "\n")
    return 0 if result["fits"] is not False else 1


def count_program(
    config: ConfigDict, devices: Sequence[Device], topology: str, program: str = "step"
) -> tuple[Plan, Program]:
    """Counts memory and FLOPs of a program from shapes.

    Args:
        config: the full config.
        devices: the devices of the topology.
        topology: its name.
        program: one of PROGRAMS.

    Returns:
        The plan and the program. In the plan, `bytes` has the bytes of each kind of array, on a chip (`held`) and on
        all chips (`total`); `held` is their sum on a chip; `activations` the bytes that a chip keeps for the backward
        pass; `flops` the useful FLOPs of all chips, `computed` those with recomputation; `rounds` how often the
        program runs the networks; `idle` the number of unused chips. `fits` is False if `held` exceeds a chip's
        memory, otherwise None.
    """
    config = FrozenConfigDict(config)
    with report_waiting("plan: tracing"):
        counted, sizes, work = PROGRAMS[program](config, devices)
    kind, memory = devices[0].device_kind, _memory(devices[0])
    plan: Plan = dict(program=program, stage=config.train.stage, topology=topology, kind=kind, memory=memory)
    plan |= work
    plan["slices"] = len({getattr(device, "slice_index", None) for device in devices})
    plan["chips"] = math.prod(plan["mesh"].values())
    plan["idle"] = len(devices) - plan["chips"]
    plan["bytes"] = sizes
    plan["held"] = sum(size["held"] for size in sizes.values())
    plan["fits"] = False if memory is not None and plan["held"] > memory else None
    if limits := roofline(kind, plan["chips"], plan["flops"], plan["computed"], 0, 0):
        plan["roofline"] = dict(compute=limits.compute)
    return plan, counted


def compile_program(plan: Plan, program: Program, device: Device, composed: bool = False) -> Plan:
    """Compiles a program and returns the plan with what the compiler reports, and the roofline.

    Args:
        plan: of `count_program`.
        program: of `count_program`.
        device: one of the devices.
        composed: compile the parts and add them up, instead of the program in one piece.

    Returns:
        The plan with the fields of `compile_stats` and `roofline`. `peak` includes `unread`, the weights that the
        program does not read but that stay in memory for other programs. A composed peak is the sum of what a chip
        holds, activations, gradients, and the temporaries of the largest part; `fits` is then None if that is too
        close to the chip's memory to decide.
    """
    plan = plan | (_compile_parts if composed else _compile_program)(program, plan, device)
    if plan["peak"] is not None:
        plan["peak"] += plan.get("unread", 0)
    plan["fits"] = _fits(plan["peak"], plan["memory"], composed)
    sent = {False: 0, True: 0}  # bytes within the slice, and to other slices
    for row in plan["collectives"]:  # the compiler counts the body of a loop once
        sent[row["network"]] += row["sent"] * (plan["rounds"] if row["looped"] else 1)
    traffic = plan["rounds"] * (plan["accessed"] or 0), *sent.values()
    limits = roofline(plan["kind"], plan["chips"], plan["flops"], plan["computed"], *traffic)
    if not (plan["accessed"] and limits):
        return plan
    bounds: dict[str, Any] = dict(compute=limits.compute, memory=limits.memory, links=limits.links)
    if sent[True]:
        bounds["network"] = limits.network or None
    for name in ("overlapped", "in_turn"):
        seconds = getattr(limits, name)
        row = dict(seconds=seconds, mfu=limits.utilisation(seconds), clips=plan["clips"] / seconds)
        if "input" in plan:
            row["input"] = plan["input"] / seconds
        bounds[name] = row
    return plan | dict(roofline=bounds)


def _fits(peak: float | None, memory: float | None, composed: bool) -> bool | None:
    if memory is None:
        return None
    if composed and peak is not None and memory / SPREAD < peak < memory * SPREAD:
        return None
    return peak is not None and peak <= memory


def _memory(device: Device) -> float | None:
    """Returns the bytes of a device that JAX may use: as it reports, else the data sheet's, else None."""
    stats = device.memory_stats() if device.platform == "gpu" else None  # a TPU is only described
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.memory


def _step(config: ConfigDict, devices: Sequence[Device]) -> tuple[Program, dict[str, Any], dict[str, Any]]:
    """Returns the training step, its bytes by kind of array, and the other fields of the plan."""
    stage, train = get_stage(config.train.stage), config.train
    emo = build(config)
    mesh = make_mesh(**train.mesh, clips=stage.video, devices=list(devices))
    check_mesh(mesh, config)
    state = jax.eval_shape(functools.partial(new_state, config), emo.abstract_params())
    placement = state_sharding(mesh, state)
    spec = element_spec(clip_of(config, stage), train.batch_size)
    batch = {name: jax.ShapeDtypeStruct(*array) for name, array in spec.items()}
    batch_placement = {name: jax.tree.map(lambda _: batch_sharding(mesh), array) for name, array in batch.items()}
    arrays = {"batch": (batch, batch_placement)}
    for name in ("trained", "frozen", "ema", "opt_state"):
        arrays[name] = getattr(state, name), getattr(placement, name)
    sizes = {name: dict(held=_bytes(*pair), total=_bytes(pair[0])) for name, pair in arrays.items()}
    shares = math.prod(mesh.shape[name] for name in ("data", "fsdp", "frame")) * train.accumulate
    with traced_for(devices[0].platform):
        activations = step_activations(emo, config, state, batch) * train.batch_size / shares
    work: dict[str, Any] = dict(mesh=dict(mesh.shape), clips=train.batch_size, input=_bytes(batch))
    work |= dict(activations=activations, rounds=train.accumulate)
    # Without donation the old and the new state are in memory at the same time.
    work["second"] = 0 if train.donate else sum(sizes[name]["held"] for name in ("trained", "ema", "opt_state"))
    work["flops"] = step_flops(emo, config, state, batch)
    work["computed"] = computed_flops(emo, config, state, batch)
    lower = functools.partial(make_step(emo, config, mesh, state).lower, state, batch)
    return Program(lower, functools.partial(parts_of_step, emo, config, mesh, state, batch)), sizes, work


def _denoise(config: ConfigDict, devices: Sequence[Device]) -> tuple[Program, dict[str, Any], dict[str, Any]]:
    """Returns the same of a guided denoising step of one clip, its passes and frames split over the devices."""
    emo = build(config)
    f, m = config.clip.frames, config.clip.audio_window
    scales = config.sampling.reference_scale, config.sampling.audio_scale
    mode = mode_of(config.model, scales)
    mesh = mesh_for(mode, f, list(devices)) or make_mesh(devices=list(devices)[:1])
    dtype = jnp.dtype(config.model.dtype)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype if a.shape else a.dtype), emo.abstract_params())
    spec = {name: jax.ShapeDtypeStruct(*array) for name, array in element_spec(config.clip, 1).items()}

    def known(params, batch):
        field = batch["field"][:, : config.clip.motion_frames] if "field" in batch else None
        reference, latents = encode_clips(emo, params, batch["reference"], batch["motion"], field)
        return emo.conditions(
            params,
            reference=reference,
            motion=latents[:, 1:],
            audio=emo.audio_features(params, batch["audio"], f + 2 * m),
            speed=batch["speed"],
            mask=batch["mask"],
            tiled=tiles_bank(config.sampling, mode),
        )

    def step(params: Any, x: jax.Array, t: jax.Array, conditions: Conditions) -> jax.Array:
        rescale = guidance_options(config.sampling, config.diffusion.train_steps)["rescale"]
        return guided_denoiser(emo, params, conditions, mode, scales, rescale=rescale)(x, t)

    conditions = jax.eval_shape(known, params, spec)
    latents = jax.ShapeDtypeStruct((1, f, *emo.latent_shape), np.float32)
    times = jax.ShapeDtypeStruct((1,), np.int32)
    arguments = params, latents, times, conditions
    with traced_for("cpu"):
        jaxpr = jax.make_jaxpr(step)(*arguments).jaxpr
    everywhere = replicated(mesh)
    jitted = jax.jit(traced_for_mesh(mesh, step), in_shardings=everywhere, out_shardings=everywhere)
    sizes = {  # weights of all parts, whether this program reads them or not
        name: dict(held=_bytes(tree), total=_bytes(tree))
        for name, tree in (("weights", params), ("conditions", conditions))
    }
    flops = jaxpr_flops(jaxpr)
    unread = _unread_bytes(jaxpr, params)
    work = dict(mesh=dict(mesh.shape), clips=1, rounds=1, flops=flops, computed=flops, unread=unread)
    return Program(functools.partial(jitted.lower, *arguments)), sizes, work


SPREAD = 1.4
"""How far off a composed peak may be: 0.8 (small steps, on CPUs) to 1.3 times the step in one piece
(docs/benchmarks.md)."""
PROGRAMS: Mapping[str, Callable[..., tuple[Program, dict[str, Any], dict[str, Any]]]] = {
    "step": _step,
    "denoise": _denoise,
}
"""The programs that can be planned: {name: function of (config, devices)}."""


def _unread_bytes(jaxpr: Jaxpr, first: Any) -> int:
    """Counts the bytes of those arrays in a program's first argument that it does not read."""
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    leaves = jax.tree.leaves(first)
    return _bytes([leaf for leaf, variable in zip(leaves, jaxpr.invars, strict=False) if id(variable) not in read])


def _bytes(tree: Any, placement: Any = None) -> int:
    """Counts the bytes of a tree of shapes; those on one device if a tree of shardings is given."""
    leaves = jax.tree.leaves(tree)
    shardings = jax.tree.leaves(placement) if placement is not None else [None] * len(leaves)
    pairs = zip(leaves, shardings, strict=True)
    shapes = [a.shape if sharding is None else sharding.shard_shape(a.shape) for a, sharding in pairs]
    return sum(math.prod(shape) * jnp.dtype(a.dtype).itemsize for shape, a in zip(shapes, leaves, strict=True))


def _compile_program(program: Program, plan: Plan, device: Device) -> dict[str, Any]:
    with report_waiting("plan: tracing"), traced_for(device.platform):
        lowered = program.lower()
    with report_waiting("plan: compiling"):
        return compile_stats(lowered, plan["topology"], device, EFFORT if plan["slices"] == 1 else SLICES_EFFORT)


def _compile_parts(program: Program, plan: Plan, device: Device) -> dict[str, Any]:
    assert program.parts is not None
    with traced_for(device.platform):
        with report_waiting("plan: tracing"):
            parts = program.parts()
        stats = compose(parts, plan["rounds"], plan["topology"], device)
    if "temporaries" in stats:
        gradients = plan["bytes"]["trained"]["held"]
        stats["gradients"] = gradients
        stats["peak"] = plan["held"] + plan["activations"] + gradients + plan["second"] + stats["temporaries"]
        if plan["rounds"] > 1:
            stats["accessed"] += 3 * gradients  # reading two and writing one, to add a round's to the sum
    return stats

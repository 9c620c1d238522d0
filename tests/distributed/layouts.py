"""Comparisons of eight devices, in each layout, with one device; run in a process with eight CPU devices."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.distributed.activations import constrain
from emo_jax.distributed.mesh import batch_sharding, check_mesh, make_mesh, place_batch, replicated, traced_for_mesh
from emo_jax.distributed.parameters import SMALL
from emo_jax.models.placement import state_sharding

LAYOUTS = {
    "data 8": dict(data=8),
    "fsdp 8": dict(data=1, fsdp=8),
    "data 2 fsdp 4": dict(data=2, fsdp=4),
    "data 2 fsdp 2 frame 2": dict(data=2, fsdp=2, frame=2),
    "data 4 tensor 2": dict(data=4, tensor=2),
    "data 2 frame 4": dict(data=2, frame=4),
    "fsdp 2 frame 2 tensor 2": dict(data=1, fsdp=2, frame=2, tensor=2),
}


def report(call):
    """Returns the result of a call, such as "steps('vae', ['data 8'])", in a process with eight devices."""
    code = f"import json; from tests.distributed import layouts; print('REPORT', json.dumps(layouts.{call}))"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("REPORT")]
    return json.loads(line.removeprefix("REPORT"))


def smallest_config(stage):
    """Returns `training_config` with a UNet of one level and a VAE of two, which are compiled for each layout."""
    from tests.steps import training_config

    config = training_config(stage)
    config.model.unet.update(channels=(16,), attention=(True,))
    config.model.vae.update(channels=(8, 16), decoder_channels=(8, 16))
    config.model.locator_channels = (4, 4, 8)
    config.clip.image_size = (32, 32)
    return config


def steps(stage, names):
    """Returns {layout: distances of two training steps from those on one device, and bytes of the collectives}."""
    from emo_jax.models.emo import build
    from emo_jax.training.stages import get_stage
    from emo_jax.training.step import make_step, new_state
    from tests.steps import FAST, fixed_batch, random_params

    config = smallest_config(stage)
    config.train.update(batch_size=8)
    config.train.optimizer.update(learning_rate=1e-3, clip_norm=1e3)
    emo = build(config)
    start = jax.device_get(new_state(config, random_params(emo)))

    def run(mesh):
        state = jax.device_put(start, state_sharding(mesh, start))
        batches = [place_batch(mesh, fixed_batch(config, 8, seed)) for seed in (0, 1)]
        step = make_step(emo, config, mesh, state).lower(state, batches[0]).compile(compiler_options=FAST)
        losses = []
        for batch in batches:
            state, result = step(state, batch)
            losses.append([float(result["loss"]), float(result["grad_norm"])])
        return state, losses, step

    reference, losses, _ = run(make_mesh(devices=jax.devices()[:1]))
    reference, results = jax.device_get(reference), {}
    for name in names:
        mesh = make_mesh(**LAYOUTS[name], clips=get_stage(stage).video)
        check_mesh(mesh, config)
        state, layout_losses, step = run(mesh)
        least = SMALL if mesh.shape["fsdp"] > 1 else 1
        results[name] = dict(
            losses=float(np.abs(np.array(layout_losses) / np.array(losses) - 1).max()),
            share=_share(state.trained, least), optimizer_share=_share(state.opt_state, least),
        )  # fmt: skip
        after = jax.device_get(state)
        results[name] |= {
            "gradients": _distance(_moments(after), _moments(reference)),
            "parameters": _distance(after.trained, reference.trained, start.trained),
            "average": _distance(after.ema, reference.ema, start.ema),
            "frozen": _distance(after.frozen, reference.frozen),
        }
        parameters = state.trained | state.frozen
        results[name] |= collectives(step.as_text()) | dict(bytes=sum(a.nbytes for a in parameters.values()))
        results[name]["largest"] = max(a.nbytes for a in parameters.values())
    return results


def level(names):
    """As `steps`, for the gradients of one level of the UNet with all parts."""
    from emo_jax.models.conditions import Conditions
    from emo_jax.models.unet import Block, UNetConfig

    config = UNetConfig((16,), (True,), 1, 2, 8, 4, reference="cross", audio=True, temporal=True, speed=True)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    conditions = Conditions(
        reference={"level.0": draw(8, 1, 4, 4, 16)}, motion={"level.0": draw(8, 2, 4, 4, 16)},
        audio=draw(8, 4, 2, 16), speed=draw(8, 6, 16),
    )  # fmt: skip
    x, temb = draw(8, 4, 4, 4, 16), draw(8, 1, 32)

    def block():
        return Block(config, "level", 16, 1, True, "down")

    def loss(params, x, temb, conditions):
        variables = {"params": unflatten_dict(params, sep="/")}
        return (block().apply(variables, x, temb, conditions)[0] ** 2).mean()

    shapes = jax.eval_shape(lambda: block().init(jax.random.key(0), x, temb, conditions)["params"])
    params = {path: 0.3 * draw(*a.shape) for path, a in flatten_dict(shapes, sep="/").items()}

    return _compare(loss, params, (x, temb, conditions), names)


def vectors(names):
    """As `level`, for layers on one vector per sample or frame; also returns the bytes of their parameters."""
    import flax.linen as nn

    from emo_jax.models.audio_projector import AudioProjector
    from emo_jax.models.layers import ResnetBlock, TimestepEmbedding

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, timesteps, features, x):
            temb = TimestepEmbedding(16)(timesteps)[:, None]
            return AudioProjector(2, 32, 16, 1)(features), ResnetBlock(16, groups=4)(x, temb)

    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((8,), (8, 6, 2, 64), (8, 4, 4, 4, 16))]
    shapes = flatten_dict(jax.eval_shape(Layers().init, jax.random.key(0), *inputs)["params"], sep="/")
    params = {path: 0.3 * rng.normal(size=a.shape).astype(np.float32) for path, a in shapes.items()}

    def loss(params, *inputs):
        outputs = Layers().apply({"params": unflatten_dict(params, sep="/")}, *inputs)
        return sum((a**2).mean() for a in outputs)

    sizes = {path: a.nbytes for path, a in params.items()}
    return {name: result | dict(bytes=sizes) for name, result in _compare(loss, params, inputs, names).items()}


def _compare(loss, params, inputs, names):
    """Returns {layout: distances of loss(params, *inputs) and its gradients from one device's, and collectives}."""
    from tests.steps import FAST

    def run(mesh):
        flat, batch = state_sharding(mesh, params), batch_sharding(mesh)
        placed = flat, *(batch for _ in inputs)
        step = jax.jit(
            traced_for_mesh(mesh, jax.value_and_grad(loss)), in_shardings=placed,
            out_shardings=(replicated(mesh), flat),
        )  # fmt: skip
        step = step.lower(params, *inputs).compile(compiler_options=FAST)
        value, gradients = jax.device_get(step(*jax.device_put((params, *inputs), placed)))
        return value, gradients, step.as_text()

    value, gradients, _ = run(make_mesh(devices=jax.devices()[:1]))
    results = {}
    for name in names:
        layout_value, layout_gradients, program = run(make_mesh(**LAYOUTS[name]))
        error = abs(float(layout_value / value) - 1)
        results[name] = dict(losses=error, gradients=_distance(layout_gradients, gradients)) | collectives(program)
    return results


def sampling(relative=""):
    """Compares a guided video of two segments, generated on all devices, with that of one device.

    Args:
        relative: whose parts and settings to use: "hallo", "echomimic" (three windows), or "" for EMO's.
    """
    from emo_jax.generation.guided import mesh_for
    from emo_jax.generation.window_sampler import make_sampler
    from emo_jax.models.emo import build
    from tests.small import WAV2VEC2, WHISPER, as_echomimic, as_hallo
    from tests.steps import random_params

    config = smallest_config("speed")
    if relative == "hallo":
        config = as_hallo(config)
        config.model.audio.update(WAV2VEC2 | dict(timing="frames"))
    if relative == "echomimic":
        config.model.audio.update(WHISPER)
        config = as_echomimic(config)
        config.sampling.overlap = 1
    config.sampling.update(clips=1, reference_scale=2.0, audio_scale=2.0)
    emo, rng = build(config), np.random.default_rng(0)
    portrait = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    mask, sound = np.zeros((1, 32, 32, 1), np.uint8), rng.uniform(-0.2, 0.2, (1, 8 * 640)).astype(np.float32)
    mask[:, 6:28, 9:25] = 1
    videos, mesh = [], mesh_for("joint", config.clip.frames)
    for devices in (None, mesh):
        sampler = make_sampler(emo, random_params(emo), config.sampling, mesh=devices)
        frames = sampler.stream(portrait, mask, sound, key=jax.random.key(0))
        videos.append(np.concatenate(list(frames), axis=1).astype(int))
    return dict(
        mesh=dict(mesh.shape), programs=sampler.compilations(), steps=int(np.abs(videos[0] - videos[1]).max()),
        spread=float(videos[0].std()),
    )  # fmt: skip


def collectives(program):
    """Returns {collective: bytes of the result of each one} of a compiled program; XLA may combine several."""
    from emo_jax.planning.roofline import arrays

    sizes = {kind: [] for kind in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")}
    for line in re.finditer(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)(-start)?\(.*", program):
        if "/fft" in line[0]:  # mel spectra, which XLA's partitioner cannot split
            continue
        sizes[line[2]].append(sum(size for _, size in arrays(line[1])))
    return sizes


def _share(tree, least):
    """Returns the share of a tree's elements that one device holds, counting arrays of at least `least` elements."""
    leaves = [a for a in jax.tree.leaves(tree) if a.size >= least]
    return sum(a.addressable_shards[0].data.size for a in leaves) / sum(a.size for a in leaves)


def _moments(state):
    import optax

    return optax.tree_utils.tree_get(state.opt_state, "mu")


def _distance(one, other, origin=None):
    """Returns the norm of the difference over the norm of the other tree, or of its change from the origin."""
    flat = [np.concatenate([np.ravel(tree[path]) for path in sorted(other)]) for tree in (one, other)]
    change = flat[1] if origin is None else flat[1] - np.concatenate([np.ravel(origin[path]) for path in sorted(other)])
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(change))


def sampled_weights():
    """Describes parameters that were split over eight devices when they reach the sampler of sample videos."""
    from jax.sharding import NamedSharding, PartitionSpec

    from emo_jax.training.samples import SampleWriter

    config, fetched = smallest_config("video"), []
    config.model.dtype = "bfloat16"
    split = NamedSharding(make_mesh(data=1, fsdp=8), PartitionSpec(None, "fsdp"))
    kernel = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    names = ("conv_in", "conv_out")
    samples = SampleWriter(config, None, "", None)
    samples._write = lambda step, params: fetched.append(params["backbone"])
    samples.write(1, {f"backbone/{name}/kernel": jax.device_put(kernel, split) for name in names})
    first, last = (fetched[0][name]["kernel"] for name in names)
    return dict(
        devices=len(first.devices() | last.devices()),
        kernel=str(first.dtype),
        last=str(last.dtype),
        equal=bool((np.asarray(last) == kernel).all() and (np.asarray(first) == kernel.astype(first.dtype)).all()),
    )


def resnet(clips, names):
    """Returns {layout: a device's share of the FLOPs of a resnet's gradient, and its distance from one device's}."""
    from emo_jax.models.layers import ResnetBlock

    block, rng = ResnetBlock(32, groups=4), np.random.default_rng(0)
    x = rng.normal(size=(clips, 4, 16, 16, 32)).astype(np.float32)
    params = block.init(jax.random.key(0), x)

    def gradient(params, x):
        return jax.grad(lambda params: (block.apply(params, constrain(x, "spatial")) ** 2).sum())(params)

    single, results = jax.jit(gradient).lower(params, x).compile(), {}
    for name in names:
        mesh = make_mesh(**LAYOUTS[name])
        placed = replicated(mesh), batch_sharding(mesh)
        split = jax.jit(traced_for_mesh(mesh, gradient), in_shardings=placed).lower(params, x).compile()
        pairs = zip(jax.tree.leaves(single(params, x)), jax.tree.leaves(split(params, x)), strict=True)
        error = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
        results[name] = dict(share=split.cost_analysis()["flops"] / single.cost_analysis()["flops"], error=error)
    return results

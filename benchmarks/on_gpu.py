"""EMO at full size (512x512, bfloat16) on a GPU: how exact attention is, and time and memory against the plan.

    python -m benchmarks.on_gpu attention    # against float32 without cuDNN: errors, times and their ratio
    python -m benchmarks.on_gpu denoise      # one guided denoising step of `emo generate`
    python -m benchmarks.on_gpu step video   # a training step of a stage, one clip

Weights and inputs are random numbers; the training step needs some 60 GB.
"""

import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from emo_jax.configs.base import get_config

from emo_jax import cache
from emo_jax.ops import attention as op
from emo_jax.planning.plan import compiled as compile_program
from emo_jax.planning.plan import count
from emo_jax.planning.report import compiled_lines, counted_lines

SHAPES = {  # of the UNet's first levels at 512x512: clips x frames, queries, keys, width of a head
    "spatial 64x64": ((1, 12), 4096, 4096, 40),
    "spatial 32x32": ((1, 12), 1024, 1024, 80),
    "spatial 16x16": ((1, 12), 256, 256, 160),
    "audio": ((1, 12), 4096, 32, 40),
    "temporal": ((1, 4096), 12, 16, 40),
    "temporal, guided": ((3, 4096), 12, 16, 40),
}


def attention():
    """Each shape's relative errors, of the value and of three gradients, and times forward and backward."""
    print(f"{'attention':<18} {'value':>9} {'gradients':>29} {'ours, ms':>10} {'float32':>8} {'ratio':>6}  scores held")
    for name, (lead, queries, keys, width) in SHAPES.items():
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal((*lead, length, 8, width), np.float32) for length in (queries, keys, keys)]
        inputs = [jnp.asarray(a, jnp.bfloat16) for a in inputs]
        wanted = jnp.asarray(rng.standard_normal(inputs[0].shape, np.float32))
        exact = [a.astype(jnp.float32) for a in inputs]
        ours, plain = _attending(wanted, inputs, jax.default_backend()), _attending(wanted, exact, "cpu")
        (value, gradients), (right, rights) = ours(), plain()
        errors = [_error(a, b) for a, b in zip((value, *gradients), (right, *rights), strict=True)]
        times = [_median(run) * 1e3 for run in (ours, plain)]
        held = re.search(rf"\[(\d+,)*{queries},{keys}\]", ours.program) and queries * keys > 2**20
        errors = f"{errors[0]:9.1e} " + " ".join(f"{error:9.1e}" for error in errors[1:])
        fused = "cuDNN" if "fmha" in ours.program.lower() else "XLA"
        print(f"{name:<18} {errors} {times[0]:10.2f} {times[1]:8.2f} {times[0] / times[1]:6.2f}  {bool(held)}, {fused}")


def _attending(wanted, inputs, platform):
    """A function that gives (value, gradients of its product with `wanted`) of attention as traced for a platform."""

    def run(*inputs):
        out, back = jax.vjp(op.attention, *inputs)
        return out, back(wanted.astype(out.dtype))

    with op.traced_for(platform):
        compiled = jax.jit(run).lower(*inputs).compile()

    def again():
        return jax.block_until_ready(compiled(*inputs))

    again.program = compiled.as_text()
    return again


def _error(found, right):
    return float(jnp.linalg.norm((found.astype(jnp.float32) - right).ravel()) / jnp.linalg.norm(right.ravel()))


def _median(run, rounds=10):
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def program(kind, stage="speed"):
    """Plans a program for one GPU, runs it, and prints time and memory against what was planned."""
    cache.keep_programs()
    config = get_config(stage)
    config.train.batch_size = 1
    devices = jax.devices()[:1]
    found, program = count(config, devices, f"gpu:{len(devices)}", kind)
    print("\n".join(counted_lines(found)), flush=True)
    found = compile_program(found, program, devices[0])
    print("\n".join(compiled_lines(found)), flush=True)
    compiled = program.lower().compile()  # kept since it was planned
    long = re.findall(r"\w+\[(?:\d+,)*4096,4096\]", compiled.as_text())
    print(f"arrays of 4096 x 4096 scores in it: {len(long)}", *sorted(set(long)), flush=True)
    pool = np.abs(np.random.default_rng(0).standard_normal(2**24, np.float32)) * 0.02
    given = [jax.tree.map(lambda a: _filled(a, pool), argument) for argument in program.lower.args]

    def run():
        result = jax.block_until_ready(compiled(*given))
        if kind == "step":
            given[0] = result[0]  # the state that was given is donated

    seconds, limits = _median(run, 20), found["roofline"]
    rate, bound = found["flops"] / seconds, limits["overlapped"]["seconds"]
    utilisation = limits["overlapped"]["mfu"] * bound / seconds
    peak = devices[0].memory_stats()["peak_bytes_in_use"]
    print(f"median of 20: {seconds:.4f} s, {seconds / bound:.2f} of the plan's bound")
    print(f"{rate / 1e12:.0f} TFLOP/s, MFU {utilisation:.1%}")
    print(f"peak {peak / 1e9:.1f} GB, planned {found['peak'] / 1e9:.1f}")


def _filled(shape, pool):
    """Random numbers of a shape; whole numbers are all the same."""
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return jax.device_put(np.resize(pool, shape.shape).astype(shape.dtype))
    return jnp.zeros(shape.shape, shape.dtype) if shape.dtype != jnp.uint8 else jnp.full(shape.shape, 100, jnp.uint8)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    attention() if what == "attention" else program(what, *rest)

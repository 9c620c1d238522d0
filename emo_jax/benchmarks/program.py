"""Time and memory of one program on this device, against its plan: a training step or a guided denoising step."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from emo_jax.benchmarks.timing import median_seconds
from emo_jax.models.emo import build
from emo_jax.planning.plan import compile_program, count_program

CLIPS = 1


def measure(config: ConfigDict, kind: str, rounds: int = 20) -> list[dict]:
    """Plans, compiles and runs a program for the first device, on random weights and inputs.

    Args:
        config: the model and its stage. The batch is one clip.
        kind: "step" (a training step of the config's stage) or "denoise" (a guided denoising step of one clip).
        rounds: the number of timed calls.

    Returns:
        One row: median time, TFLOP/s, and where they are known the model FLOP utilisation (MFU), the ratio of the time
        to the roofline's lower bound, the peak memory against the planned one, and the number of arrays with all
        attention scores of the first level (fused attention holds none).
    """
    config = config.copy_and_resolve_references().unlock()
    config.train.batch_size = CLIPS
    device = jax.devices()[0]
    plan, program = count_program(config, [device], f"{device.platform}:1", kind)
    plan = compile_program(plan, program, device)
    compiled = program.lower().compile()
    arguments = [jax.tree.map(_fill, argument) for argument in program.lower.args]

    def run() -> None:
        result = jax.block_until_ready(compiled(*arguments))
        if kind == "step":
            arguments[0] = result[0]  # the step donates the state that it is given

    seconds = median_seconds(run, rounds)
    row = {"program": kind if kind == "denoise" else f"step of {config.train.stage}", "clips": CLIPS}
    row |= {"seconds": seconds, "TFLOP/s": plan["flops"] / seconds / 1e12}
    limits = (plan.get("roofline") or {}).get("overlapped")
    if limits:
        row |= {"MFU": limits["mfu"] * limits["seconds"] / seconds, "time / roofline": seconds / limits["seconds"]}
    row["planned GB"] = plan["peak"] / 1e9
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        row["peak GB"] = stats["peak_bytes_in_use"] / 1e9
    tokens = math.prod(build(config).latent_shape[:2])
    row["score arrays"] = len(re.findall(rf"\w+\[(?:\d+,)*{tokens},{tokens}\]", compiled.as_text() or ""))
    return [row]


@functools.cache
def _numbers() -> np.ndarray:
    return np.abs(np.random.default_rng(0).standard_normal(2**24, np.float32)) * 0.02


def _fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array of that shape: small positive random numbers, or a constant if it holds integers."""
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return jax.device_put(np.resize(_numbers(), shape.shape).astype(shape.dtype))
    return jnp.full(shape.shape, 100 if shape.dtype == jnp.uint8 else 0, shape.dtype)

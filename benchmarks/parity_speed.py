"""Time of a UNet with the size of Stable Diffusion 1.5 on this CPU: emo_jax against diffusers on torch.

    .venv/bin/pip install -c constraints.txt -e '.[torch]'
    .venv/bin/python -m benchmarks.parity_speed [SIDE] [ROUNDS]    # side of the latents (32), rounds (8)

One frame, float32, random weights, all cores; both run alternately. The UNet of diffusers attends to 77 tokens of text,
that of emo_jax to 77 tokens of audio.
"""

import sys
from collections.abc import Callable

import jax
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from emo_jax.benchmarks.timing import alternating_seconds
from emo_jax.models.conditions import Conditions
from emo_jax.models.unet import UNet, UNetConfig

TOKENS, WIDTH = 77, 768


def make_jax_run(side: int) -> Callable[[], object]:
    """Returns a function that runs the UNet of emo_jax once."""
    config = UNetConfig((320, 640, 1280, 1280), (True, True, True, False), 2, 8, 32, 4, audio=True)
    unet, rng = UNet(config), np.random.default_rng(0)
    latents, tokens = np.zeros((1, 1, side, side, 4), np.float32), np.zeros((1, 1, TOKENS, WIDTH), np.float32)
    inputs = latents, np.zeros(1, np.int32), Conditions(audio=tokens)
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), *inputs))
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) * 0.02, shapes)
    print(f"emo_jax: {sum(a.size for a in jax.tree.leaves(params)) / 1e6:.1f} M parameters", flush=True)
    params, run = jax.device_put(params), jax.jit(unet.apply)
    return lambda: run(params, *inputs)[0].block_until_ready()


def make_torch_run(side: int) -> Callable[[], object]:
    """Returns a function that runs the UNet of diffusers once."""
    unet = UNet2DConditionModel(cross_attention_dim=WIDTH).eval()
    print(f"diffusers: {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    inputs = torch.zeros(1, 4, side, side), 0, torch.zeros(1, TOKENS, WIDTH)

    def run() -> None:
        with torch.inference_mode():
            unet(*inputs)

    return run


def main(side: int = 32, rounds: int = 8) -> None:
    """Prints both times and their ratio."""
    runs = {"jax": make_jax_run(side), "torch": make_torch_run(side)}
    for run in runs.values():
        run()  # compiles and warms up
    times = alternating_seconds(runs, rounds)
    for name, seconds in times.items():
        print(f"{name}: median {np.median(seconds):.3f} s, minimum {min(seconds):.3f} s of {rounds}")
    median, least = (f(times["jax"]) / f(times["torch"]) for f in (np.median, min))
    print(
        f"jax / torch at {side}x{side} latents: {median:.2f} (minimum: {least:.2f}); {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

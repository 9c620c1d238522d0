"""How long a UNet of Stable Diffusion 1.5's size takes on this CPU, against diffusers' on torch: in turns, in one run.

    .venv/bin/pip install -c constraints.txt -e '.[torch]'
    .venv/bin/python -m benchmarks.parity_speed [SIDE] [ROUNDS]    # of the latents (32); of both (8)

One frame, float32, random weights, all cores. Diffusers' looks at 77 tokens of a prompt, ours at 77 tokens of a voice.
"""

import sys
import time

import jax
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from emo_jax.models.attention import Conditions
from emo_jax.models.unet import UNet, UNetConfig

TOKENS, WIDTH = 77, 768


def ours(side):
    """A function that runs our UNet once."""
    config = UNetConfig((320, 640, 1280, 1280), (True, True, True, False), 2, 8, 32, 4, audio=True)
    unet, rng = UNet(config), np.random.default_rng(0)
    latents, seen = np.zeros((1, 1, side, side, 4), np.float32), np.zeros((1, 1, TOKENS, WIDTH), np.float32)
    given = latents, np.zeros(1, np.int32), Conditions(audio=seen)
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), *given))
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) * 0.02, shapes)
    print(f"ours: {sum(a.size for a in jax.tree.leaves(params)) / 1e6:.1f} M parameters", flush=True)
    params, run = jax.device_put(params), jax.jit(unet.apply)
    return lambda: run(params, *given)[0].block_until_ready()


def theirs(side):
    """A function that runs diffusers' once."""
    unet = UNet2DConditionModel(cross_attention_dim=WIDTH).eval()
    print(f"diffusers': {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    given = torch.zeros(1, 4, side, side), 0, torch.zeros(1, TOKENS, WIDTH)

    def run():
        with torch.inference_mode():
            unet(*given)

    return run


def main(side=32, rounds=8):
    """Prints the times and their ratio."""
    runs, times = {"jax": ours(side), "torch": theirs(side)}, {"jax": [], "torch": []}
    for run in runs.values():
        run()  # compiles, warms up
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    for name, found in times.items():
        print(f"{name}: median {np.median(found):.3f} s, least {min(found):.3f} s of {rounds}")
    median, least = (f(times["jax"]) / f(times["torch"]) for f in (np.median, min))
    print(f"jax / torch at {side}x{side} latents: {median:.2f} (least: {least:.2f}); {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Time of a guided step of hallo's denoising network on this CPU: emo_jax against the same layers on torch.

    .venv/bin/pip install -c constraints.txt -e '.[test,torch]'
    .venv/bin/python -m benchmarks.hallo_speed [--side 32] [--frames 16] [--width 320] [--rounds 2]

Random weights, which both networks share, in float32; all cores; both halves of guidance in one batch. The network of
torch is assembled from modules of diffusers (tests/parity/record_hallo.py). Before the timing, the outputs of both are
compared. Then both run alternately: A B A B.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from emo_jax.configs import hallo
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.benchmarks.timing import alternating_seconds
from emo_jax.generation.guided import guided_denoiser
from emo_jax.models.conditions import Conditions, Null
from emo_jax.models.emo import EMO, build
from tests.parity.record_hallo import Hallo, layers_of, unet_sizes
from tests.parity.relatives import layer_of_name, path_of_module

TOLERANCE = 1e-3
"""Largest difference of the outputs, relative to the largest value."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A step's inputs, float32 arrays with channels last.

    Attributes:
        latents: (1, f, h, w, 4).
        features: {layer: ReferenceNet's features of the portrait and the motion frames (halves, 1 + n, h, w, c)}, of
            the null half of guidance first.
        face: tokens of the null embedding and of the face's (2, tokens, size).
        voice: audio tokens (1, f, tokens, size).
        regions: of each level (1, h, w, branches), finest first.
        branch_weights: (1, branches).
        location: (1, h, w, c).
    """

    latents: np.ndarray
    features: dict[str, np.ndarray]
    face: np.ndarray
    voice: np.ndarray
    regions: list[np.ndarray]
    branch_weights: np.ndarray
    location: np.ndarray


def make_config(side: int, frames: int, width: int) -> Any:
    """Returns configs/hallo.py in float32 for latents of a side, with a width of the finest level."""
    config = hallo.get_config()
    channels = tuple(width * factor for factor in (1, 2, 4, 4))
    config.model.update(dtype="float32")
    config.model.unet.update(channels=channels, remat="none")
    config.clip.update(frames=frames, image_size=(8 * side, 8 * side))
    return config


def make_torch(config: Any) -> Hallo:
    """Returns the network of torch."""
    unet = config.model.unet
    sizes = unet_sizes(
        tuple(unet.channels), tuple(unet.attention), layers_per_block=unet.layers, norm_num_groups=unet.groups,
        attention_head_dim=unet.heads, cross_attention_dim=config.model.face_embedding.features,
    )  # fmt: skip
    torch.manual_seed(0)
    return Hallo(sizes, config.model.audio.features).eval()


def draw_inputs(config: Any, net: Hallo) -> Inputs:
    """Draws the inputs of a step."""
    rng, clip, model = np.random.default_rng(0), config.clip, config.model

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    side, levels, features = clip.image_size[0] // 8, len(model.unet.channels), {}
    for name, attention, _ in layers_of(net.unet):
        block, _, _ = name.partition(".")
        level = int(name.split(".")[1]) if block != "mid_block" else 0
        level = {"down_blocks": level, "mid_block": levels - 1, "up_blocks": levels - 1 - level}[block]
        size = side >> level
        features[layer_of_name(name)] = draw(2, 1 + clip.motion_frames, size, size, attention.in_channels)
    face = model.face_embedding
    return Inputs(
        draw(1, clip.frames, side, side, 4), features, draw(2, face.tokens, face.features),
        draw(1, clip.frames, model.audio.tokens, model.audio.features),
        [rng.random((1, side >> i, side >> i, 3), np.float32) for i in range(levels)],
        np.ones((1, 3), np.float32), draw(1, side, side, model.unet.channels[0]),
    )  # fmt: skip


def make_jax_run(emo: EMO, params: Any, scale: float, inputs: Inputs) -> Callable[[], np.ndarray]:
    """Returns a function that computes the guided prediction (1, f, h, w, 4) with emo_jax."""
    null, face = (tokens[None, None] for tokens in inputs.face)
    conditions = Conditions(
        reference={name: a[None, :, 0] for name, a in inputs.features.items()},
        motion={name: a[1:, 1:] for name, a in inputs.features.items()},
        audio=inputs.voice, location=inputs.location[:, None], face=face, regions=tuple(inputs.regions),
        branch_weights=inputs.branch_weights,
        null=Null(face=null, motion={name: a[:1, 1:] for name, a in inputs.features.items()}),
    )  # fmt: skip

    @jax.jit
    def step(params: Any, conditions: Conditions, x: jax.Array, t: jax.Array) -> jax.Array:
        return guided_denoiser(emo, params, conditions, "joint", (scale, scale), rescale=0.0, interval=None)(x, t)

    arguments = jax.device_put((params, conditions, inputs.latents, np.array([499])))
    return lambda: np.asarray(step(*arguments))


def make_torch_run(net: Hallo, scale: float, inputs: Inputs) -> Callable[[], np.ndarray]:
    """Returns a function that computes the same with torch."""

    def channels_first(a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, -3)))

    features = {name: torch.from_numpy(a).flatten(2, 3) for name, a in inputs.features.items()}
    features = {name: features[layer_of_name(name)] for name in net.layers}
    voice, location = torch.from_numpy(inputs.voice), channels_first(inputs.location)
    masks = {a.shape[1:3]: torch.from_numpy(a).flatten(1, 2) for a in inputs.regions}
    given = types.SimpleNamespace(
        bank={name: a[:, 0] for name, a in features.items()}, motion={name: a[:, 1:] for name, a in features.items()},
        on=torch.tensor([False, True]), face=torch.from_numpy(inputs.face), voice=torch.cat([0 * voice, voice]),
        masks=masks, weights=torch.from_numpy(inputs.branch_weights[0]), location=torch.cat([0 * location, location]),
    )  # fmt: skip
    latents = channels_first(inputs.latents).transpose(1, 2).repeat(2, 1, 1, 1, 1)

    def run() -> np.ndarray:
        with torch.inference_mode():
            null, found = net(latents, torch.tensor([499, 499]), given).split(1)
            return (null + scale * (found - null)).movedim(1, -1).numpy()

    return run


def convert(net: Hallo, emo: EMO) -> dict[str, Any]:
    """Returns the params of emo_jax with the network's weights."""
    flat = {}
    for name, tensor in net.state_dict().items():
        if "pos_embed" not in name:  # computed
            path, array = path_of_module(f"backbone.{name}", tensor.numpy())
            flat[path] = jax.device_put(array)
    shapes: dict[str, Any] = dict(flatten_dict({"backbone": emo.abstract_params()["backbone"]}, sep="/"))
    if {path: a.shape for path, a in flat.items()} != {path: a.shape for path, a in shapes.items()}:
        raise ValueError(f"the networks differ: {sorted(set(flat) ^ set(shapes))[:5]}")
    return unflatten_dict(flat, sep="/")


def compare(config: Any, rounds: int) -> dict[str, Any]:
    """Compares outputs and times of both.

    Returns:
        {"error": of the outputs, relative to the largest value, "jax": seconds of each round, "torch": the same,
        "ratio": of the medians}.

    Raises:
        ValueError: the outputs differ.
    """
    net, emo, scale = make_torch(config), build(config), config.sampling.reference_scale
    inputs = draw_inputs(config, net)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters in float32", flush=True)
    params, runs = convert(net, emo), {}
    runs["jax"], runs["torch"] = make_jax_run(emo, params, scale, inputs), make_torch_run(net, scale, inputs)
    outputs = {}
    for name, run in runs.items():
        started = time.perf_counter()
        outputs[name] = run()  # compiles and warms up
        print(f"{name}: first call {time.perf_counter() - started:.1f} s", flush=True)
    error = np.abs(outputs["jax"] - outputs["torch"]).max() / np.abs(outputs["torch"]).max()
    print(f"outputs differ by {error:.1e} of the largest value", flush=True)
    if not error < TOLERANCE:
        raise ValueError(f"the outputs differ by {error:.1e}; expected less than {TOLERANCE}")

    def show(name: str, seconds: float) -> None:
        print(f"{name}: {seconds:.3f} s", flush=True)

    times = alternating_seconds(runs, rounds, show)
    ratio = float(np.median(times["jax"]) / np.median(times["torch"]))
    return dict(error=float(error), ratio=ratio, **times)


def main(argv: list[str]) -> None:
    """Prints the times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default, text in (
        ("side", 32, "of the latents"), ("frames", 16, "of a clip"), ("width", 320, "of the finest level"),
        ("rounds", 2, "timed calls of each"),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=int, default=default, help=f"{text} (default %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the result")
    args = parser.parse_args(argv)
    result = compare(make_config(args.side, args.frames, args.width), args.rounds)
    sizes = f"{args.side}x{args.side} latents, {args.frames} frames, width {args.width}"
    print(f"jax / torch of a guided step at {sizes}: {result['ratio']:.2f}; {torch.get_num_threads()} threads")
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

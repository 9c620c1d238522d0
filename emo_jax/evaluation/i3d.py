"""The I3D network of FVD (Carreira and Zisserman 2017), with the weights of VideoGPT (i3d_pretrained_400.pt).

The state dict has the names of piergiaj's pytorch-i3d, which are the most common in PyTorch. Files of TorchScript, such
as StyleGAN-V's i3d_torchscript.pt, are programs and are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.evaluation.layers import Params, avg_pool, conv, fold, max_pool

SIDE, FRAMES = 224, 16
EPS = 1e-5
"""Of VideoGPT's batch norms."""
_STEM = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
_BRANCHES = (("b0",), ("b1a", "b1b"), ("b2a", "b2b"), ("b3b",))
_STAGES = (("3b", "3c"), ("4b", "4c", "4d", "4e", "4f"), ("5b", "5c"))
_POOLS = ((3, 3, 3), (2, 2, 2), ())
"""Window of the pooling after each stage, at stride 2."""


def convert(weights: dict[str, np.ndarray]) -> Params:
    """Converts the state dict of VideoGPT's I3D.

    Raises:
        ValueError: a tensor is missing.
    """
    params = {name: fold(weights, f"{name}.conv3d", f"{name}.bn", EPS) for name in layer_names()}
    return params | {"logits": fold(weights, "logits.conv3d", "", EPS)}


def layer_names() -> list[str]:
    """Returns the names of all convolutions that a batch norm follows."""
    blocks = [f"Mixed_{name}" for stage in _STAGES for name in stage]
    return [*_STEM, *(f"{block}.{name}" for block in blocks for branch in _BRANCHES for name in branch)]


def logits(params: Params, clips: jax.Array) -> jax.Array:
    """Computes the logits (B, 400) of clips (B, T, H, W, 3) in [-1, 1]; T, H, W are 16, 224, 224 for FVD."""

    def unit(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
        return jax.nn.relu(conv(x, params[name], stride, "SAME"))

    first, second, third = _STEM
    x = max_pool(unit(clips, first, 2), (1, 3, 3), (1, 2, 2), "SAME")
    x = max_pool(unit(unit(x, second), third), (1, 3, 3), (1, 2, 2), "SAME")
    for stage, pool in zip(_STAGES, _POOLS, strict=True):
        for block in stage:
            outputs = []
            for branch in _BRANCHES:
                y = max_pool(x, (3, 3, 3), (1, 1, 1), "SAME") if branch == ("b3b",) else x
                for name in branch:
                    y = unit(y, f"Mixed_{block}.{name}")
                outputs.append(y)
            x = jnp.concatenate(outputs, -1)
        if pool:
            x = max_pool(x, pool, (2, 2, 2), "SAME")
    x = conv(avg_pool(x, (2, *x.shape[2:4])), params["logits"])
    return x.mean((1, 2, 3))


def prepare(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Scales the shorter side of frames, uint8 RGB (H, W, 3), to 224, crops the middle, and scales to [-1, 1].

    Returns:
        float32 (T, 224, 224, 3).
    """
    clip = []
    for frame in frames:
        height, width = frame.shape[:2]
        scale = SIDE / min(height, width)
        size = (max(SIDE, round(width * scale)), max(SIDE, round(height * scale)))
        small = cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        top, left = (size[1] - SIDE) // 2, (size[0] - SIDE) // 2
        clip.append(small[top : top + SIDE, left : left + SIDE] / 127.5 - 1)
    return np.stack(clip)

"""The Inception network of FID, with the weights of pytorch-fid (pt_inception-2015-12-05-6726825d.pth).

It differs from the usual Inception v3: averages leave out padding, and the last block takes a maximum where others
average.
"""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.evaluation.layers import Params, avg_pool, conv, fold, max_pool

SIDE = 299
EPS = 1e-3
_PLAIN = {
    "Conv2d_1a_3x3": (2, False), "Conv2d_2a_3x3": (1, False), "Conv2d_2b_3x3": (1, True),
    "Conv2d_3b_1x1": (1, False), "Conv2d_4a_3x3": (1, False),
}  # fmt: skip
"""Stride, and whether the input is padded, of the first layers."""
_POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
_A = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
_C = (
    ("branch1x1",), ("branch7x7_1", "branch7x7_2", "branch7x7_3"), tuple(f"branch7x7dbl_{k}" for k in range(1, 6)),
)  # fmt: skip
_B = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))
_D = (("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{k}" for k in range(1, 5)))
_E = (
    ("branch1x1",), ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
    ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
)  # fmt: skip
BLOCKS = {
    "Mixed_5b": (_A, "average"), "Mixed_5c": (_A, "average"), "Mixed_5d": (_A, "average"), "Mixed_6a": (_B, "halve"),
    "Mixed_6b": (_C, "average"), "Mixed_6c": (_C, "average"), "Mixed_6d": (_C, "average"), "Mixed_6e": (_C, "average"),
    "Mixed_7a": (_D, "halve"), "Mixed_7b": (_E, "average"), "Mixed_7c": (_E, "maximum"),
}  # fmt: skip
"""Branches of each block, in the order of channels, and how its last branch pools. Layers in a tuple are parallel."""


def convert(weights: dict[str, np.ndarray]) -> Params:
    """Converts the state dict of pytorch-fid.

    Raises:
        ValueError: a tensor is missing.
    """
    return {name: fold(weights, f"{name}.conv", f"{name}.bn", EPS) for name in layer_names()}


def layer_names() -> list[str]:
    """Returns the names of all convolutions."""
    names = list(_PLAIN)
    for block, (branches, pooling) in BLOCKS.items():
        for branch in branches:
            for layer in branch:
                names += [f"{block}.{name}" for name in (layer if isinstance(layer, tuple) else (layer,))]
        if pooling != "halve":
            names.append(f"{block}.branch_pool")
    return names


def features(params: Params, images: jax.Array) -> jax.Array:
    """Computes the features (B, 2048) of images (B, H, W, 3) in [-1, 1]; H and W are 299 for FID."""
    x = images
    for name, (stride, padded) in _PLAIN.items():
        x = jax.nn.relu(conv(x, params[name], stride, "SAME" if padded else "VALID"))
        if name in _POOLED:
            x = max_pool(x, (3, 3), (2, 2))
    for block, (branches, pooling) in BLOCKS.items():
        outputs = [_branch(params, block, branch, x, halve=pooling == "halve") for branch in branches]
        if pooling == "halve":
            outputs.append(max_pool(x, (3, 3), (2, 2)))
        else:
            pooled = avg_pool(x, (3, 3), "SAME") if pooling == "average" else max_pool(x, (3, 3), (1, 1), "SAME")
            outputs.append(jax.nn.relu(conv(pooled, params[f"{block}.branch_pool"])))
        x = jnp.concatenate(outputs, -1)
    return x.mean((1, 2))


def _branch(params: Params, block: str, branch: tuple, x: jax.Array, halve: bool) -> jax.Array:
    for layer in branch:
        if isinstance(layer, tuple):
            return jnp.concatenate([jax.nn.relu(conv(x, params[f"{block}.{name}"], 1, "SAME")) for name in layer], -1)
        last = halve and layer == branch[-1]
        x = jax.nn.relu(conv(x, params[f"{block}.{layer}"], 2 if last else 1, "VALID" if last else "SAME"))
    return x


def prepare(image: np.ndarray) -> np.ndarray:
    """Scales an image, uint8 RGB (H, W, 3), as pytorch-fid does: bilinear without antialiasing, to [-1, 1].

    Returns:
        float32 (299, 299, 3).
    """
    return cv2.resize(image.astype(np.float32) / 127.5 - 1, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)

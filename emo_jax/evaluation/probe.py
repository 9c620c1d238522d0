"""The measuring network: what a single frame shows of the mouth, the head's pose and place, and whose face it is.

Every measure of `emo evaluate` is taken from frames alone, by this small network. It has seen rendered frames only
(`emo_jax.evaluation.train_probe`), never a generated one, and shares nothing with the networks that it judges.
"""

from __future__ import annotations

import functools
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emo_jax.evaluation.identity import FEATURES, thumbnail
from emo_jax.files import whole

SIZE = 128
"""Height and width of the frames it reads."""
PARTS = {"mouth": 2, "rotation": 3, "place": 4}
"""What the network measures, and how many numbers each is, in the order of its outputs; see `measure`."""
IDENTITY = 32
"""Numbers that tell a person from another."""
TARGETS = sum(PARTS.values())
WEIGHTS = pathlib.Path(__file__).parent / "probe.safetensors"
_STATISTICS = {"mean": (TARGETS,), "scale": (TARGETS,), "identity": (FEATURES, IDENTITY)}
_BATCH = 64


class Probe(nn.Module):
    """A pyramid of convolutions of stride 2: 0.35 M parameters, 44 MFLOP an image."""

    channels: tuple[int, ...] = (32, 48, 96, 128)

    @nn.compact
    def __call__(self, images):
        """Images (B, 128, 128, 3) in [-1, 1] -> standardised measures (B, TARGETS)."""
        count, half = len(images), SIZE // 2
        x = images.reshape(count, half, 2, half, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(count, half, half, 12)
        for level, width in enumerate(self.channels):
            x = nn.Conv(width, (3, 3), (2, 2), name=f"down_{level}")(x)
            if level:  # the first keeps the colours' absolute values
                x = nn.GroupNorm(8, name=f"norm_{level}")(x)
            x = nn.silu(x)
            if level in (1, 2):
                x = x + nn.silu(nn.Conv(width, (3, 3), name=f"conv_{level}")(x))
        x = nn.silu(nn.Conv(48, (1, 1), name="squeeze")(x)).reshape(count, -1)
        return nn.Dense(TARGETS, name="out")(nn.silu(nn.Dense(96, name="hidden")(x)))


def split(values):
    """(..., TARGETS) -> {part: (..., n)} in the order of PARTS."""
    ends = np.cumsum(list(PARTS.values()))
    return {name: values[..., end - PARTS[name] : end] for name, end in zip(PARTS, ends, strict=True)}


def to_input(frames):
    """uint8 (B, H, W, 3) -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


@jax.jit
def _apply(weights, frames):
    return Probe().apply({"params": weights}, to_input(frames))


@jax.jit
def _init(key):
    return Probe().init(key, jnp.zeros((1, SIZE, SIZE, 3)))


def measure(params, frames) -> dict[str, np.ndarray]:
    """What frames show.

    Args:
        params: of `load_probe`.
        frames: uint8 (..., 128, 128, 3); batches of any number of axes.

    Returns:
        opening (...,) and width (...,) of the mouth, as `mouth_track` gives them, roughly in [0, 1];
        rotation (..., 3): yaw, pitch, roll in degrees;
        centre (..., 2): x, y of the face box's centre, size (..., 2): its width and height, in shares of the frame;
        thumbnail (..., FEATURES): the face, small and upright, in [0, 1];
        identity (..., IDENTITY): whose face it is; the distance of two views of one person is about sqrt(2 * IDENTITY).

    Raises:
        ValueError: frames of another type or size.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.shape[-3:] != (SIZE, SIZE, 3):
        raise ValueError(
            f"frames are {frames.dtype}{frames.shape}; the measuring network reads uint8 (..., {SIZE}, {SIZE}, 3): "
            "resize them first"
        )
    lead, flat = frames.shape[:-3], frames.reshape(-1, SIZE, SIZE, 3)
    weights = params["weights"]
    rows = [np.zeros((0, TARGETS), np.float32)]
    for first in range(0, len(flat), _BATCH):
        batch = flat[first : first + _BATCH]
        padded = np.concatenate([batch, np.zeros((_BATCH - len(batch), SIZE, SIZE, 3), np.uint8)])
        rows.append(np.asarray(_apply(weights, padded))[: len(batch)])
    parts = split(np.concatenate(rows) * params["scale"] + params["mean"])
    place, roll = parts["place"], parts["rotation"][:, 2]
    faces = [thumbnail(f, at[:2], at[2:], turn) for f, at, turn in zip(flat, place, roll, strict=True)]
    faces = np.stack(faces) if faces else np.zeros((0, FEATURES), np.float32)
    parts |= {"thumbnail": faces, "identity": faces @ params["identity"]}
    parts = {name: value.reshape(*lead, value.shape[-1]) for name, value in parts.items()}
    return {
        "opening": parts["mouth"][..., 0],
        "width": parts["mouth"][..., 1],
        "rotation": parts["rotation"],
        "centre": parts["place"][..., :2],
        "size": parts["place"][..., 2:],
        "identity": parts["identity"],
        "thumbnail": parts["thumbnail"],
    }


def fresh_params(seed: int = 0) -> dict:
    """Untrained params, for training and tests; measures are not scaled, identities mean nothing."""
    return {
        "weights": _init(jax.random.key(seed))["params"],
        "mean": np.zeros(TARGETS, np.float32),
        "scale": np.ones(TARGETS, np.float32),
        "identity": np.eye(FEATURES, IDENTITY, dtype=np.float32),
    }


def save_probe(path: str | os.PathLike, params: dict) -> None:
    """Writes params to a safetensors file, half precision; it appears whole or not at all."""
    flat = {f"weights/{name}": a for name, a in flatten_dict(params["weights"], sep="/").items()}
    tensors = {name: np.ascontiguousarray(np.asarray(a), np.float16) for name, a in flat.items()}
    tensors |= {name: np.ascontiguousarray(params[name], np.float32) for name in _STATISTICS}
    with whole(path) as partial:
        save_file(tensors, partial)


@functools.cache
def load_probe(path: str | os.PathLike = WEIGHTS) -> dict:
    """Params of a file of `save_probe`; by default those in the package.

    Raises:
        ValueError: no such file, or another content.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{path} does not exist: train it with `python -m emo_jax.evaluation.train_probe`")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    flat = {k.removeprefix("weights/"): v.astype(np.float32) for k, v in tensors.items() if k.startswith("weights/")}
    wanted = jax.eval_shape(_init, jax.random.key(0))["params"]
    shapes = {name: leaf.shape for name, leaf in flatten_dict(wanted, sep="/").items()}
    shapes |= _STATISTICS
    found = {name: v.shape for name, v in (tensors | flat).items() if not name.startswith("weights/")}
    if found != shapes:
        raise ValueError(f"{path} holds other weights than the measuring network's; train it again")
    return {"weights": unflatten_dict(flat, sep="/"), **{name: tensors[name] for name in _STATISTICS}}

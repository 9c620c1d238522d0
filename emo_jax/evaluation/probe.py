"""The measuring network: reads mouth opening, head pose, face position and identity from a single frame.

All measures of `emo evaluate` are taken from frames alone by this small network. It was trained on rendered frames only
(`emo_jax.evaluation.train_probe`), never on generated ones, and shares no weights with the networks that it judges.
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
from safetensors.numpy import save_file

from emo_jax.evaluation.bundled import read_bundled
from emo_jax.evaluation.identity import FEATURES, thumbnail
from emo_jax.files import atomic_write

SIZE = 128
"""Height and width of the input frames."""
PARTS = {"mouth": 2, "rotation": 3, "place": 4}
"""The measured quantities and their sizes, in the order of the network's outputs; see `measure`."""
IDENTITY = 32
"""Size of an identity vector."""
TARGETS = sum(PARTS.values())
WEIGHTS = pathlib.Path(__file__).parent / "probe.safetensors"
_STATISTICS = {"mean": (TARGETS,), "scale": (TARGETS,), "identity": (FEATURES, IDENTITY)}
_BATCH = 64


class Probe(nn.Module):
    """Convolutions of stride 2: 0.35 M parameters, 44 MFLOP per image.

    Attributes:
        channels: width of each level.
    """

    channels: tuple[int, ...] = (32, 48, 96, 128)

    @nn.compact
    def __call__(self, images):
        """Returns standardised measures (B, TARGETS) of images (B, 128, 128, 3) in [-1, 1]."""
        count, half = len(images), SIZE // 2
        x = images.reshape(count, half, 2, half, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(count, half, half, 12)
        for level, width in enumerate(self.channels):
            x = nn.Conv(width, (3, 3), (2, 2), name=f"down_{level}")(x)
            if level:  # no norm on the first level, which keeps absolute colours
                x = nn.GroupNorm(8, name=f"norm_{level}")(x)
            x = nn.silu(x)
            if level in (1, 2):
                x = x + nn.silu(nn.Conv(width, (3, 3), name=f"conv_{level}")(x))
        x = nn.silu(nn.Conv(48, (1, 1), name="squeeze")(x)).reshape(count, -1)
        return nn.Dense(TARGETS, name="out")(nn.silu(nn.Dense(96, name="hidden")(x)))


def split(values):
    """Splits values (..., TARGETS) into {quantity: (..., n)} in the order of PARTS."""
    ends = np.cumsum(list(PARTS.values()))
    return {name: values[..., end - PARTS[name] : end] for name, end in zip(PARTS, ends, strict=True)}


def to_input(frames):
    """Converts frames uint8 (B, H, W, 3) to float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


@jax.jit
def _apply(weights, frames):
    return Probe().apply({"params": weights}, to_input(frames))


@jax.jit
def _init(key):
    return Probe().init(key, jnp.zeros((1, SIZE, SIZE, 3)))


def measure(params, frames) -> dict[str, np.ndarray]:
    """Measures frames.

    Args:
        params: the network's params, from `load_probe`.
        frames: uint8 (..., 128, 128, 3).

    Returns:
        A dict of arrays:
        opening (...,) and width (...,) of the mouth on the scale of `mouth_track`, roughly in [0, 1];
        rotation (..., 3): yaw, pitch, roll in degrees;
        centre (..., 2) and size (..., 2) of the face box, x and y as fractions of the frame;
        thumbnail (..., FEATURES): the upright face thumbnail in [0, 1];
        identity (..., IDENTITY): two views of one person are about sqrt(2 * IDENTITY) apart.

    Raises:
        ValueError: the frames have another dtype or size.
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
    """Returns untrained params for training and tests: unscaled measures and meaningless identities."""
    return {
        "weights": _init(jax.random.key(seed))["params"],
        "mean": np.zeros(TARGETS, np.float32),
        "scale": np.ones(TARGETS, np.float32),
        "identity": np.eye(FEATURES, IDENTITY, dtype=np.float32),
    }


def save_probe(path: str | os.PathLike, params: dict) -> None:
    """Writes params to a safetensors file in half precision; the file appears only once it is complete."""
    flat = {f"weights/{name}": a for name, a in flatten_dict(params["weights"], sep="/").items()}
    tensors = {name: np.ascontiguousarray(np.asarray(a), np.float16) for name, a in flat.items()}
    tensors |= {name: np.ascontiguousarray(params[name], np.float32) for name in _STATISTICS}
    with atomic_write(path) as partial:
        save_file(tensors, partial)


@functools.cache
def load_probe(path: str | os.PathLike = WEIGHTS) -> dict:
    """Reads params from a file written by `save_probe`, by default the one in the package.

    Raises:
        ValueError: the file does not exist, is damaged, or holds something else.
    """
    tensors = read_bundled(path, "train_probe")
    flat = {k.removeprefix("weights/"): v.astype(np.float32) for k, v in tensors.items() if k.startswith("weights/")}
    wanted = flatten_dict(jax.eval_shape(_init, jax.random.key(0))["params"], sep="/")
    shapes = {name: np.shape(leaf) for name, leaf in wanted.items()}  # pyright: ignore[reportCallIssue, reportArgumentType]
    shapes |= _STATISTICS
    found = {name: v.shape for name, v in (tensors | flat).items() if not name.startswith("weights/")}
    if found != shapes:
        raise ValueError(f"{path} holds other weights than the measuring network's; train it again")
    return {"weights": unflatten_dict(flat, sep="/"), **{name: tensors[name] for name in _STATISTICS}}

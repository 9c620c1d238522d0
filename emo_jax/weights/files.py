"""Weight files: safetensors with a checksum, which we write, and the files of others, pickles included."""

from __future__ import annotations

import contextlib
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from emo_jax import schema
from emo_jax.weights import pickles

PICKLES = (".ckpt", ".bin", ".pth", ".pt")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
"""Names of weight files of diffusers and transformers, in the order of preference."""
SCALE = schema.number(1e-6, 1e6)
"""Schema of an autoencoder's scaling factor."""
_CHECKSUM = "crc32"


@contextlib.contextmanager
def name_file(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path of a file to the message of a ValueError that does not name it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def save_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file with a checksum of its tensors in the metadata.

    Args:
        path: the file.
        tensors: contiguous arrays by name.
    """
    save_file(tensors, path, metadata=_metadata(tensors))


def load_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file, and checks its checksum if it has one; files of earlier versions have none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); copy it again") from error
    if set(metadata) - {"format"} and metadata != _metadata(tensors):
        raise ValueError(f"{path} is damaged (its content has changed); copy it again")
    return tensors


def _metadata(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    return {"format": "pt", _CHECKSUM: str(tensors_checksum(tensors))}  # transformers requires a format


def tensors_checksum(tensors: dict[str, np.ndarray]) -> int:
    """Returns the CRC-32 of tensors with their names, types and shapes; 1 to 2 GB/s."""
    value = 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        value = zlib.crc32(f"{name} {array.dtype.name} {array.shape}".encode(), value)
        value = zlib.crc32(array.reshape(-1).view(np.uint8), value)  # pyright: ignore[reportArgumentType]
    return value


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a weight file of diffusers, transformers or an original release.

    Pickles that would run code are rejected. Those of torch before 1.6 are read by torch, with `weights_only`.

    Returns:
        {name: array} in the file's type; bfloat16 becomes float32, which represents it exactly.

    Raises:
        ValueError: no such file, an unknown format, a damaged or hostile file, or torch is missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a weight file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="flax") as file:
                return {name: _plain(np.asarray(file.get_tensor(name))) for name in file.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); fetch it again") from error
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise ValueError(f"{path} has an unknown format; expected .safetensors, {', '.join(PICKLES)}")


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    if pickles.is_zip(path):
        return pickles.load(path)
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{path} is damaged, or a pickle of torch before 1.6, which needs torch: pip install -c "
            "constraints.txt -e '.[torch]', or give the .safetensors"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # this format cannot be memory-mapped
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ...
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is damaged, or holds more than weights ({reason}); it is not loaded") from error
    state = pickles.state_of(loaded)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict; give a file of weights")
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}


def find_weights(folder: str | os.PathLike) -> pathlib.Path:
    """Returns the weight file of a folder in the layout of diffusers or transformers.

    Raises:
        ValueError: there is no such file, or only a sharded one.
    """
    folder = pathlib.Path(folder)
    for suffix in SUFFIXES:
        for stem in STEMS:
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    raise ValueError(f"{folder} holds no weights; expected {STEMS[0]}.safetensors, {STEMS[1]}.safetensors or a .bin")


def read_scaling_factor(folder: str | os.PathLike) -> float | None:
    """Returns the scaling factor in the config.json of an autoencoder's folder, or None if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    file = pathlib.Path(folder) / "config.json"
    if not file.is_file():
        return None
    return schema.read_json(file, schema.fields({}, {"scaling_factor": SCALE}, extra=True)).get("scaling_factor")

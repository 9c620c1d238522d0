"""Tensors of the files that people have: safetensors, and torch's pickles where torch is installed."""

import json
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open

PICKLES = (".ckpt", ".bin", ".pth", ".pt")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
"""What weight files of diffusers and transformers are called, the first that is there is taken."""


def read_tensors(path):
    """{name: array} of a weight file, in the file's precision (bfloat16 as float32, which holds it exactly).

    A pickle is read by torch as weights alone: one that would run code is refused.

    Raises:
        ValueError: no such file, another format, a damaged or hostile file, or torch is missing.
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
    raise ValueError(f"{path} is of no known format; expected .safetensors, {', '.join(PICKLES)}")


def _plain(array):
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _read_pickle(path):
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{path} is a pickle, which takes torch to read: pip install -c constraints.txt -e '.[torch]', or give the "
            ".safetensors"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ...
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is damaged, or holds more than weights ({reason}); it is not loaded") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no state dict; give a file of weights")
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}


def find_weights(folder):
    """The weight file of a folder in the layout of diffusers or transformers.

    Raises:
        ValueError: there is none, or only a sharded one.
    """
    folder = pathlib.Path(folder)
    for suffix in SUFFIXES:
        for stem in STEMS:
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    raise ValueError(f"{folder} holds no weights; expected {STEMS[0]}.safetensors, {STEMS[1]}.safetensors or a .bin")


def read_config(folder):
    """The config.json of such a folder, as a dict; {} where there is none.

    Raises:
        ValueError: it is damaged.
    """
    file = pathlib.Path(folder) / "config.json"
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); fetch it again") from error

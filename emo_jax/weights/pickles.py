"""Reads the files of `torch.save` without torch: a zip file with a pickle of the structure and one entry per storage.

The pickle is not trusted. Only the names that a state dict needs are looked up, and none of them runs code of the file.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import mmap
import pathlib
import pickle
import zipfile
import zlib
from typing import Any

import numpy as np

_TYPES = {
    "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
"""NumPy type of each of torch's storage classes."""
_STATES = ("state_dict", "model_state_dict")
"""Entries of a file that hold its tensors, if it has such an entry: those of Lightning and of Whisper."""
_LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name and extra field."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file, which `arrays` reads.

    Attributes:
        storage: (type, key) of its storage.
        offset: first element.
        shape: sizes.
        strides: in elements.
    """

    storage: tuple[str, str]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_zip(path: pathlib.Path) -> bool:
    """Returns whether a file has the format of torch 1.6 and later."""
    return zipfile.is_zipfile(path)


def state_of(loaded: Any) -> Any:
    """Returns the entry of a file's content that holds its tensors, or the content itself."""
    entries = [loaded[name] for name in _STATES if name in loaded] if isinstance(loaded, dict) else []
    return entries[-1] if entries else loaded


def load(path: pathlib.Path) -> dict[str, Any]:
    """Reads a state dict of `torch.save`.

    Arrays are views of the file, which is mapped into memory: reading them needs no memory of the process.

    Returns:
        {name: array}; bfloat16 becomes float32, which represents it exactly. A file with an entry of _STATES gives the
        tensors of this entry. Values that are not tensors are left out.

    Raises:
        ValueError: the file is damaged, holds more than weights, or holds no state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickled) as file:
                loaded = _Unpickler(file).load()
        state = state_of(loaded)
        if not isinstance(state, dict):
            raise ValueError(f"{path} holds no state dict; give a file of weights")
        tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        return _arrays(path, tensors, pickled.removesuffix("data.pkl"))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # of zipfile and pickle, on content of any kind
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return ValueError(f"{path} is damaged, or holds more than weights ({reason}); it is not loaded")


def _arrays(path: pathlib.Path, tensors: dict[str, Tensor], prefix: str) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    found, checked = {}, set()
    for name, tensor in tensors.items():
        kind, key = tensor.storage
        entry = entries.get(f"{prefix}data/{key}")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the storage of {name} is {'missing' if entry is None else 'compressed'}")
        start = entry.header_offset
        header = content[start : start + _LOCAL_HEADER]
        start += _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if key not in checked:  # tensors may share a storage
            checked.add(key)
            if zlib.crc32(memoryview(content)[start : start + entry.file_size]) != entry.CRC:
                raise ValueError(f"the bytes of {name} have changed; fetch the file again")
        found[name] = _view(content, name, tensor, kind, start, entry.file_size)
    return found


def _view(content: mmap.mmap, name: str, tensor: Tensor, kind: str, start: int, size: int) -> np.ndarray:
    """Returns a tensor as a view of a storage at bytes `start` to `start + size`."""
    brain = _TYPES[kind] == "bfloat16"
    dtype = np.dtype("<u2" if brain else _TYPES[kind])
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.shape, *tensor.strides), default=0) < 0 or (last + 1) * dtype.itemsize > size:
        raise ValueError(f"{name} of shape {tensor.shape} exceeds its storage")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, np.float32 if brain else dtype)
    flat = np.frombuffer(content, dtype, size // dtype.itemsize, start)[tensor.offset :]
    view = np.lib.stride_tricks.as_strided(
        flat, tensor.shape, [stride * dtype.itemsize for stride in tensor.strides], writeable=False
    )
    return (view.astype(np.uint32) << 16).view(np.float32) if brain else view


def _rebuild_tensor(storage: tuple[str, str], offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Stands for torch._utils._rebuild_tensor_v2."""
    if not all(isinstance(n, int) for n in (offset, *shape, *strides)) or math.prod(shape) < 0:
        raise ValueError("a tensor has sizes that are not numbers")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    """Stands for torch._utils._rebuild_parameter."""
    return data


class _Unpickler(pickle.Unpickler):
    _NAMES = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name of the pickle stands for; refuses all others."""
        if (module, name) in self._NAMES:
            return self._NAMES[module, name]
        if module == "torch" and name in _TYPES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """Returns (type, key) of a storage."""
        tag, kind, key, *_ = pid
        if tag != "storage" or kind not in _TYPES:
            raise pickle.UnpicklingError(f"it refers to {tag} {kind}")
        return kind, str(key)

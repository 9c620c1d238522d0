"""Random changes of files: of bytes, of JSON values, and of the tensors in a safetensors file."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = 512
"""Bytes at the start of a file that half of the changes aim at: there are the numbers that readers trust."""
_INTEGERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_VALUES = ([], {}, None, True, 0, -1, 1.5, 10**30, 1e308, "", "x", "-3", "1e9", "\ud800", [1, 2], [[]], {"a": 1})
"""JSON values in place of those of a file."""
_FACTORS = (np.nan, np.inf, 0.0, 1e30, -1e4)
_DELETE = object()


def mutate_file(path: Path, rng: np.random.Generator, donors: list[bytes]) -> None:
    """Changes a file in place.

    Args:
        path: the file; its suffix decides which changes are possible besides those of bytes.
        rng: draws the change.
        donors: contents of other files, of which pieces may be inserted.
    """
    content, kinds = path.read_bytes(), [lambda data: mutate_bytes(data, rng, donors)]
    if path.suffix == ".json":
        kinds += [lambda data: mutate_json(data, rng)] * 3
    if path.suffix == ".safetensors":
        kinds += [lambda data: mutate_tensors(data, rng), lambda data: mutate_tensor_header(data, rng)]
    path.write_bytes(kinds[rng.integers(len(kinds))](content))


def mutate_bytes(data: bytes, rng: np.random.Generator, donors: list[bytes]) -> bytes:
    """Returns bytes with one to four random changes."""
    for _ in range(rng.integers(1, 5)):
        change = _CHANGES[rng.integers(len(_CHANGES))]
        data = bytes(change(bytearray(data or b"\0"), rng, donors))
    return data


def mutate_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns a JSON file with one value replaced or deleted."""
    value = json.loads(data)
    paths = list(_paths(value))
    path = paths[rng.integers(len(paths))]
    new = (*_VALUES, _DELETE)[rng.integers(len(_VALUES) + 1)]
    return json.dumps(_replace(value, path, new)).encode()


def mutate_tensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns a safetensors file without a checksum, with changed numbers in one tensor, in several or in all."""
    from safetensors.numpy import load, save

    tensors = {name: array.copy() for name, array in load(data).items()}
    names = list(tensors)
    chosen = rng.choice(names, size=rng.choice([1, 3, len(names)]), replace=False)
    factor = np.float32(_FACTORS[rng.integers(len(_FACTORS))])
    with np.errstate(over="ignore", invalid="ignore"):
        for name in chosen:
            array = tensors[str(name)]
            tensors[str(name)] = np.ascontiguousarray((array.astype(np.float32) * factor).astype(array.dtype))
    return save(tensors)


def mutate_tensor_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns a safetensors file with one value of its JSON header replaced or deleted."""
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate_json(data[8 : 8 + length], rng)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _replace(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return None if new is _DELETE else new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if new is _DELETE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return value


Change = Callable[[bytearray, np.random.Generator, list[bytes]], bytearray | bytes]


def _position(data: bytearray, rng: np.random.Generator) -> int:
    end = min(len(data), _HEADER) if rng.random() < 0.5 else len(data)
    return int(rng.integers(end))


def _length(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(1, max(2, min(len(data), 4096) // 2)))


def _flip(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    for _ in range(rng.choice([1, 1, 8, 64])):
        data[_position(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def _integer(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    size, order = int(rng.choice([1, 2, 4, 8])), ("little", "big")[rng.integers(2)]
    value = _INTEGERS[rng.integers(len(_INTEGERS))] % 256**size
    at = _position(data, rng)
    data[at : at + size] = value.to_bytes(size, order)
    return data


def _fill(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    at, length = _position(data, rng), _length(data, rng)
    random = rng.integers(0, 256, length, np.uint8).tobytes()
    data[at : at + length] = (b"\0" * length, b"\xff" * length, random)[rng.integers(3)]
    return data


def _cut(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    return data[: _position(data, rng)]


def _remove(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    at = _position(data, rng)
    del data[at : at + _length(data, rng)]
    return data


def _repeat(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    at = _position(data, rng)
    piece = bytes(data[at : at + _length(data, rng)])
    return data[:at] + piece * int(rng.integers(1, 9)) + data[at:]


def _insert(data: bytearray, rng: np.random.Generator, donors: list[bytes]) -> bytearray:
    donor = bytearray(donors[rng.integers(len(donors))]) if donors else data
    at, start = _position(data, rng), _position(donor or data, rng)
    return data[:at] + donor[start : start + _length(data, rng)] + data[at:]


_CHANGES: tuple[Change, ...] = (_flip, _flip, _integer, _integer, _fill, _cut, _remove, _repeat, _insert)

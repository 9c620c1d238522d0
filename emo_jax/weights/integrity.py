"""Sizes and checksums of a checkpoint's files, to detect files that are missing, cut or changed.

The checksums are computed from the written files, in a thread of orbax's asynchronous save and from the page cache, at
1 to 2 GB/s per core (CRC-32 of zlib), in parallel; training does not wait for them. Reading computes them once more.
Files in a bucket have checksums of the storage service: there only sizes are stored and checked.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

MANIFEST = "checksums.json"
"""{path: [bytes, CRC-32 or null]} of the files of a checkpoint's items."""
OLD_MANIFEST = "sizes.json"
"""{path: bytes}, as earlier versions wrote it."""
_BLOCK = 2**22  # bytes


class Damaged(ValueError):
    """A checkpoint that cannot be read."""


def write_manifest(folder: epath.Path) -> None:
    """Writes the sizes and checksums of a checkpoint's files to the checkpoint.

    Files beside the folders of the items belong to orbax and may change later; they are left out.
    """
    paths = [path for item in folder.iterdir() if item.is_dir() for path in _files(item)]
    with ThreadPoolExecutor() as pool:
        entries = pool.map(lambda path: [path.stat().length, None if _in_bucket(folder) else checksum(path)], paths)
        manifest = {str(path.relative_to(folder)): entry for path, entry in zip(paths, entries, strict=True)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def check_files(folder: epath.Path, contents: bool = True) -> None:
    """Checks a checkpoint's files before any is read, because a read that fails leaves threads of orbax behind.

    Checkpoints of earlier versions have no checksums, and the earliest no sizes.

    Args:
        folder: the checkpoint.
        contents: whether to compute checksums, or to check sizes only.

    Raises:
        Damaged: a file is missing, or has another size or checksum.
    """
    manifest = _read_manifest(folder)
    for path, (size, _) in manifest.items():
        file = folder / path
        if not file.exists():
            raise Damaged(f"{folder} is damaged ({path} is missing)")
        if file.stat().length != size:
            raise Damaged(f"{folder} is damaged ({path} has {file.stat().length} bytes of {size})")
    expected = {path: crc for path, (_, crc) in manifest.items() if crc is not None and contents}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda path: checksum(folder / path), expected)
        for path, value in zip(expected, found, strict=True):
            if value != expected[path]:
                raise Damaged(f"{folder} is damaged (the content of {path} has changed)")


def checksum(path: os.PathLike) -> int:
    """Returns the CRC-32 of a file's content."""
    value = 0
    with open(os.fspath(path), "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _read_manifest(folder: epath.Path) -> dict[str, tuple[int, int | None]]:
    name = next((name for name in (MANIFEST, OLD_MANIFEST) if (folder / name).exists()), None)
    if name is None:
        return {}
    try:
        entries = json.loads((folder / name).read_text())
        if name == OLD_MANIFEST:
            return {path: (int(size), None) for path, size in entries.items()}
        return {path: (int(size), crc) for path, (size, crc) in entries.items()}
    except (ValueError, OSError, AttributeError, TypeError) as error:
        raise Damaged(f"{folder} is damaged ({name}: {' '.join(str(error).split())[:200]})") from error


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields all files in a folder. The `walk` of epath loses the scheme of a bucket."""
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def _in_bucket(folder: epath.Path) -> bool:
    return "://" in os.fspath(folder)

"""Claim files: processes on any hosts share a folder of work, without a server."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from emo_jax.files import is_running_here, process_tag
from emo_jax.progress import call_periodically

REFRESH = 30.0
"""Seconds between updates of a claim's time."""
STALE = 300.0
"""Seconds without an update after which a claim of another host counts as abandoned."""
_MADE: set[Path] = set()
"""Claims that this process holds."""


@contextlib.contextmanager
def claim(target: Path) -> Iterator[bool]:
    """Claims the work on a file for this process while the block runs.

    Two processes never hold the claim together: each creates a file with the next number, and gives it up again if any
    other file beside it belongs to a running process. Of two that do so at once, none or one succeeds.

    Args:
        target: the file that the work makes.

    Yields:
        Whether the claim succeeded: not if another process works on the file, or it is there.
    """
    own = None if target.exists() else _create(_folder(target))
    if own is None:
        yield False
        return
    try:
        with call_periodically(lambda: _touch(own), REFRESH):
            yield not target.exists()  # another process may have made it before the claim
    finally:
        own.unlink(missing_ok=True)
        _MADE.discard(own)
        _remove_old(own.parent)


def remove_abandoned(folder: Path) -> None:
    """Removes the claims on files that are there, which a process leaves if it is killed just after its work."""
    for path in folder.glob(".*.claim"):
        if (folder / path.name[1:].removesuffix(".claim")).exists():
            _remove_old(path)


def _folder(target: Path) -> Path:
    """Returns the folder of the claims on a file."""
    return target.with_name(f".{target.name}.claim")


def _create(folder: Path) -> Path | None:
    """Creates a claim if all others are abandoned; returns its file, or None."""
    others = _files(folder)
    if not all(map(_abandoned, others)):
        return None
    own = folder / str(1 + max((int(path.name) for path in others), default=0))
    try:
        folder.mkdir(exist_ok=True)
        with open(own, "x") as file:
            _MADE.add(own)
            file.write(process_tag())
    except (FileExistsError, FileNotFoundError):  # another process was faster, or removed the folder
        return None
    # A second look, because others may have created a claim since the first one: they see this file, or it sees theirs.
    if all(_abandoned(path) for path in _files(folder) if path != own):
        return own
    own.unlink()
    _MADE.discard(own)
    return None


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []


def _remove_old(folder: Path) -> None:
    """Removes abandoned claims, and the folder if no others are in it."""
    for path in _files(folder):
        if _abandoned(path):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _abandoned(path: Path) -> bool:
    """Returns whether the process of a claim is gone: known for this host, else by its time."""
    try:
        tag, age = path.read_text(), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    match = re.fullmatch(r"(.*)-(\d+)", tag)
    if match and process_tag().rpartition("-")[0] == match[1]:
        # A restarted container has the same host and number: a claim of this process that it did not make is old.
        if not is_running_here(int(match[2])) or (tag == process_tag() and path not in _MADE):
            return True
    return age > STALE  # claims of running processes are touched


def _touch(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)

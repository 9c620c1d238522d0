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

    Args:
        target: the file that the work makes.

    Yields:
        Whether the claim succeeded: not if another process works on the file, or it is there.
    """
    path = target.with_name(f".{target.name}.claim")
    if target.exists() or not _create(path):
        yield False
        return
    try:
        with call_periodically(lambda: _touch(path), REFRESH):
            yield not target.exists()  # another process may have made it before the claim
    finally:
        path.unlink(missing_ok=True)
        _MADE.discard(path)


def remove_abandoned(folder: Path) -> None:
    """Removes the claims on files that are there, which a process leaves if it is killed just after its work."""
    for path in folder.glob(".*.claim"):
        if (folder / path.name[1:].removesuffix(".claim")).exists() and _abandoned(path):
            path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    """Creates a claim, or takes over an abandoned one; returns whether it is ours."""
    for _ in range(2):
        try:
            with open(path, "x") as file:
                file.write(process_tag())
            _MADE.add(path)
            return True
        except FileExistsError:
            if not _abandoned(path):
                return False
            # Of several processes that find it abandoned, the one whose rename succeeds removes it.
            old = path.with_name(f"{path.name}.{process_tag()}.tmp")
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, old)
                old.unlink()
    return False


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

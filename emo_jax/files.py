"""Files and folders that are written completely or not at all. A killed run leaves no file that is half-written."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any


def process_tag() -> str:
    """Returns a text that names this process among those of all hosts, for the names of its temporary files."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def atomic_write(path: Any) -> Iterator[Any]:
    """Yields the path of a hidden file beside `path` to write to. On success it takes that name, else it is removed.

    Args:
        path: a str, a pathlib.Path, or an epath.Path (to a bucket).
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    if "://" not in str(path):
        _remove_leftovers_once(pathlib.Path(os.path.abspath(path.parent)))
    partial = path.with_name(f".{path.name}.{process_tag()}-{threading.get_ident()}.tmp")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Any, text: str) -> None:
    """Writes a text file with `atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def atomic_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a folder to fill. On success it replaces `folder`, else it is removed.

    What an earlier, killed call has left is removed first.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if folder.is_dir():  # A folder cannot be renamed to a folder that is not empty.
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_temporary_files(folder: pathlib.Path) -> None:
    """Removes all temporary files of `atomic_write` from a folder that no process is writing to."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the temporary files of killed processes: hidden files with the `process_tag` of a process that is gone.

    Files of other hosts, and of running processes, are kept.

    Args:
        folder: an existing or missing folder of this machine.
    """
    pattern = re.compile(rf"\..*\.{re.escape(socket.gethostname())}-(\d+)(-\d+)?\.(tmp|(part|complete)\.\w+)")
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        match = pattern.fullmatch(name)
        if match and not is_running_here(int(match[1])):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


_remove_leftovers_once = functools.lru_cache(maxsize=1024)(remove_leftovers)
"""Once per folder and process, because listing a large folder takes time."""


def is_running_here(process_id: int) -> bool:
    """Returns whether this host has a process of this number."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True

"""Files and folders that appear whole or not at all: a killed run leaves none that is broken."""

import contextlib
import os
import pathlib
import shutil
import socket
import threading


@contextlib.contextmanager
def whole(path):
    """The path of a hidden file beside `path`, to be written in the block: then it takes that name; on errors it goes.

    Args:
        path: a str or pathlib.Path, or a path with their methods (epath's, to a bucket).
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"  # process ids repeat on other hosts
    partial = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed processes left of `whole` in a folder; to be called while none writes there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """Writes a text file; `path` as `whole` takes it."""
    with whole(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def whole_folder(folder):
    """The path of a folder to fill, which takes its name, in place of one that is there, when the block ends well.

    What an error or a killed run leaves goes.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if folder.is_dir():  # a folder cannot take a full one's name
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

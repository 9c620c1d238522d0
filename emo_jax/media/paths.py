"""Checks paths of input files."""

from __future__ import annotations

import os
from pathlib import Path


def check_input_file(path: str | os.PathLike, kind: str) -> Path:
    """Checks that a path names a regular file that is not empty.

    Pipes are rejected because inputs are opened several times.

    Args:
        path: path given by the user.
        kind: what the file should be, for the error message: "an image file".

    Raises:
        ValueError: if the path is missing, a directory, a pipe or device, standard input ("-"), or an empty file.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a directory; give {kind}")
    if not file.is_file():
        if file.exists() or str(path) == "-":
            raise ValueError(f"{path} is not a regular file (a pipe or device); save it as {kind} and give its path")
        raise ValueError(f"{path} does not exist; give the path of {kind}")
    if not file.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes); export or download it again")
    return file

"""Names of the files that a video is written to: the target, and the temporary files beside it."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from emo_jax.files import process_tag, remove_leftovers
from emo_jax.media.formats import find_format, is_picture_folder

MAX_NAME = 255
"""Longest file name in bytes on Linux and macOS."""
PICTURE_NAME = "{:06d}.png"
"""Name of a frame in a folder of pictures, counted from 1."""
SOUND_NAME = "sound.wav"
"""Name of the sound in a folder of pictures."""
_COUNT = itertools.count()
_OWN_NAMES = re.compile(rf"\d{{6,}}\.png|{re.escape(SOUND_NAME)}")


def check_target(path: str | os.PathLike, codec: str | None = None, *, creates_folder: bool = False) -> None:
    """Checks that `open_writer` could write to `path`; leaves no file.

    Args:
        path: the file or folder to write.
        codec: a name in `formats.CODECS`; None for the format's default.
        creates_folder: whether `create_folder_of` will be called before.

    Raises:
        ValueError: if it could not.
    """
    if creates_folder and _missing_folder(path):
        if not is_picture_folder(path):
            find_format(path, codec)
    elif is_picture_folder(path):
        check_picture_folder(path)
    else:
        find_format(path, codec)
        create_partial(Path(path)).unlink(missing_ok=True)


def create_folder_of(path: str | os.PathLike) -> None:
    """Creates the folder in which `path` will be written, and those above it.

    Raises:
        ValueError: if it cannot be created.
    """
    folder = Path(os.path.realpath(path)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}: {folder}); choose another folder") from error


def _missing_folder(path: str | os.PathLike) -> bool:
    """Returns whether the folder of `path` is missing and can be created: the first one above it that exists is one."""
    folder = Path(os.path.realpath(path)).parent
    above = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    return above != folder and above.is_dir() and os.access(above, os.W_OK)


def create_partial(path: Path) -> Path:
    """Creates the empty temporary file beside `path`, so that an unwritable place is an error before the work."""
    target = Path(os.path.realpath(path))
    find_format(path)
    if not target.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {target.parent}; create it first")
    if len(os.fsencode(target.name)) > MAX_NAME:
        raise ValueError(f"{path} cannot be written: its name exceeds {MAX_NAME} bytes; choose a shorter one")
    if target.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a {path.suffix} file in it")
    remove_leftovers(target.parent)
    partial = beside(target, "part")
    try:
        partial.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    return partial


def beside(target: Path, kind: str) -> Path:
    """Returns the name of a temporary file beside `target`, with the process and a number: others may write it too."""
    suffix = target.suffix if target.suffix.lower() != ".gif" or kind != "part" else ".mp4"
    ending = f".{process_tag()}-{next(_COUNT)}.{kind}{suffix}"
    fits = len(os.fsencode(target.stem)) + len(ending) < MAX_NAME
    return target.with_name(f".{target.stem if fits else 'video'}{ending}")


def check_picture_folder(path: str | os.PathLike) -> Path:
    """Returns the absolute path of a folder for pictures.

    Raises:
        ValueError: if the folder holds other files than those of an earlier video, or cannot be created.
    """
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{path} is a file; choose another name for the folder of pictures")
    if not folder.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {folder.parent}; create it first")
    others = [name for name in os.listdir(folder) if not _OWN_NAMES.fullmatch(name)] if folder.is_dir() else []
    if others:
        raise ValueError(f"{path} holds {sorted(others)[0]}, which is no frame of a video; name an empty or new folder")
    if not os.access(folder.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written (no permission for {folder.parent}); choose another folder")
    return folder

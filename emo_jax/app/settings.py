"""Settings of the web page: what it offers, and its limits."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from emo_jax.generation.framing import check_framing
from emo_jax.generation.inputs import ASSETS
from emo_jax.weights.presets import DEFAULT


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the web page offers and allows.

    Attributes:
        weights: a preset, a folder of weights, or the folder of a training run.
        portraits: folder of pictures to choose from; None for the bundled portrait.
        songs: folder of recordings to choose from; None for the bundled voice.
        host: address to listen on.
        port: port to listen on.
        auth: pairs of user and password; empty for a page without login.
        max_seconds: longest video; of a longer song the first part is used.
        max_megabytes: largest file that a user may send.
        max_megapixels: largest picture that a user may send.
        max_size: limit of the shorter side of videos in pixels.
        max_queue: jobs that may wait; a further one is refused.
        keep_minutes: minutes after which files of users are deleted.
    """

    weights: str = DEFAULT
    portraits: Path | None = None
    songs: Path | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[tuple[str, str], ...] = ()
    max_seconds: float = 120.0
    max_megabytes: float = 50.0
    max_megapixels: float = 50.0
    max_size: int = 1080
    max_queue: int = 100
    keep_minutes: float = 60.0

    def __post_init__(self):
        """Checks the values.

        Raises:
            ValueError: a folder does not exist, or a limit is out of range.
        """
        for name in ("portraits", "songs"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"--{name} is {folder}; expected a folder")
        for name in ("max_seconds", "max_megabytes", "max_megapixels", "max_queue", "keep_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected a number above 0")
        check_framing("portrait", self.max_size)
        if not 0 <= self.port < 65536:
            raise ValueError(f"--port is {self.port}; expected 0 (any free one) to 65535")


def read_logins(path: str | os.PathLike) -> tuple[tuple[str, str], ...]:
    """Reads a file with a line `user:password` for each login. Empty lines and lines that begin with # are skipped.

    Raises:
        ValueError: the file cannot be read, has no logins, or a line has another form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--auth {path} cannot be read ({error}); expected a text file of user:password") from error
    logins = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            user, colon, password = line.strip().partition(":")
            if not (user and colon and password):
                raise ValueError(f"--auth {path}, line {number} is not user:password")
            logins.append((user, password))
    if not logins:
        raise ValueError(f"--auth {path} has no logins; expected lines of user:password")
    return tuple(logins)


class Library:
    """Files of one folder that users choose by name. A name that was not listed opens nothing.

    Args:
        folder: the folder; None for the bundled files.
        suffixes: endings of the files to list.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path | None, suffixes: tuple[str, ...]):
        self.folder = Path(folder or ASSETS)
        paths = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
        self._paths = {path.stem if folder is None else path.name: path for path in paths}

    def names(self, search: str = "") -> list[str]:
        """Returns the names that contain a text, in any case."""
        return [name for name in self._paths if search.casefold().strip() in name.casefold()]

    def path(self, name: str) -> Path:
        """Returns the file of a name.

        Raises:
            ValueError: no file has this name.
        """
        if name not in self._paths:
            raise ValueError(f"there is no {name[:80]!r} to choose; choose one of the list, or send a file")
        return self._paths[name]


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of portraits in a library, which browsers show."""
SOUNDS = (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus", ".mp4", ".mkv", ".webm", ".mov")
"""Endings of songs in a library."""

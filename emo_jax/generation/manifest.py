"""Manifests: lists of videos to make, as CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from emo_jax.media.formats import FORMATS

FIELDS = ("portrait", "audio", "output", "seed", "speed", "face", "vocals", "soundtrack")
"""Columns of a manifest; the first two are required."""


class Item(NamedTuple):
    """One video of a manifest.

    Attributes:
        name: name of the file in the output folder.
        portrait: path of the picture.
        audio: path of the recording.
        seed: the seed, or None for that of the command.
        speed: a number or a CSV file, as `--speed` takes it; None for that of the command.
        face: a number or a box, as `--face` takes it; None to take the largest.
        vocals: as `load_song` takes it; None for that of the command.
        soundtrack: a file that the video plays instead of `audio`, or None.
    """

    name: str
    portrait: str
    audio: str
    seed: int | None = None
    speed: str | None = None
    face: str | None = None
    vocals: str | None = None
    soundtrack: str | None = None


def read_manifest(path: str | os.PathLike, suffix: str = ".mp4") -> list[Item]:
    """Reads a manifest; relative paths in it start at its folder.

    Args:
        path: a .csv file with a line of column names (FIELDS), or a .jsonl file with an object in each line.
        suffix: ending of the files without `output`, which are named PORTRAIT_AUDIO, with a number if that is taken.

    Raises:
        ValueError: the file cannot be read, or a line of it is not a video.
    """
    path = Path(path)
    items: list[Item] = []
    taken: set[str] = set()
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        unknown = sorted(set(row) - set(FIELDS), key=str)
        if unknown:
            raise ValueError(f"{where} has the field {unknown[0]!r}; expected {', '.join(FIELDS)}")
        values = {name: str(value).strip() for name, value in row.items() if value not in (None, "")}
        for name in ("portrait", "audio"):
            if name not in values:
                raise ValueError(f"{where} has no {name}; expected the name of a file")
        name = _name(values, suffix, taken, where)
        taken.add(name)
        items.append(_item(values, name, path.parent, where))
    if not items:
        raise ValueError(f"{path} lists no videos; expected lines of portrait and audio")
    return items


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns the number of each line and its fields."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--manifest {path} cannot be read ({error}); expected a .csv or .jsonl file") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines(), restkey="more than the columns")
        return [(reader.line_num, row) for row in reader]
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"--manifest {path} does not end in .csv or .jsonl; rename it")
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is {line[:40]!r}; expected an object with portrait and audio")
        rows.append((number, row))
    return rows


def _name(values: dict[str, str], suffix: str, taken: set[str], where: str) -> str:
    """Returns the name of the file of a line."""
    name = values.get("output")
    if name is None:
        stem = f"{Path(values['portrait']).stem}_{Path(values['audio']).stem}"
        names = (f"{stem}{f'_{index}' if index else ''}{suffix}" for index in range(len(taken) + 1))
        return next(name for name in names if name not in taken)
    if name in taken:
        raise ValueError(f"{where} writes {name} again; expected another output")
    if name != os.path.basename(name) or Path(name).suffix.lower() not in FORMATS:
        raise ValueError(
            f"{where} has the output {name!r}; expected the name of a file that ends in {', '.join(FORMATS)}"
        )
    return name


def _item(values: dict[str, str], name: str, folder: Path, where: str) -> Item:
    def path_of(field: str) -> str | None:
        return os.path.join(folder, values[field]) if field in values else None

    seed = values.get("seed")
    if seed is not None and not seed.isdecimal():
        raise ValueError(f"{where} has the seed {seed!r}; expected an integer of at least 0")
    speed, vocals = values.get("speed"), values.get("vocals")
    if speed is not None and Path(speed).suffix.lower() == ".csv":
        speed = path_of("speed")
    if vocals not in (None, "auto", "off"):
        vocals = path_of("vocals")
    return Item(
        name,
        str(path_of("portrait")),
        str(path_of("audio")),
        None if seed is None else int(seed),
        speed,
        values.get("face"),
        vocals,
        path_of("soundtrack"),
    )

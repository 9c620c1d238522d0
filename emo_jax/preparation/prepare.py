"""`emo prepare`: write records (TFDS datasets of ArrayRecord files) to train on."""

from __future__ import annotations

import functools
import glob
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from emo_jax.data.records import Record, write_records
from emo_jax.files import write_text
from emo_jax.progress import Progress


def prepare_videos(
    inputs: Iterable[str],
    output: str,
    *,
    size: int = 512,
    seconds: float = 10.0,
    min_seconds: float = 2.0,
    min_face: float = 64.0,
    faces: str = "auto",
    face_model: str | None = None,
    licence: str = "unknown",
    workers: int = 2,
    shards: int = 256,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
) -> dict:
    """Cut talking heads out of videos and write them as the split train of `output`; returns the report.

    Equal arguments give equal records, however often the run was killed on its way; see `emo prepare videos --help`.
    Made by `workers` processes, or on Apache Beam's `runner`, which changes nothing in them. A video that cannot be
    used is a line of `rejected.jsonl`. Raises ValueError (one line) on arguments that make no sense, and where no video
    gave a record; OSError where the runner fails.
    """
    from emo_jax.faces.analyzers import make_analyzer
    from emo_jax.preparation import report
    from emo_jax.preparation.shards import Plan, finish
    from emo_jax.preparation.shots import Rules
    from emo_jax.preparation.tfds_builder import beam_maker
    from emo_jax.preparation.video_records import FPS, Settings
    from emo_jax.preparation.workers import make_shards

    if size % 2 or size < 16:
        raise ValueError(f"--size is {size}; video needs an even side of at least 16 pixels")
    for name, value, least in (
        ("--seconds", seconds, min_seconds),
        ("--min-seconds", min_seconds, 2 / FPS),
        ("--min-face", min_face, 1),
        ("--workers", workers, 1),
        ("--shards", shards, 1),
    ):
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} is {value}; give a number of at least {least:g}")
    model = os.path.abspath(face_model) if face_model else None
    analyzer = make_analyzer(faces, model)  # now, for its errors
    if runner_options and not runner:
        raise ValueError(f"--runner-options {' '.join(runner_options)} are for a runner: give --runner too")
    settings = Settings(Rules(seconds, min_seconds, min_face, size), analyzer.name, model, licence)
    plan = Plan(pathlib.Path(output).absolute(), find_videos(inputs), settings, shards)
    make = beam_maker(runner, runner_options) if runner else functools.partial(make_shards, workers=workers)
    if plan.begin():
        with Progress(len(plan.videos), "videos", "video") as progress:
            make(plan, progress=progress)
        finish(plan, lambda directory, summaries: report.write_report(directory, summaries, FPS))
    found = report.read_report(plan.target)
    if not found["records"]:
        raise ValueError(
            f"none of {found['videos']} videos gave a record: {plan.target / report.REJECTED_FILE} has the reasons"
        )
    return found


def prepare_images(
    inputs: Iterable[str],
    output: str,
    *,
    size: int = 512,
    min_face: float = 64.0,
    faces: str = "auto",
    face_model: str | None = None,
    licence: str = "unknown",
) -> tuple[int, int]:
    """Cut the faces out of pictures and write them as the split train of `output`, a record of one frame each.

    Returns how many records were written and how many pictures were left out; `rejected.jsonl` has the reasons. Raises
    ValueError (one line) on arguments that make no sense, and where no picture gave a record.
    """
    from emo_jax.faces.analyzers import make_analyzer
    from emo_jax.preparation.picture_records import picture_record
    from emo_jax.preparation.report import REJECTED_FILE
    from emo_jax.preparation.shots import Rules

    if size % 2 or size < 16 or not min_face >= 1:
        raise ValueError(f"--size is {size}, --min-face {min_face}; give an even side of at least 16, and at least 1")
    analyzer, rules = make_analyzer(faces, face_model), Rules(min_face=min_face, size=size)
    pictures, rejected, count = find_videos(inputs), [], 0

    def made() -> Iterator[Record]:
        nonlocal count
        with Progress(len(pictures), "pictures", "picture") as progress:
            for path, name in pictures:
                try:
                    record = picture_record(path, name, rules, analyzer, licence)
                except ValueError as error:
                    reason = " ".join(str(error).split()).replace(str(path), name)
                    rejected.append({"source": name, "reason": reason})
                else:
                    count += 1
                    yield record
                progress.add()
        if not count:
            first = rejected[0]
            raise ValueError(f"none of {len(pictures)} pictures gave a record; {first['source']}: {first['reason']}")

    write_records(output, {"train": made}, progress=False)
    write_text(pathlib.Path(output, REJECTED_FILE), "".join(json.dumps(line) + "\n" for line in rejected))
    return count, len(rejected)


def find_videos(patterns: Iterable[str]) -> tuple[tuple[pathlib.Path, str], ...]:
    """(path, name) of the files that the patterns, files and folders name, in the order of their names.

    The name is the path below the folder that holds them all. Raises ValueError where a pattern names no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        whole = os.path.join(glob.escape(pattern), "**") if os.path.isdir(pattern) else pattern
        paths = glob.glob(whole, recursive=True) or ([pattern] if os.path.exists(pattern) else [])
        files = {os.path.abspath(path) for path in paths if os.path.isfile(path)}
        if not files:
            raise ValueError(f"--input {pattern} names no file; give files, folders or patterns such as 'in/**/*.mp4'")
        found |= files
    root = os.path.commonpath([os.path.dirname(path) for path in found])
    names = {path: os.fsencode(os.path.relpath(path, root)).decode(errors="backslashreplace") for path in found}
    return tuple((pathlib.Path(path), names[path]) for path in sorted(found, key=names.get))

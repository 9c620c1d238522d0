"""Prepares datasets of records from videos and pictures (`emo prepare videos`, `emo prepare images`)."""

from __future__ import annotations

import functools
import glob
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from emo_jax.data.record import Record
from emo_jax.data.records import write_records
from emo_jax.files import write_text
from emo_jax.progress import Progress


def prepare_videos(
    inputs: Iterable[str],
    output: str,
    *,
    size: int = 512,
    aspect: float = 1.0,
    seconds: float = 10.0,
    min_seconds: float = 2.0,
    min_face: float = 64.0,
    faces: str = "auto",
    face_models: str | None = None,
    licence: str = "unknown",
    workers: int = 2,
    shards: int = 256,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
    held_out: float = 0.0,
    identity_from: str = "",
    max_offset: int = 5,
    drop: Sequence[str] = (),
) -> dict:
    """Crops talking heads from videos and writes them as the splits train and validation of a dataset.

    Equal arguments give equal records, even if the run was interrupted and called again; `workers` and `runner` do not
    change them. A video that cannot be used is listed in `rejected.jsonl`.

    Args:
        inputs: files, folders or glob patterns.
        output: directory of the dataset.
        size: shorter side of the frames in pixels, even.
        aspect: width / height of the frames.
        seconds: approximate length of a record.
        min_seconds: minimum length of a record.
        min_face: minimum height of the face in pixels of the source.
        faces: name of the face analyzer, see `faces.analyzers.make_analyzer`.
        face_models: folder of the analyzer's model files; None for the default, see `faces.models.default_folder`.
        licence: licence of the videos, which is stored in the records.
        workers: number of processes.
        shards: maximum number of files of a split.
        runner: Apache Beam runner that is used instead of local processes, see `beam.make_beam_runner`.
        runner_options: options of the runner.
        held_out: share of the people whose videos are the split validation; 0: there is none.
        identity_from: regular expression that finds the person in a video's name, see `splits.held_out_videos`.
        max_offset: largest offset in frames between sound and lips that is not flagged as off-sync.
        drop: flags whose records are left out, see `gates.FLAGS`.

    Returns:
        The report, see `report.make_report`.

    Raises:
        ValueError: if an argument is out of range, or no video gave a record.
        OSError: if the runner fails.
    """
    from emo_jax.faces.analyzers import make_analyzer
    from emo_jax.preparation import report
    from emo_jax.preparation.beam import make_beam_runner
    from emo_jax.preparation.gates import check_options
    from emo_jax.preparation.shots import Rules
    from emo_jax.preparation.splits import held_out_videos, same_people
    from emo_jax.preparation.video_records import FPS, Settings
    from emo_jax.preparation.video_shards import VideoBuild, publish_records
    from emo_jax.preparation.workers import make_shards

    _check_size(size, aspect)
    check_options(max_offset, drop)
    for name, value, minimum in (
        ("--seconds", seconds, min_seconds),
        ("--min-seconds", min_seconds, 2 / FPS),
        ("--min-face", min_face, 1),
        ("--workers", workers, 1),
        ("--shards", shards, 1),
    ):
        if not (math.isfinite(value) and value >= minimum):
            raise ValueError(f"{name} is {value}; expected at least {minimum:g}")
    models = os.path.abspath(face_models) if face_models else None
    analyzer = make_analyzer(faces, models)  # raises errors before the work starts
    if runner_options and not runner:
        raise ValueError(f"--runner-options {' '.join(runner_options)} needs --runner")
    rules = Rules(seconds, min_seconds, min_face, size, aspect)
    settings = Settings(rules, analyzer.name, models, licence, max_offset, tuple(sorted(set(drop))))
    videos = find_inputs(inputs)
    held_out_names = held_out_videos([name for _, name in videos], held_out, identity_from)
    build = VideoBuild(pathlib.Path(output).absolute(), videos, settings, shards, frozenset(held_out_names))
    make: Callable[..., None] = functools.partial(make_shards, workers=workers)
    if runner:
        make = make_beam_runner(runner, runner_options)
    if build.begin():
        with Progress(len(build.videos), "videos", "video") as progress:
            make(build, progress=progress)
        publish_records(build, lambda directory, summaries: report.write_report(directory, summaries, FPS))
        for warning in same_people(build.target, models) if held_out_names else ():
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    result = report.read_report(build.target)
    if not result["records"]:
        raise ValueError(
            f"none of {result['videos']} videos gave a record; the reasons are in {build.target / report.REJECTED_FILE}"
        )
    return result


def prepare_images(
    inputs: Iterable[str],
    output: str,
    *,
    size: int = 512,
    aspect: float = 1.0,
    min_face: float = 64.0,
    faces: str = "auto",
    face_models: str | None = None,
    licence: str = "unknown",
) -> tuple[int, int]:
    """Crops faces out of pictures and writes them as the split train of a dataset, as records of one frame.

    Args:
        inputs: files, folders or glob patterns.
        output: directory of the dataset; must not exist, or be empty.
        size: shorter side of the frames in pixels, even.
        aspect: width / height of the frames.
        min_face: minimum height of the face in pixels of the source.
        faces: name of the face analyzer, see `faces.analyzers.make_analyzer`.
        face_models: folder of the analyzer's model files; None for the default, see `faces.models.default_folder`.
        licence: licence of the pictures, which is stored in the records.

    Returns:
        The number of records and the number of rejected pictures; `rejected.jsonl` contains the reasons.

    Raises:
        ValueError: if an argument is out of range, or no picture gave a record.
    """
    from emo_jax.faces.analyzers import make_analyzer
    from emo_jax.preparation.picture_records import picture_record
    from emo_jax.preparation.report import REJECTED_FILE
    from emo_jax.preparation.shots import Rules

    _check_size(size, aspect)
    if not min_face >= 1:
        raise ValueError(f"--min-face is {min_face}; expected at least 1")
    analyzer, rules = make_analyzer(faces, face_models), Rules(min_face=min_face, size=size, aspect=aspect)
    pictures = find_inputs(inputs)
    rejected: list[dict[str, str]] = []

    def records() -> Iterator[Record]:
        with Progress(len(pictures), "pictures", "picture") as progress:
            for path, name in pictures:
                try:
                    record = picture_record(path, name, rules, analyzer, licence)
                except ValueError as error:
                    reason = " ".join(str(error).split()).replace(str(path), name)
                    rejected.append({"source": name, "reason": reason})
                else:
                    yield record
                progress.add()
        if len(rejected) == len(pictures):
            first = rejected[0]
            raise ValueError(f"none of {len(pictures)} pictures gave a record; {first['source']}: {first['reason']}")

    write_records(output, {"train": records}, progress=False)
    write_text(pathlib.Path(output, REJECTED_FILE), "".join(json.dumps(line) + "\n" for line in rejected))
    return len(pictures) - len(rejected), len(rejected)


def _check_size(size: int, aspect: float) -> None:
    if size % 2 or size < 16:
        raise ValueError(f"--size is {size}; expected an even number of at least 16 pixels")
    if not 0.25 <= aspect <= 4:
        raise ValueError(f"--aspect is {aspect:g} (width / height); expected 1:4 to 4:1")


def find_inputs(patterns: Iterable[str]) -> tuple[tuple[pathlib.Path, str], ...]:
    """Finds the files that glob patterns, files and folders (recursively) name.

    Args:
        patterns: the patterns.

    Returns:
        (path, name) in the order of the names; the name is the path relative to the common folder of all files.

    Raises:
        ValueError: if a pattern matches no file.
    """
    matches: set[str] = set()
    for pattern in patterns:
        recursive = os.path.join(glob.escape(pattern), "**") if os.path.isdir(pattern) else pattern
        paths = glob.glob(recursive, recursive=True) or ([pattern] if os.path.exists(pattern) else [])
        files = {os.path.abspath(path) for path in paths if os.path.isfile(path)}
        if not files:
            raise ValueError(
                f"--input {pattern} matches no file; give files, folders or patterns such as 'in/**/*.mp4'"
            )
        matches |= files
    root = os.path.commonpath([os.path.dirname(path) for path in matches])
    names = {path: os.fsencode(os.path.relpath(path, root)).decode(errors="backslashreplace") for path in matches}
    return tuple((pathlib.Path(path), names[path]) for path in sorted(matches, key=names.__getitem__))

"""Measures videos of any origin: `emo evaluate --videos DIR [--against DIR] [--portraits DIR]`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
from typing import Any

import numpy as np

from emo_jax.evaluation.against import Distance, SetMeter, compare_sets
from emo_jax.evaluation.face_track import FaceMeter, FaceTrack, frame_change
from emo_jax.evaluation.html_report import number, write_html
from emo_jax.evaluation.syncnet import SyncNet
from emo_jax.evaluation.video_measures import MEASURES, curves, measure_track
from emo_jax.files import write_text
from emo_jax.media.audio import decode_audio
from emo_jax.media.container import open_media
from emo_jax.media.images import load_image
from emo_jax.media.video import read_video
from emo_jax.progress import Progress
from emo_jax.tables import format_table

FPS = 25
"""Frames per second to which videos are resampled before they are measured."""
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PORTRAITS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".heic")
REPORT, TABLE, PAGE = "videos.json", "videos.csv", "videos.html"


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one video.

    Attributes:
        name: name of the file.
        figures: see `video_measures.MEASURES`; empty if the video cannot be measured.
        curves: means per second.
        reason: why it cannot be measured; "" otherwise.
    """

    name: str
    figures: dict[str, float | None]
    curves: dict[str, list[Any]]
    reason: str = ""


def evaluate_videos(
    videos: str,
    output: str,
    portraits: str | None = None,
    clip: int = 0,
    against: str | None = None,
    inception: str | None = None,
    i3d: str | None = None,
    syncnet: str | None = None,
) -> list[Result]:
    """Measures all videos of a folder, writes videos.json, videos.csv and videos.html to another, and prints a table.

    Args:
        videos: folder, or one file.
        output: the folder to write to.
        portraits: folder of the portraits that the videos were made from: NAME.png belongs to NAME.mp4. A video
            without a portrait is compared with its own first frame.
        clip: number of frames in a clip, for seams; 0: unknown.
        against: folder of videos, or one file, that the videos are compared with as a set; see `against`.
        inception: weights of pytorch-fid, for FID.
        i3d: weights of VideoGPT's I3D, for FVD.
        syncnet: weights of SyncNet, for Sync-C and Sync-D.

    Raises:
        ValueError: there are no videos or portraits, no video can be measured, or a model file is missing.
    """
    paths = _files(videos, VIDEOS, "--videos")
    if clip < 0 or clip == 1:
        raise ValueError(f"--clip is {clip}; expected at least 2 frames, or 0 if it is unknown")
    FaceMeter()  # raises before the work starts if a model is missing
    others = _files(against, VIDEOS, "--against") if against else []
    sets = SetMeter(inception, i3d) if others else None
    scorer = SyncNet(syncnet) if syncnet else None
    pictures = _files(portraits, PORTRAITS, "--portraits") if portraits else []
    references = {path.stem: _portrait(path) for path in pictures}
    folder = pathlib.Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output} cannot be created ({error.strerror}); choose another folder") from error
    with Progress(len(paths), "videos", "video") as progress:
        results = []
        for path in paths:
            results.append(_measure(path, references, clip, scorer))
            progress.add()
    if not any(result.figures for result in results):
        raise ValueError(f"none of {len(results)} videos can be measured; {results[0].name}: {results[0].reason}")
    distances = {}
    if sets:
        distances = compare_sets(sets.features(paths, "--videos"), sets.features(others, "--against"))
    settings = dict(
        videos=videos, portraits=portraits, clip=clip, fps=FPS, against=against, inception=inception, i3d=i3d,
        syncnet=syncnet,
    )  # fmt: skip
    rows = [dataclasses.asdict(result) for result in results]
    summary = {name: _median([result.figures.get(name) for result in results]) for name in MEASURES}
    content: dict[str, Any] = dict(settings=settings, measures=MEASURES, median=summary, videos=rows)
    if distances:
        content["against"] = {name: dataclasses.asdict(distance) for name, distance in distances.items()}
    write_text(folder / REPORT, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(folder / TABLE, _csv(results))
    shown = {path.name: _shown(path, pictures, others) for path in paths}
    write_html(folder / PAGE, MEASURES, rows, summary, content.get("against", {}), shown)
    print(_table(results, summary))
    if distances:
        print(_distance_table(distances))
    print(f"{folder / REPORT}, {folder / TABLE}, {folder / PAGE}")
    return results


def _shown(path: pathlib.Path, *others: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns a video and the files of the same name among its portraits and those of --against, for the page."""
    return [path, *(file for files in others for file in files if file.stem == path.stem and file != path)]


def _measure(path: pathlib.Path, references: dict[str, FaceTrack], clip: int, scorer: SyncNet | None) -> Result:
    meter = FaceMeter()
    try:
        for image, _ in read_video(path, FPS):
            meter.add(image)
        track, sound, change = meter.track(), _sound(path), _changes(path)
        frames = (image for image, _ in read_video(path, FPS))
        synced = scorer(frames, track.box, sound) if scorer else None
    except ValueError as error:
        return Result(path.name, {}, {}, " ".join(str(error).split()))
    portraits = {name: reference.embeddings[0] for name, reference in references.items()}
    own = path.stem if path.stem in references else None
    figures = measure_track(track, sound, FPS, references.get(path.stem), portraits, own, clip, change)
    if synced:
        figures |= dict(sync_c=synced.confidence, sync_d=synced.distance, syncnet_offset=synced.offset)
    return Result(path.name, figures, curves(track, FPS))


def _changes(path: pathlib.Path) -> np.ndarray:
    """Returns the changes (N,) between the file's own frames: on the grid of FPS, frames repeat or are missing."""
    changes, previous = [], None
    for image, _ in read_video(path):
        changes.append(frame_change(previous, image))
        previous = image
    return np.array(changes)


def _sound(path: pathlib.Path) -> np.ndarray:
    """Returns the sound of a video at 16 kHz from its first frame on; (0,) without sound."""
    with open_media(path) as container:
        if not container.streams.audio:
            return np.zeros(0)
    return decode_audio(path, align_to_video=True)[0]


def _portrait(path: pathlib.Path) -> FaceTrack:
    meter = FaceMeter()
    meter.add(load_image(path))
    track = meter.track()
    if not track.found[0]:
        raise ValueError(f"no face was found in the portrait {path}; remove it from --portraits")
    return track


def _files(place: str, endings: tuple[str, ...], option: str) -> list[pathlib.Path]:
    root = pathlib.Path(place)
    paths = [root] if root.is_file() else sorted(path for path in root.glob("*") if path.suffix.lower() in endings)
    if not paths:
        raise ValueError(f"{option} {place} is no file and has no files that end in {', '.join(endings)}")
    return paths


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.median(known)) if known else None


def _csv(results: list[Result]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", *MEASURES, "reason"])
    for result in results:
        values = (result.figures.get(name) for name in MEASURES)
        writer.writerow([result.name, *("" if value is None else f"{value:.6g}" for value in values), result.reason])
    return text.getvalue()


def _table(results: list[Result], summary: dict[str, float | None]) -> str:
    """The measures as rows, the videos as columns; videos that cannot be measured follow with their reasons."""
    measured = [result for result in results if result.figures]
    header = ("measure", *(result.name for result in measured), "median")
    rows = [
        (name, *(number(result.figures[name]) for result in measured), number(summary[name])) for name in MEASURES
    ]
    failed = [f"{result.name}: {result.reason}" for result in results if not result.figures]
    meaning = [f"{name}: {MEASURES[name]}" for name in MEASURES]
    table = format_table(rows, header, align="<" + ">" * (len(measured) + 1))
    return "\n".join([table, "-: cannot be measured in this video", "", *meaning, "", *failed])


def _distance_table(distances: dict[str, Distance]) -> str:
    rows = [
        (name, number(distance.value), "{} / {}".format(*distance.samples), distance.reason or distance.source)
        for name, distance in distances.items()
    ]
    return format_table(rows, ("distance", "value", "samples", "features"), align="<>>")

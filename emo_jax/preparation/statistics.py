"""Config values that are fitted to a dataset: the speed buckets (EMO 3.2, w^f) and the position of the face."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from emo_jax.data.record import MIN_SPEED_CONFIDENCE
from emo_jax.data.records import open_records
from emo_jax.media.mp4 import decode_video
from emo_jax.progress import Progress

MIN_RADIUS = 0.02
"""Minimum radius of a speed bucket in degrees per frame; smaller buckets would respond to noise only."""


@dataclasses.dataclass(frozen=True)
class HeadTracks:
    """Head motion and face boxes of a dataset.

    Attributes:
        speeds: (speeds,) in degrees per frame; all reliable ones, or all if none is reliable.
        reliable: whether any speed is reliable.
        boxes: for each record the face boxes (frames, 4), relative to the width and height of the frame.
    """

    speeds: np.ndarray
    reliable: bool
    boxes: list[np.ndarray]


def fit_config(
    directory: str, split: str, buckets: int, config: ConfigDict
) -> tuple[dict[str, float | list[float]], bool]:
    """Fits config fields to the records of a split.

    Args:
        directory: directory of the records.
        split: name of the split.
        buckets: number of speed buckets.
        config: a config, for the length of a clip and the crop scale.

    Returns:
        {config field: value}, and whether the speeds are reliable.
    """
    tracks = read_head_tracks(directory, split)
    centers, radii = fit_speed_buckets(tracks.speeds, buckets)
    face = fit_face(tracks.boxes, config.clip.frames, sum(config.data.crop_scale) / 2)
    values: dict[str, float | list[float]] = {"model.speed.centres": centers, "model.speed.radii": radii}
    return values | {f"clip.face.{name}": value for name, value in face.items()}, tracks.reliable


def read_head_tracks(directory: str, split: str = "train") -> HeadTracks:
    """Reads the speeds and face boxes of all records of a split."""
    source = open_records(directory, split)
    speeds, reliable, boxes = [], [], []
    with Progress(len(source), "records", "record") as progress:
        for i in range(len(source)):
            record = source[i]
            speeds.append(record["speed"])
            confidence = record["speed_confidence"]
            reliable.append(confidence >= MIN_SPEED_CONFIDENCE if len(confidence) else np.ones(len(speeds[-1]), bool))
            height, width = decode_video(record["video"], 0, 1).shape[1:3]
            boxes.append(record["boxes"] / (width, height, width, height))
            progress.add()
    all_speeds, mask = np.concatenate(speeds), np.concatenate(reliable)
    return HeadTracks(all_speeds[mask] if mask.any() else all_speeds, bool(mask.any()), boxes)


def fit_speed_buckets(speeds: np.ndarray, count: int) -> tuple[list[float], list[float]]:
    """Fits speed buckets, each of which contains about the same number of speeds.

    The centers are the medians of equal quantile ranges, at least MIN_RADIUS apart. The radii are the mean distances to
    the neighbors, so that the response of one bucket falls where that of the next rises.

    Args:
        speeds: (speeds,) in degrees per frame, not negative.
        count: number of buckets.

    Returns:
        The centers and radii in degrees per frame.

    Raises:
        ValueError: if there are fewer than two buckets, or fewer speeds than buckets.
    """
    speeds = np.asarray(speeds, np.float64)
    if count < 2 or len(speeds) < count:
        raise ValueError(f"buckets is {count} for {len(speeds)} speeds; expected at least 2, and at most one per speed")
    centers = np.quantile(speeds, (np.arange(count) + 0.5) / count)
    for k in range(1, count):
        centers[k] = max(centers[k], centers[k - 1] + MIN_RADIUS)
    gaps = np.diff(centers)
    radii = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
    return _round(centers), _round(radii)


def fit_face(boxes: list[np.ndarray], frames: int, view: float = 1.0) -> dict[str, float | list[float]]:
    """Fits `config.clip.face`: the position of the face in training, as medians over the clips of all records.

    Args:
        boxes: for each record the face boxes (frames, 4), relative to the width and height of the frame.
        frames: number of frames of a clip.
        view: side of the crop window of training relative to the frame, the mean of `data.crop_scale`.

    Returns:
        height and centre of the face, relative to the crop window; growth: by how much the union of a clip's boxes
        exceeds the median box on the left, top, right and bottom, relative to its width and height.

    Raises:
        ValueError: if no record is as long as a clip.
    """
    boxes = [(track - 0.5) / view + 0.5 for track in boxes]
    clips = [track[start : start + frames] for track in boxes for start in range(0, len(track) - frames + 1, frames)]
    if not clips:
        raise ValueError(f"no record is as long as a clip of {frames} frames; see --config")
    median = np.array([np.median(clip, axis=0) for clip in clips])
    union = np.array([[*clip[:, :2].min(0), *clip[:, 2:].max(0)] for clip in clips])
    size = np.tile(median[:, 2:] - median[:, :2], 2)
    growth = np.median((union - median) / size * (-1, -1, 1, 1), axis=0)
    center = np.median((median[:, :2] + median[:, 2:]) / 2, axis=0)
    height = np.median(size[:, 1])
    return dict(height=_round([height])[0], centre=_round(center), growth=_round(growth))


def _round(values: Iterable[float]) -> list[float]:
    return [round(float(value), 3) + 0.0 for value in values]  # adding 0.0 turns -0.0 into 0.0


def format_config_options(values: dict[str, float | list[float]]) -> str:
    """Formats config fields such as "model.speed.centres" as options of `emo train`, one per line."""
    lines = []
    for name, value in values.items():
        text = f"'({', '.join(f'{part:g}' for part in value)})'" if isinstance(value, list) else f"{value:g}"
        lines.append(f"--config.{name}={text}")
    return "\n".join(lines)

"""What a config takes from its data set: the speed buckets (EMO 3.2, w^f), and where faces lie in the frames."""

from __future__ import annotations

import numpy as np

from emo_jax.data.records import open_records
from emo_jax.media.mp4 import decode_video
from emo_jax.progress import Progress

TRUSTED = 0.5  # confidence from which a head's speed counts
LEAST_RADIUS = 0.02  # degrees per frame: below it a bucket would answer to noise alone


def head_tracks(directory: str, split: str = "train") -> tuple[np.ndarray, bool, list[np.ndarray]]:
    """(speeds, trusted, boxes) of the heads in a split.

    speeds: (N,) degrees per frame, those that can be trusted; all of them where none can, then `trusted` is False.
    boxes: of each record (frames, 4), as shares of the frame's width and height.
    """
    source = open_records(directory, split)
    speeds, sure, boxes = [], [], []
    with Progress(len(source), "records", "record") as progress:
        for i in range(len(source)):
            record = source[i]
            speeds.append(record["speed"])
            confidence = record["speed_confidence"]
            sure.append(confidence >= TRUSTED if len(confidence) else np.ones(len(speeds[-1]), bool))
            height, width = decode_video(record["video"], 0, 1).shape[1:3]
            boxes.append(record["boxes"] / (width, height, width, height))
            progress.add()
    speeds, sure = np.concatenate(speeds), np.concatenate(sure)
    return (speeds[sure] if sure.any() else speeds), bool(sure.any()), boxes


def fit_buckets(speeds: np.ndarray, count: int) -> tuple[list[float], list[float]]:
    """(centres, radii) of `count` buckets in degrees per frame: each holds about as many of the speeds as any other.

    Centres are the middle quantiles of equal shares, at least LEAST_RADIUS apart; radii the mean distance to the
    neighbours, so that where one bucket has faded the next has risen. speeds: (N,), not negative.

    Raises ValueError where there are fewer than two buckets or fewer speeds than buckets.
    """
    speeds = np.asarray(speeds, np.float64)
    if count < 2 or len(speeds) < count:
        raise ValueError(f"{count} buckets of {len(speeds)} speeds; expected 2 or more buckets, and a speed for each")
    centres = np.quantile(speeds, (np.arange(count) + 0.5) / count)
    for k in range(1, count):
        centres[k] = max(centres[k], centres[k - 1] + LEAST_RADIUS)
    gaps = np.diff(centres)
    radii = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
    return _rounded(centres), _rounded(radii)


def fit_face(boxes: list[np.ndarray], frames: int, view: float = 1.0) -> dict[str, float | list[float]]:
    """`config.clip.face`: height and centre of the faces as training sees them, and by how much a clip's union of boxes
    exceeds the usual box (left, top, right, bottom, in its width and height); medians over clips of `frames` frames.

    boxes: for each record (N, 4), as shares of the frame's width and height. view: the share of a frame that training
    cuts out, the mean of `data.crop_scale`.
    """
    boxes = [(track - 0.5) / view + 0.5 for track in boxes]
    clips = [track[start : start + frames] for track in boxes for start in range(0, len(track) - frames + 1, frames)]
    if not clips:
        raise ValueError(f"no record is as long as a clip of {frames} frames; see --config")
    usual = np.array([np.median(clip, axis=0) for clip in clips])
    hull = np.array([[*clip[:, :2].min(0), *clip[:, 2:].max(0)] for clip in clips])
    size = np.tile(usual[:, 2:] - usual[:, :2], 2)
    growth = np.median((hull - usual) / size * (-1, -1, 1, 1), axis=0)
    centre = np.median((usual[:, :2] + usual[:, 2:]) / 2, axis=0)
    height = np.median(size[:, 1])
    return dict(height=_rounded([height])[0], centre=_rounded(centre), growth=_rounded(growth))


def _rounded(values) -> list[float]:
    return [round(float(value), 3) + 0.0 for value in values]  # no -0


def config_lines(values: dict[str, float | list[float]]) -> str:
    """Fields such as "model.speed.centres" and their values as options of `emo train`, one a line."""
    lines = []
    for name, value in values.items():
        text = f"'({', '.join(f'{part:g}' for part in value)})'" if isinstance(value, list) else f"{value:g}"
        lines.append(f"--config.{name}={text}")
    return "\n".join(lines)

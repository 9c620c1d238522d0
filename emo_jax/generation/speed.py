"""Speeds of head rotation: a number, or a curve over time from a CSV file."""

from __future__ import annotations

import csv
import math
import os

import numpy as np
from jaxtyping import Float

from emo_jax.media.timing import exact_fps


def read_speed(text: str) -> float | Float[np.ndarray, "points 2"]:
    """Returns a speed from a text: a number in degrees per frame, or the name of a CSV file with a curve.

    Each line of the file is a time in seconds and a speed in degrees per frame; a first line of names is skipped.

    Raises:
        ValueError: the text is neither, or the file holds no increasing times with speeds of at least 0.
    """
    try:
        return float(text)
    except ValueError:
        pass
    if not os.path.isfile(text):
        raise ValueError(f"speed is {text!r}; expected degrees per frame, such as 0.6, or a CSV file of time,speed")
    with open(text, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = [row for row in csv.reader(file) if row and any(cell.strip() for cell in row)]
    points = []
    for number, row in enumerate(rows, 1):
        try:
            time, speed = (float(cell) for cell in row)
        except ValueError:
            if number == 1 and len(row) == 2:
                continue
            raise ValueError(f"{text}, line {number} is {','.join(row)!r}; expected time,speed: two numbers") from None
        points.append((time, speed))
    return check_curve(np.asarray(points, np.float64).reshape(-1, 2), text)


def check_curve(points: np.ndarray, name: object = "speed") -> Float[np.ndarray, "points 2"]:
    """Returns a curve of (time in seconds, degrees per frame).

    Raises:
        ValueError: there is no point, a value is not finite or below 0, or times do not increase.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{name} has the shape {points.shape}; expected at least one pair of time and speed")
    if not np.isfinite(points).all() or (points < 0).any() or (np.diff(points[:, 0]) <= 0).any():
        raise ValueError(f"{name} is no curve; expected increasing times and speeds of at least 0")
    return points


def speeds_of_frames(
    speed: float | Float[np.ndarray, "points 2"], frames: int, fps: float
) -> float | Float[np.ndarray, " frames"]:
    """Returns the speed of each frame of a curve, linear between its points and constant outside; numbers pass.

    Args:
        speed: degrees per frame, or a curve as `check_curve` takes it.
        frames: frames of the video.
        fps: its frame rate.
    """
    if np.ndim(speed) == 0:
        return speed
    times, values = check_curve(np.asarray(speed)).T
    middle = (np.arange(frames) + 0.5) / float(exact_fps(fps))
    return np.interp(middle, times, values).astype(np.float32)


def check_speed(speed: object) -> None:
    """Checks a speed: a number of at least 0, or a curve.

    Raises:
        ValueError: it is neither.
    """
    if np.ndim(speed) == 2:  # pyright: ignore[reportArgumentType]
        check_curve(np.asarray(speed))
    elif not isinstance(speed, int | float | np.number) or not math.isfinite(speed) or speed < 0:
        raise ValueError(f"speed is {speed!r}; expected a number of at least 0, or pairs of time and speed")

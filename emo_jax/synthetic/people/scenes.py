"""What is round a person: lights, backgrounds and the camera, sampled from a seed."""

from __future__ import annotations

import cv2
import numpy as np

from emo_jax.synthetic.people.geometry import Camera
from emo_jax.synthetic.people.identity import hsv
from emo_jax.synthetic.people.renderer import Light

BACKGROUNDS = ("plain", "gradient", "bokeh", "room", "outdoors", "studio")


def sample_light(rng: np.random.Generator) -> Light:
    """Returns the lights of a scene: from the front or the side, hard or soft, warm or cold."""
    side = np.radians(rng.normal(0, 38))
    up = np.radians(rng.uniform(5, 55))
    key = np.array([np.sin(side) * np.cos(up), np.sin(up), np.cos(side) * np.cos(up)])
    warm = (
        np.array([1.0, 1 - 0.5 * (t := rng.uniform(0, 0.3)), 1 - 1.3 * t])
        if rng.random() < 0.7
        else np.array([0.9, 0.96, 1.05])
    )
    hard = rng.uniform(0.35, 1.0)
    fill = np.array([-np.sign(key[0] + 1e-3) * rng.uniform(0.3, 1), rng.uniform(-0.2, 0.5), rng.uniform(0.1, 0.8)])
    tint = hsv(rng.random(), rng.uniform(0, 0.25) if rng.random() < 0.85 else rng.uniform(0.3, 0.7), 1.0)
    total = rng.uniform(0.95, 1.3)
    return Light(
        key_dir=_three(key),
        key_colour=_three(1.75 * hard * total * warm),
        fill_dir=_three(fill),
        fill_colour=_three(rng.uniform(0.08, 0.4) * total * tint),
        sky=_three(total * (1.0 - 0.62 * hard) * rng.uniform(0.75, 1.1) * np.array([0.97, 1.0, 1.05])),
        ground=_three(total * (1.0 - 0.62 * hard) * rng.uniform(0.35, 0.7) * np.array([1.05, 1.0, 0.93])),
    )


def turn_light(light: Light, degrees: float) -> Light:
    """Returns the light with its key light turned round the person, to the image's right if positive."""
    turn = np.radians(degrees)
    x, y, z = light.key_dir
    moved = (x * np.cos(turn) + z * np.sin(turn), y, z * np.cos(turn) - x * np.sin(turn))
    return Light(moved, light.key_colour, light.fill_dir, light.fill_colour, light.sky, light.ground)


def sample_camera(rng: np.random.Generator) -> Camera:
    """Returns a camera: the head fills a third to a half of the picture."""
    height = float(np.exp(rng.uniform(np.log(3.1), np.log(4.3))))
    middle = (
        0.5 + rng.normal(0, 0.025),
        float(np.clip(0.435 + rng.normal(0, 0.02) - 0.02 * (height - 3.6), 0.36, 0.5)),
    )
    return Camera(distance=float(rng.uniform(9, 22)), height=height, middle=middle)


def paint_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns a background (size, size, 3) uint8."""
    kind = str(rng.choice(BACKGROUNDS, p=(0.14, 0.2, 0.18, 0.22, 0.13, 0.13)))
    n = 192
    row, column = np.mgrid[0:n, 0:n].astype(np.float32) / n
    hue, value = rng.random(), rng.uniform(0.15, 0.9)
    first = hsv(hue, rng.uniform(0.03, 0.5), value)
    second = hsv((hue + rng.normal(0, 0.08)) % 1, rng.uniform(0.03, 0.5), np.clip(value + rng.normal(0, 0.25), 0.05, 1))
    turn = rng.uniform(0, 2 * np.pi)
    slope = np.clip(0.5 + (column - 0.5) * np.cos(turn) + (row - 0.5) * np.sin(turn), 0, 1)[..., None]
    picture = np.broadcast_to(first, (n, n, 3)).astype(np.float32).copy()
    blur = rng.uniform(1.0, 9.0)
    if kind == "gradient":
        picture = (first + slope * (second - first)).astype(np.float32)
    elif kind == "studio":
        spot = np.exp(-(((column - rng.uniform(0.3, 0.7)) / 0.45) ** 2) - ((row - rng.uniform(0.2, 0.6)) / 0.45) ** 2)[
            ..., None
        ]
        picture = (first * (0.45 + 0.8 * spot)).astype(np.float32)
    elif kind == "bokeh":
        picture = (0.5 * (first + slope * (second - first))).astype(np.float32)
        for _ in range(int(rng.integers(10, 45))):
            colour = hsv((hue + rng.normal(0, 0.15)) % 1, rng.uniform(0.1, 0.8), rng.uniform(0.4, 1))
            layer = picture.copy()
            cv2.circle(
                layer,
                tuple(int(v) for v in rng.integers(0, n, 2)),
                int(rng.uniform(3, 16)),
                colour.tolist(),
                -1,
                cv2.LINE_AA,
            )
            picture = cv2.addWeighted(picture, 0.5, layer, 0.5, 0)
        blur = rng.uniform(0.8, 3)
    elif kind == "room":
        picture = (first + slope * (second - first) * 0.5).astype(np.float32)
        for _ in range(int(rng.integers(4, 16))):
            x, y = rng.uniform(-0.1, 1, 2) * n
            wide, high = rng.uniform(0.05, 0.45) * n, rng.uniform(0.05, 0.6) * n
            colour = hsv((hue + rng.normal(0, 0.2)) % 1, rng.uniform(0, 0.5), rng.uniform(0.05, 1.0))
            cv2.rectangle(
                picture,
                (int(x), int(y)),
                (int(x + wide), int(y + high)),
                colour.tolist(),
                -1 if rng.random() < 0.75 else 3,
            )
    elif kind == "outdoors":
        sky, ground = (
            hsv(rng.uniform(0.52, 0.64), rng.uniform(0.1, 0.5), rng.uniform(0.6, 1)),
            hsv(rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)),
        )
        edge = rng.uniform(0.3, 0.75) + 0.08 * np.sin(column * rng.uniform(3, 14) + rng.uniform(0, 6))
        picture = np.where((row > edge)[..., None], ground, sky).astype(np.float32)
        leaves = cv2.GaussianBlur(rng.standard_normal((n, n)).astype(np.float32), (0, 0), rng.uniform(1.5, 5))
        picture *= 1 + np.clip(leaves / leaves.std(), -2, 2)[..., None] * 0.16 * (row > edge - 0.15)[..., None]
    picture = cv2.GaussianBlur(picture, (0, 0), blur)
    picture += rng.normal(0, 0.006, (n, n, 1)).astype(np.float32)
    return (cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR).clip(0, 1) * 255).astype(np.uint8)


def _three(vector: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in vector)
    return x, y, z

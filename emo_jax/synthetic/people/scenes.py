"""What is round a person: lights, backgrounds and the camera, sampled from a seed."""

from __future__ import annotations

import cv2
import numpy as np

from emo_jax.synthetic.people.colours import hsv
from emo_jax.synthetic.people.geometry import Camera
from emo_jax.synthetic.people.renderer import Light

BACKGROUNDS = ("plain", "gradient", "bokeh", "room", "outdoors", "studio")
_SIDES = {"soft": (28, 14), "dramatic": (55, 20)}  # mean and deviation of the key light's angle in degrees


def sample_light(rng: np.random.Generator, skin: np.ndarray) -> Light:
    """Returns the lights of a scene, exposed for a face with this skin colour (3,), sRGB in [0, 1].

    Three in four scenes have a large soft key light and a fill light, as in a studio or by a window; some have light
    from the front alone, and one in eight is dramatic: hard light from a side, dim or coloured.
    """
    kind = str(rng.choice(["soft", "front", "dramatic"], p=(0.74, 0.14, 0.12)))
    side = np.radians(rng.normal(0, 9) if kind == "front" else rng.choice([-1, 1]) * abs(rng.normal(*_SIDES[kind])))
    up = np.radians(rng.uniform(4, 25) if kind == "front" else rng.uniform(12, 45))
    key = np.array([np.sin(side) * np.cos(up), np.sin(up), np.cos(side) * np.cos(up)])
    fill = np.array([-np.sign(key[0] + 1e-3) * rng.uniform(0.4, 1), rng.uniform(-0.15, 0.4), rng.uniform(0.5, 1.0)])
    strength, filling, around = {
        "soft": (rng.uniform(0.5, 0.85), rng.uniform(0.15, 0.4), rng.uniform(0.28, 0.5)),
        "front": (rng.uniform(0.4, 0.7), rng.uniform(0.0, 0.25), rng.uniform(0.4, 0.65)),
        "dramatic": (rng.uniform(0.9, 1.2), rng.uniform(0.02, 0.2), rng.uniform(0.05, 0.2)),
    }[kind]
    warmth = rng.normal(0.02, 0.045) * (2 if kind == "dramatic" else 1)
    warm = np.array([1 + warmth, 1.0, 1 - 1.4 * warmth])
    tint = hsv(rng.random(), rng.uniform(0.2, 0.7) if kind == "dramatic" else rng.uniform(0, 0.1), 1.0)
    tint = tint / tint.mean()
    # Cameras are set to the face: light on a plane that faces the camera, more of it for darker skin.
    facing = strength * max(key[2], 0.25) + filling * 0.6 + around
    exposure = (rng.normal(1.8, 0.12) if kind != "dramatic" else rng.uniform(0.75, 1.3)) / facing
    exposure *= float(np.clip((0.5 / skin.mean()) ** 0.6, 0.85, 1.35))
    return Light(
        key_dir=_three(key),
        key_colour=_three(exposure * strength * warm),
        fill_dir=_three(fill),
        fill_colour=_three(exposure * filling * tint),
        sky=_three(exposure * around * 1.15 * np.array([0.98, 1.0, 1.03])),
        ground=_three(exposure * around * rng.uniform(0.65, 0.9) * np.array([1.04, 1.0, 0.94])),
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
    kind = str(rng.choice(BACKGROUNDS, p=(0.12, 0.18, 0.08, 0.24, 0.16, 0.22)))
    n = 192
    row, column = np.mgrid[0:n, 0:n].astype(np.float32) / n
    hue, value, vivid = rng.random(), rng.uniform(0.12, 0.85), 0.45 * rng.beta(0.7, 2.0)
    first = hsv(hue, vivid, value)
    second = hsv(
        (hue + rng.normal(0, 0.05)) % 1, vivid * rng.uniform(0.5, 1.5), np.clip(value + rng.normal(0, 0.2), 0.05, 0.95)
    )
    turn = rng.uniform(0, 2 * np.pi)
    slope = np.clip(0.5 + (column - 0.5) * np.cos(turn) + (row - 0.5) * np.sin(turn), 0, 1)[..., None]
    picture = np.broadcast_to(first, (n, n, 3)).astype(np.float32).copy()
    blur = rng.uniform(1.5, 8.0)
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
            colour = hsv((hue + rng.normal(0, 0.1)) % 1, rng.uniform(0.1, 0.6), rng.uniform(0.4, 1))
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
            colour = hsv(
                (hue + rng.normal(0, 0.1)) % 1,
                vivid * rng.uniform(0, 1.6),
                np.clip(value + rng.normal(0, 0.22), 0.04, 0.95),
            )
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

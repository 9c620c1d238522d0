"""Surroundings of a drawn head: background, neck, clothes, and the canvas texture of the painterly style."""

from __future__ import annotations

import cv2
import numpy as np

from emo_jax.synthetic.canvas import Brush
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity

_OUT = np.array([0.085, 0.12, 0.20, 0.29, 0.35, 0.385, 0.40])  # shoulder line: distance from the middle ...
_DOWN = np.array([0.80, 0.815, 0.835, 0.865, 0.91, 0.96, 1.05])  # ... and height, in image heights


def backdrop(identity: Identity, side: int) -> np.ndarray:
    """Returns the person's background, uint8 (side, side, 3). It is cached: copy it before drawing on it."""
    key = ("backdrop", side)
    if key not in identity.cache:
        identity.cache[key] = _draw_backdrop(identity, side)
    return identity.cache[key]


def _draw_backdrop(identity: Identity, side: int) -> np.ndarray:
    rng = np.random.default_rng([identity.seed, 5])
    first, second, third = identity.background_colours
    v, u = (np.mgrid[:side, :side] + 0.5) / side
    mix = np.zeros((side, side))
    if identity.background == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        mix = 0.5 + 0.7 * ((u - 0.5) * np.cos(angle) + (v - 0.5) * np.sin(angle))
    image = (first + mix[..., None] * (second - first)) * 255
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    if identity.background == "blobs":
        for _ in range(6):
            centre, radius = rng.integers(0, side, 2), int(side * rng.uniform(0.08, 0.2))
            cv2.circle(
                image, centre.tolist(), radius, ((second, third)[rng.integers(2)] * 255).tolist(), -1, cv2.LINE_AA
            )
        image = cv2.GaussianBlur(image, (0, 0), side / 20)
    return image


def paint_clothes(brush: Brush, identity: Identity, state: State, outline: float) -> None:
    """Draws neck and shoulders, which follow the head slightly."""
    middle = 0.5 + 0.35 * state.shift_x + 0.0003 * state.roll
    lower = 0.25 * state.shift_y
    head_x = 0.5 + state.shift_x + 0.0006 * state.yaw + 0.0022 * state.roll
    half = identity.shape["face_height"] * identity.shape["face_width"] * 0.25
    neck = np.array(
        [
            [head_x - half, 0.60],
            [head_x + half, 0.60],
            [middle + half * 1.1, 0.80 + lower],
            [middle + half * 1.5, 0.86 + lower],
            [middle - half * 1.5, 0.86 + lower],
            [middle - half * 1.1, 0.80 + lower],
        ]
    )
    first, second = identity.clothes_colours
    body = np.concatenate(
        [
            np.column_stack([middle - _OUT, _DOWN + lower])[::-1],
            [[middle, 0.84 + lower]],
            np.column_stack([middle + _OUT, _DOWN + lower]),
        ]
    )
    brush.fill(neck, identity.skin * 0.80)
    brush.fill(body, first)
    _pattern(brush, identity, middle, lower, second)
    if outline:
        brush.line(body, first * 0.25, outline, True)


def _pattern(brush: Brush, identity: Identity, middle: float, lower: float, colour: np.ndarray) -> None:
    if identity.clothes == "stripes":
        for top in (0.87, 0.915, 0.96):
            reach = np.interp([top, top + 0.02], _DOWN, _OUT) - 0.004
            brush.fill(
                np.array(
                    [
                        [middle - reach[0], top + lower],
                        [middle + reach[0], top + lower],
                        [middle + reach[1], top + 0.02 + lower],
                        [middle - reach[1], top + 0.02 + lower],
                    ]
                ),
                colour,
            )
    elif identity.clothes == "dots":
        for x in np.linspace(-0.3, 0.3, 7):
            for y in (0.9, 0.96):
                brush.line(np.array([[middle + x, y + lower], [middle + x, y + lower + 0.001]]), colour, 0.02)
    elif identity.clothes == "v-neck":
        brush.fill(
            np.array(
                [
                    [middle - 0.085, 0.80 + lower],
                    [middle, 0.95 + lower],
                    [middle + 0.085, 0.80 + lower],
                    [middle, 0.835 + lower],
                ]
            ),
            identity.skin * 0.86,
        )
    elif identity.clothes == "zip":
        brush.line(np.array([[middle, 0.84 + lower], [middle, 1.02]]), colour, 0.014)
    elif identity.clothes == "collar":
        for side in (-1, 1):
            brush.fill(
                np.array(
                    [
                        [middle + side * 0.10, 0.79 + lower],
                        [middle, 0.845 + lower],
                        [middle + side * 0.055, 0.915 + lower],
                        [middle + side * 0.135, 0.83 + lower],
                    ]
                ),
                colour,
            )


def paint_texture(identity: Identity, image: np.ndarray) -> np.ndarray:
    """Returns a drawing softened, with the person's canvas texture applied."""
    key = ("canvas", image.shape[0])
    if key not in identity.cache:
        rng = np.random.default_rng([identity.seed, 6])
        weave = cv2.GaussianBlur(rng.normal(0, 1, image.shape[:2]), (0, 0), sigmaX=1.6, sigmaY=0.7)
        weave = 128 * (1 + 0.01 * weave / weave.std())
        identity.cache[key] = cv2.merge([weave.clip(0, 255).astype(np.uint8)] * 3)
    return cv2.multiply(cv2.medianBlur(image, 3), identity.cache[key], scale=1 / 128)

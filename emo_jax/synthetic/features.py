"""Eyes, brows, nose, mouth and beard of a drawn head, as layers of polygons in front-view coordinates (head.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from emo_jax.synthetic.head import Head, State, drop_jaw
from emo_jax.synthetic.identities import Identity

CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 24, endpoint=False)), np.sin(np.linspace(0, 2 * np.pi, 24, endpoint=False))], 1
)
_ACROSS = np.linspace(-1, 1, 17)
_ARCH = (1 - _ACROSS**2) ** 0.6
_DARK = np.array([0.10, 0.07, 0.08])
_WHITE = np.ones(3)


class Layer(NamedTuple):
    """One polygon or line on the face, in front-view coordinates.

    Attributes:
        points: corners (N, 2).
        colour: RGB in [0, 1], (3,).
        height: height above the face, in half face heights.
        line: thickness of a line in half face heights; 0 fills the polygon.
        closed: whether a line is closed.
    """

    points: np.ndarray
    colour: np.ndarray
    height: float = 0.0
    line: float = 0.0
    closed: bool = True


def eyes(identity: Identity, state: State) -> list[Layer]:
    """Returns lids, whites, irises and pupils."""
    shape = identity.shape
    size, layers = shape["eye_size"] * 1.12, []
    tall = size * shape["eye_open"] * (1 + 0.15 * state.brow)
    for side in (-1, 1):
        x = side * shape["eye_gap"] + size * _ACROSS
        tilt = -0.12 - shape["eye_slant"] * side * _ACROSS
        lower = tilt + 0.62 * tall * _ARCH
        upper = tilt - tall * _ARCH * (1 - state.blink) + 0.5 * tall * _ARCH * state.blink
        lid = np.column_stack([x, upper])
        if state.blink > 0.05:
            closed = np.column_stack([x, tilt - tall * _ARCH])
            layers.append(Layer(np.concatenate([closed, lid[::-1]]), identity.skin * 0.86))
        layers.append(Layer(np.concatenate([lid, np.column_stack([x, lower])[::-1]]), np.array([0.97, 0.97, 0.96])))
        if state.blink < 0.9:
            look = np.array([side * shape["eye_gap"] + 0.4 * size * state.gaze_x, -0.13 + 0.35 * tall * state.gaze_y])
            for radius, colour in ((0.60 * size, identity.eye), (0.30 * size, _DARK * 0.6)):
                layers.append(Layer(_between_lids(look + CIRCLE * radius, x, upper, lower), colour))
            layers.append(
                Layer(_between_lids(look + (-0.2 * size, -0.22 * size) + CIRCLE * 0.13 * size, x, upper, lower), _WHITE)
            )
        layers.append(Layer(lid, _DARK, 0.0, 0.045, False))
    return layers


def _between_lids(points: np.ndarray, x: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Clips a convex shape to the open eye, column by column, which needs no polygon library."""
    return np.column_stack(
        [points[:, 0], np.clip(points[:, 1], np.interp(points[:, 0], x, upper), np.interp(points[:, 0], x, lower))]
    )


def brows(identity: Identity, state: State) -> list[Layer]:
    """Returns the two eyebrows."""
    shape, layers = identity.shape, []
    colour = identity.hair * 0.7 if identity.hair_style != "bald" else identity.skin * 0.4
    colour = np.minimum(colour, identity.skin * 0.72)
    for side in (-1, 1):
        x = side * shape["eye_gap"] + 0.19 * _ACROSS
        y = -0.36 - 0.11 * state.brow - shape["brow_angle"] * _ACROSS * side - 0.05 * (1 - _ACROSS**2)
        thick = shape["brow_thickness"] * (1 - 0.55 * np.clip(_ACROSS * side, 0, 1))
        layers.append(
            Layer(np.concatenate([np.column_stack([x, y]), np.column_stack([x, y + thick])[::-1]]), colour, 0.02)
        )
    return layers


def nose(identity: Identity) -> list[Layer]:
    """Returns the shaded side, the tip and the nostrils of the nose."""
    shape = identity.shape
    wide, tip = shape["nose_width"], shape["nose_length"]
    dark = identity.skin * 0.80
    light = np.sign(identity.light)
    bridge = np.array([[0.0, -0.14]])
    layers = [
        Layer(
            np.array([[light * -0.045, -0.2], [light * -0.05, -0.05], [light * -wide, 0.22], [0.0, 0.27], [0.0, 0.1]]),
            dark,
            0.03,
        ),
        Layer(CIRCLE * (wide, 0.085) + (0, 0.215), identity.skin * 0.93, 0.05),
    ]
    ball = CIRCLE * (0.72 * wide, 0.095)
    layers.append(
        Layer(
            np.concatenate([bridge + (-0.03, 0), ball[11:0:-1] + (0, 0.19), bridge + (0.03, 0)]),
            identity.skin * 0.97,
            0.6 * tip,
        )
    )
    layers.append(Layer(ball + (0, 0.18), np.minimum(identity.skin * 1.03, 1), tip))
    layers += [
        Layer(CIRCLE * (0.033, 0.024) + (side * 0.5 * wide, 0.265), identity.skin * 0.38, 0.55 * tip)
        for side in (-1, 1)
    ]
    return layers


def mouth(identity: Identity, state: State) -> list[Layer]:
    """Returns the layers of the mouth: first the outline of the lips, second the opening between them."""
    gap, thick = 0.44 * state.opening, identity.shape["lip_thickness"]
    half = identity.shape["mouth_size"] * (0.17 + 0.19 * state.width) * (1 - 0.1 * state.opening)
    x, line = half * _ACROSS, 0.52 - 0.035 * _ACROSS**2
    upper, lower = line - 0.12 * gap * _ARCH, line + 0.88 * gap * _ARCH
    outer = x * (1 + 0.035 / half)
    bow = 1 - 0.25 * np.exp(-((_ACROSS / 0.16) ** 2))
    lips = np.concatenate(
        [
            np.column_stack([outer, upper - thick * _ARCH * bow]),
            np.column_stack([outer, lower + 1.25 * thick * _ARCH])[::-1],
        ]
    )
    layers = [Layer(lips, identity.lip, 0.03)]
    hole = np.concatenate([np.column_stack([x, upper]), np.column_stack([x, lower])[::-1]])
    if gap < 0.02:
        return [*layers, Layer(np.column_stack([x, 0.5 * (upper + lower)]), identity.lip * 0.35, 0.03, 0.03, False)]
    layers.append(Layer(hole, np.array([0.20, 0.04, 0.06]), 0.03))
    if gap > 0.12:
        tongue = CIRCLE * (0.7 * half, 0.34 * gap) + (0, 0.52 + 0.80 * gap)
        layers.append(Layer(_between_lids(tongue, x, upper, lower), np.array([0.80, 0.36, 0.38]), 0.03))
    teeth = np.minimum(lower, upper + min(0.1, 0.42 * gap))
    inside = np.abs(_ACROSS) < 0.85
    layers.append(
        Layer(
            np.concatenate([np.column_stack([x, upper])[inside], np.column_stack([x, teeth])[inside][::-1]]),
            np.array([0.96, 0.95, 0.92]),
            0.03,
        )
    )
    return layers


def beard(identity: Identity, head: Head, state: State) -> list[Layer]:
    """Returns the beard; it moves with the jaw."""
    if identity.beard == "none":
        return []
    colour, layers = identity.hair * 0.85 + identity.skin * 0.1, []
    if identity.beard == "full":
        y = np.array([0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.985])
        outer = np.column_stack([head.width(y) * 0.985, y])
        inner = np.column_stack([head.width(y[:4]) * (0.9, 0.78, 0.6, 0.4), (0.12, 0.34, 0.37, 0.34)])
        right = np.concatenate([inner[::-1], outer])
        layers.append(Layer(drop_jaw(np.concatenate([right, (right * (-1, 1))[::-1]]), state.opening), colour))
    x = 0.30 * _ACROSS
    return [
        *layers,
        Layer(
            np.concatenate(
                [
                    np.column_stack([x, 0.47 + 0.02 * _ACROSS**2 - 0.11 * _ARCH]),
                    np.column_stack([x, 0.47 + 0.02 * _ACROSS**2])[::-1],
                ]
            ),
            colour * 0.9,
            0.03,
        ),
    ]

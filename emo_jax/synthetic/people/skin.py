"""Skin textures in cylinder coordinates round the average head: tone, spots, wrinkles, brows, stubble, make-up.

All places are those of the average head (`HeadData.rest`), so that one painting fits every identity.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from emo_jax.synthetic.people.identity import Person

SIZE = 1024  # texels each way
AXIS_Z = 0.30  # of the cylinder
TOP, BOTTOM = 8.6, 5.0  # heights of the texture's edges
EYE = np.array([0.312, 7.284])  # x, y of the left eye's centre
MOUTH = np.array([0.0, 6.61])
_BROW_Y = 0.225  # above the eye


def cylinder_uv(points: np.ndarray) -> np.ndarray:
    """Returns the texture coordinates (..., 2), from the top left, of points (..., 3); the seam is at the back."""
    turn = np.arctan2(points[..., 0], points[..., 2] - AXIS_Z) / np.pi
    u = 0.5 + 0.5 * (1.5 * turn - 0.5 * turn**3)  # the front gets most of the texels
    return np.stack([u, (TOP - points[..., 1]) / (TOP - BOTTOM)], -1)


def paint_skin(person: Person) -> np.ndarray:
    """Returns the texture (SIZE, SIZE, 4) uint8 of a person: sRGB, and the gloss in the last channel."""
    rng = np.random.default_rng([person.seed, 12])
    x, y, front = _grid()
    mottle = 0.5 * _noise(rng, 10) + 0.3 * _noise(rng, 40) + 0.2 * _noise(rng, 160)
    colour = person.skin.astype(np.float32) * (1 + 0.014 * mottle[..., None])
    colour *= 1 + 0.012 * _noise(rng, 400)[..., None] * (0.4 + person.age)
    _blush(colour, person, rng, x, y, front)
    _spots(colour, person, rng)
    _wrinkles(colour, person, rng, front)
    if person.make_up > 0.1:
        _make_up(colour, person, rng, x, y, front)
    if person.beard != "none" or person.male > 0.6 and person.age > 0.25:
        _stubble(colour, person, rng)
    _scalp(colour, person, rng)
    _brows(colour, person, rng)
    gloss = 0.32 + 0.16 * _bump(x, y, 0, 7.75, 0.5, 0.25) * front + 0.2 * _bump(x, y, 0, 6.95, 0.1, 0.25) * front
    gloss = gloss * rng.uniform(0.6, 1.4) + 0.06 * _noise(rng, 300)
    return (np.dstack([colour, gloss]).clip(0, 1) * 255).astype(np.uint8)


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x, y of the face's surface at each texel, and a mask (1 in front, 0 from the ears back): (SIZE, SIZE)."""
    wide = np.linspace(-1, 1, 4001)
    turn = np.interp((np.arange(SIZE) + 0.5) / SIZE * 2 - 1, 1.5 * wide - 0.5 * wide**3, wide) * np.pi
    x = np.where(np.abs(turn) < np.pi / 2, 1.12 * np.sin(turn), 1.12 * np.sign(turn))
    y = TOP - (np.arange(SIZE) + 0.5) / SIZE * (TOP - BOTTOM)
    front = np.clip((1.35 - np.abs(turn)) / 0.4, 0, 1)
    shape = (SIZE, SIZE)
    arrays = np.broadcast_to(x, shape), np.broadcast_to(y[:, None], shape), np.broadcast_to(front, shape)
    return tuple(np.ascontiguousarray(a, np.float32) for a in arrays)  # pyright: ignore[reportReturnType]


def _texel(x: float | np.ndarray, y: float | np.ndarray) -> np.ndarray:
    """Returns the texel (column, row) of a place on the face's front."""
    turn = np.arcsin(np.clip(np.asarray(x) / 1.12, -1, 1)) / np.pi
    column = (0.5 + 0.5 * (1.5 * turn - 0.5 * turn**3)) * SIZE
    return np.stack(np.broadcast_arrays(column, (TOP - np.asarray(y)) / (TOP - BOTTOM) * SIZE), -1)


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Returns smooth noise around 0 with about `cells` waves across the texture, (SIZE, SIZE) float32."""
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _bump(x: np.ndarray, y: np.ndarray, cx: float, cy: float, wide: float, high: float) -> np.ndarray:
    return np.exp(-(((x - cx) / wide) ** 2) - ((y - cy) / high) ** 2)


def _tint(colour: np.ndarray, mask: np.ndarray, factor) -> None:
    """Multiplies the colour by `factor` (3,) where the mask is 1."""
    colour *= 1 + mask[..., None] * (np.asarray(factor, np.float32) - 1)


def _blend(colour: np.ndarray, mask: np.ndarray, paint) -> None:
    colour += mask[..., None] * (np.asarray(paint, np.float32) - colour)


def _blush(colour, person, rng, x, y, front) -> None:
    """Blood under the skin: cheeks, nose and ears are redder, the eyelids darker."""
    ruddy = rng.uniform(0.3, 1.0)
    side = np.abs(x)
    cheeks = _bump(side, y, 0.5, 6.95, 0.28, 0.22) * front
    _tint(colour, cheeks * ruddy, (1.02, 0.94, 0.94))
    _tint(colour, _bump(side, y, 0.0, 6.93, 0.16, 0.16) * front * ruddy, (1.02, 0.93, 0.92))
    _tint(colour, _bump(side, y, 1.05, 7.1, 0.12, 0.3) * ruddy, (1.03, 0.89, 0.88))
    sockets = _bump(side, y, EYE[0], EYE[1] + 0.02, 0.25, 0.15) * front
    _tint(colour, sockets * rng.uniform(0.2, 1.0), (0.92, 0.87, 0.87))
    bags = _bump(side, y, EYE[0] - 0.02, EYE[1] - 0.16, 0.17, 0.05) * front
    _tint(colour, bags * (0.15 + 0.7 * person.age) * rng.uniform(0, 1), (0.87, 0.82, 0.84))
    _tint(colour, _bump(side, y, 0.07, 6.81, 0.04, 0.02) * front, (0.7, 0.55, 0.5))  # nostrils
    _tint(colour, _bump(side, y, 0.0, 6.44, 0.2, 0.05) * front, (0.88, 0.84, 0.84))  # under the lip


def _spots(colour, person, rng) -> None:
    """Freckles, moles and age spots."""
    layer = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(500 * max(person.freckles - 0.15, 0))):
        place = _texel(rng.normal(0, 0.4), rng.normal(7.05, 0.22))
        _dot(layer, place, rng.uniform(0.8, 2.2), rng.uniform(0.1, 0.45))
    for _ in range(rng.poisson(0.8 + 4 * max(person.age - 0.5, 0))):
        _dot(layer, _texel(rng.uniform(-0.8, 0.8), rng.uniform(6.2, 8.0)), rng.uniform(1.2, 3.2), rng.uniform(0.2, 0.7))
    layer = cv2.GaussianBlur(layer, (0, 0), 1.1)
    _blend(colour, layer.clip(0, 1), person.skin * (0.5, 0.36, 0.3))


def _dot(layer: np.ndarray, place: np.ndarray, radius: float, strength: float) -> None:
    x, y = (int(v) for v in place * 16)
    cv2.circle(layer, (x, y), int(radius * 16), strength, -1, cv2.LINE_AA, 4)


def _line(layer: np.ndarray, points: np.ndarray, width: int, strength: float) -> None:
    """Draws a line through places (N, 2) on the face."""
    texels = np.round(_texel(points[:, 0], points[:, 1]) * 16).astype(np.int32)
    cv2.polylines(layer, [texels], False, strength, width, cv2.LINE_AA, 4)


def _wrinkles(colour, person, rng, front) -> None:
    dark = np.zeros((SIZE, SIZE), np.float32)
    fold = 0.08 + 0.8 * person.wrinkles
    for side in (-1, 1):
        t = np.linspace(0, 1, 9)
        cheek = np.column_stack([side * (0.17 + 0.2 * t + 0.05 * np.sin(3 * t)), 6.93 - 0.33 * t])
        _line(dark, cheek, 5, 0.5 * fold * rng.uniform(0.4, 1))
        _line(
            dark,
            np.column_stack([side * (EYE[0] + 0.18 * np.cos(2.6 * t + 0.4)), EYE[1] - 0.09 - 0.09 * np.sin(2.2 * t)]),
            3,
            0.3 * fold,
        )
        crease = np.column_stack(
            [side * (EYE[0] + np.linspace(-0.17, 0.2, 9)), EYE[1] + 0.075 + 0.055 * np.sin(np.pi * t)]
        )
        _line(dark, crease, 2, 0.35)
        for number in range(int(rng.integers(2, 5) * (person.wrinkles > 0.15))):
            start = np.array([side * (EYE[0] + 0.2), EYE[1] + 0.07 - 0.06 * number])
            end = start + (side * rng.uniform(0.1, 0.2), 0.09 - 0.06 * number)
            _line(dark, np.stack([start, end]), 2, 0.5 * person.wrinkles * rng.uniform(0.5, 1))
        frown = np.array([[side * 0.07, 7.42], [side * 0.06, 7.55], [side * 0.08, 7.62]])
        _line(dark, frown, 3, 0.5 * max(person.wrinkles - 0.2, 0) * rng.uniform(0, 1))
    for number in range(int(rng.integers(2, 5) * (person.wrinkles > 0.2))):
        x = np.linspace(-0.5, 0.5, 17)
        line = 7.68 + 0.085 * number + 0.025 * np.cos(3 * x) + 0.012 * rng.standard_normal() + 0.01 * np.sin(17 * x)
        _line(dark, np.column_stack([x, line]), 2, 0.55 * person.wrinkles * rng.uniform(0.4, 1))
    soft = cv2.GaussianBlur(dark, (0, 0), 1.6) + 0.6 * cv2.GaussianBlur(dark, (0, 0), 5)
    light = cv2.GaussianBlur(np.roll(dark, 5, 0), (0, 0), 4)
    _tint(colour, soft.clip(0, 1) * front, (0.76, 0.68, 0.66))
    _tint(colour, (0.35 * light).clip(0, 0.3) * front, (1.14, 1.12, 1.12))


def _make_up(colour, person, rng, x, y, front) -> None:
    side, much = np.abs(x), person.make_up
    shadow = _bump(side, y, EYE[0] + 0.02, EYE[1] + 0.09, 0.2, 0.075) * front
    lid = person.skin * rng.uniform(0.35, 0.8) + rng.uniform(-0.04, 0.04, 3)
    _blend(colour, shadow * much * rng.uniform(0, 0.7), lid.clip(0, 1))
    _blend(
        colour,
        _bump(side, y, 0.55, 6.98, 0.22, 0.14) * front * much * rng.uniform(0, 0.3),
        (person.skin * (1.0, 0.62, 0.64)).clip(0, 1),
    )
    liner = np.zeros((SIZE, SIZE), np.float32)
    t = np.linspace(0, 1, 9)
    for sign in (-1, 1):
        upper = np.column_stack([sign * (EYE[0] - 0.15 + 0.34 * t), EYE[1] + 0.005 + 0.075 * np.sin(np.pi * t**0.9)])
        _line(liner, upper, 5, 1.0)
    _blend(colour, cv2.GaussianBlur(liner, (0, 0), 1.2) * much * rng.uniform(0.3, 0.9), (0.08, 0.06, 0.06))


@functools.cache
def beard_masks() -> dict[str, np.ndarray]:
    """Returns where each kind of beard grows, (SIZE, SIZE) float32 in [0, 1]."""
    x, y, front = _grid()
    side = np.abs(x)
    lips = np.clip(1.6 - (side / 0.30) ** 2 * 1.1 - ((y - MOUTH[1] + 0.01) / 0.125) ** 2, 0, 1)
    line = 6.62 + 0.42 * np.clip((side - 0.35) / 0.6, 0, 1) ** 1.2
    jaw = np.clip((line - y) / 0.1, 0, 1) * np.clip((y - 5.98) / 0.14, 0, 1)
    lip = np.clip(1.5 - np.abs((y - 6.745 + 0.16 * side) / 0.075), 0, 1) * np.clip((0.42 - side) / 0.08, 0, 1)
    chin = np.clip((0.34 - side) / 0.08, 0, 1) * np.clip((6.62 - y) / 0.06, 0, 1) * np.clip((y - 5.95) / 0.1, 0, 1)
    corner = (
        np.clip(1 - np.abs(side - 0.37) / 0.07, 0, 1)
        * np.clip((6.78 - y) / 0.05, 0, 1)
        * np.clip((y - 6.3) / 0.1, 0, 1)
    )
    free = (1 - lips) * np.clip(front * 3, 0, 1)
    full = np.maximum(np.maximum(jaw, lip), corner) * free
    return {
        "stubble": full,
        "full": full,
        "moustache": lip * free,
        "goatee": np.maximum(np.maximum(lip, chin), corner) * free,
    }


def _stubble(colour, person, rng) -> None:
    """Bluish shadow of shaven hair, dots of stubble, and a dark ground under a beard."""
    masks = beard_masks()
    shadow = masks["full"] * (0.1 + 0.25 * rng.random())
    _blend(colour, shadow * 0.5, person.skin * 0.72 + person.hair * 0.1 + (0.0, 0.01, 0.02))
    if person.beard == "none":
        return
    dots = np.clip(rng.standard_normal((SIZE, SIZE)).astype(np.float32) - 0.3, 0, 1)
    dots = cv2.GaussianBlur(dots, (0, 0), 0.8) * 2.2
    strength = 0.75 if person.beard == "stubble" else 0.9
    _blend(
        colour,
        (masks["stubble" if person.beard == "full" else person.beard] * dots * strength).clip(0, 0.9),
        person.hair * 0.8,
    )
    if person.beard != "stubble":
        _blend(colour, masks[person.beard] * 0.55, person.hair * 0.6)


def hairline(turn: np.ndarray, y: np.ndarray, recede: float = 0.0) -> np.ndarray:
    """Returns how far places are inside the hair, in decimetres; `turn` is 0 in front and pi at the back."""
    turn = np.abs(turn)
    temple = np.interp(
        turn,
        [0, 0.35, 0.62, 0.85, 1.0, 1.2, 1.45, 1.75, 2.1, np.pi],
        [8.04, 8.04, 7.95, 7.66, 7.48, 7.4, 7.2, 6.75, 6.35, 6.25],
    )
    back = recede * np.interp(turn, [0, 0.5, 0.9, 1.4, np.pi], [0.36, 0.55, 0.4, 0.05, 0.0])
    return y - temple - back


def _scalp(colour, person, rng) -> None:
    """Short or parted hair lets the scalp show: paint it in the hair's colour."""
    if person.hair_style == "bald" and rng.random() < 0.6:
        return
    wide = np.linspace(-1, 1, 4001)
    turn = np.interp((np.arange(SIZE) + 0.5) / SIZE * 2 - 1, 1.5 * wide - 0.5 * wide**3, wide) * np.pi
    y = TOP - (np.arange(SIZE)[:, None] + 0.5) / SIZE * (TOP - BOTTOM)
    inside = hairline(turn[None], y + 0 * turn, 1.0 if person.hair_style == "receding" else 0.0)
    edge = inside - 0.05 + 0.03 * _noise(rng, 200) + 0.03 * _noise(rng, 20)
    fuzz = 0.85 + 0.1 * _noise(rng, 500)
    dense = {"bald": 0.3, "buzz": 0.8, "receding": 0.8}.get(person.hair_style, 0.95)
    _blend(colour, (np.clip(edge / 0.24, 0, 1) * fuzz * dense).clip(0, 1).astype(np.float32), person.hair * 0.75)


def _brows(colour, person, rng) -> None:
    """Single hairs along an arch above each eye: dense in the middle, thin at the tail, loose at the inner end."""
    layer = np.zeros((SIZE, SIZE), np.float32)
    thick = 0.016 + 0.034 * person.brows
    arch = rng.uniform(0.01, 0.035) + 0.03 * (1 - person.male) * rng.random()
    lift, tilt, peak = rng.normal(0.005, 0.012), rng.normal(0.0, 0.018), rng.uniform(0.5, 0.68)
    start, end = -0.19 + rng.normal(0, 0.012), 0.27 + rng.normal(0, 0.015)
    for side in (-1, 1):
        for t in rng.beta(1.1, 1.1, int(130 + 170 * person.brows)):
            bend = 1 - ((t - peak) / (peak if t < peak else 1 - peak)) ** 2
            width = thick * np.interp(t, [0, 0.18, 0.5, 1], [0.75, 1.0, 0.85, 0.18])
            across = rng.uniform(-1, 1)
            y = _BROW_Y + lift + arch * bend + tilt * (t - 0.5) - 0.02 * t**2 + across * width
            lean = np.interp(t, [0, 0.25, peak, 1], [1.25, 0.55, 0.15, -0.35]) - 0.35 * max(across, 0)
            reach = (0.026 + 0.022 * rng.random()) * (0.8 + 0.5 * person.brows)
            root = EYE + (start + (end - start) * t, y)
            tip = root + reach * np.array([np.cos(lean), np.sin(lean)])
            _line(layer, np.stack([root, tip]) * (side, 1), 1, rng.uniform(0.35, 0.8) * min(1.0, 0.5 + 4 * t))
    dark = person.hair * (0.75 if person.grey < 0.6 else 0.85)
    paint = np.minimum(dark, person.skin * 0.72)
    soft = cv2.GaussianBlur(layer, (0, 0), 0.9) + 0.3 * cv2.GaussianBlur(layer, (0, 0), 4)
    _blend(colour, (soft * (0.85 + 0.3 * person.brows)).clip(0, 0.85), paint)

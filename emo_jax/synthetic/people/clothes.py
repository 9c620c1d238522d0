"""Clothes: the cloth's texture with plackets, lapels and ties, and collars and scarves as triangles."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from matplotlib.tri import LinearTriInterpolator, Triangulation
from scipy.interpolate import NearestNDInterpolator
from scipy.spatial import KDTree

from emo_jax.synthetic.people.assets import load_heads
from emo_jax.synthetic.people.geometry import Head
from emo_jax.synthetic.people.identity import Person
from emo_jax.synthetic.people.props import Part, tube

_Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]

SIZE = 512  # texels each way
_SIDE = 4.0  # decimetres each way; x from -2 to 2, y from 3 to 7 on the average body
_LOW, _AXIS = 3.0, 0.12  # the lowest y, and z of the neck's axis


def paint_cloth(person: Person) -> np.ndarray:
    """Returns the cloth as seen from the front, (SIZE, SIZE, 3) uint8, sRGB; its origin is at x = 0, y = 0."""
    rng = np.random.default_rng([person.seed, 16])
    row, column = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    first, second = person.clothes_colours
    kind = rng.choice(["plain", "stripes", "bars", "check", "heather"], p=(0.6, 0.1, 0.08, 0.1, 0.12))
    count = int(rng.integers(10, 30))
    patterns = {
        "stripes": np.sin(2 * np.pi * count * row) > rng.uniform(-0.3, 0.6),
        "bars": np.sin(2 * np.pi * count * column) > rng.uniform(0.2, 0.95),
        "check": (np.sin(2 * np.pi * count * column) > 0.3) * 0.4 + (np.sin(2 * np.pi * count * row) > 0.3) * 0.4,
        "heather": cv2.GaussianBlur(rng.random((SIZE, SIZE)), (0, 0), 0.8) * 0.8,
    }
    share = np.asarray(patterns.get(str(kind), 0 * row), np.float64)[..., None]
    picture = first + share * (second - first)
    if person.clothes == "collar":
        _placket(picture, rng)
    elif person.clothes == "jacket":
        picture = _jacket(picture, person, rng)
    else:
        knit = 0.03 * rng.standard_normal((SIZE, SIZE, 1)) + 0.03 * np.sin(2 * np.pi * 128 * row)[..., None]
        picture = picture * (1 + knit)
    waves = np.tile(rng.standard_normal((9, 9)), (3, 3))
    folds = cv2.resize(waves, (3 * SIZE, 3 * SIZE), interpolation=cv2.INTER_CUBIC)
    folds = folds[SIZE : 2 * SIZE, SIZE : 2 * SIZE, None]
    picture = (picture * (1 + 0.05 * folds)).clip(0, 1)
    picture = np.roll(picture, (round(_LOW / _SIDE * SIZE), SIZE // 2), (0, 1))
    return (picture * 255).astype(np.uint8)


def make_clothes(head: Head) -> list[Part]:
    """Returns the person's collar or scarf."""
    person = head.person
    rng = np.random.default_rng([person.seed, 18])
    if person.clothes == "scarf":
        return _scarf(head, rng)
    if person.clothes in ("collar", "jacket"):
        shirt = person.clothes_colours[0] if person.clothes == "collar" else _shirt(person)
        return [_collar(head, shirt * 0.95, gap=(0.1, 0.34), high=0.32, points=0.14)]
    if person.clothes == "turtle":
        return [_collar(head, person.clothes_colours[0], gap=(0.0, 0.0), high=0.34, points=0.0)]
    return []


def _texels(*places: tuple[float, float]) -> np.ndarray:
    scaled = (np.array(places) + (_SIDE / 2, -_LOW)) / _SIDE * SIZE
    return np.round(scaled * 16).astype(np.int32)


def _fill(picture: np.ndarray, colour, *places: tuple[float, float]) -> None:
    cv2.fillPoly(picture, [_texels(*places)], np.asarray(colour).tolist(), cv2.LINE_AA, 4)


def _edge(picture: np.ndarray, colour, *places: tuple[float, float]) -> None:
    cv2.polylines(picture, [_texels(*places)], False, np.asarray(colour).tolist(), 2, cv2.LINE_AA, 4)


def _placket(picture: np.ndarray, rng: np.random.Generator) -> None:
    middle = picture[:, SIZE // 2].mean(0)
    for side in (-0.09, 0.09):
        _edge(picture, middle * 0.75, (side, 6.0), (side, 3.0))
    for y in np.arange(5.4, 3.0, -0.42):
        button = tuple(int(v) for v in _texels((0.0, float(y)))[0])
        cv2.circle(picture, button, 5 * 16, (middle * rng.uniform(0.6, 0.8)).tolist(), -1, cv2.LINE_AA, 4)


def _shirt(person: Person) -> np.ndarray:
    """Returns the colour (3,) of the shirt under a jacket."""
    return 0.75 * np.array([0.85, 0.85, 0.86]) + 0.25 * person.clothes_colours[1]


def _jacket(cloth: np.ndarray, person: Person, rng: np.random.Generator) -> np.ndarray:
    """Returns the cloth with lapels over a shirt, which may have a tie."""
    cloth = cloth * np.minimum(1.0, 0.45 / cloth.mean())
    picture, colour = cloth.copy(), cloth.mean((0, 1))
    depth, wide = rng.uniform(3.2, 4.2), rng.uniform(0.42, 0.6)
    _fill(picture, _shirt(person), (-wide, 6.6), (wide, 6.6), (0.0, depth))
    _edge(picture, _shirt(person) * 0.8, (0.0, 6.0), (0.0, depth))
    if person.male > 0.5 and rng.random() < 0.6:
        tie = np.clip(rng.uniform(0.05, 0.6, 3), 0, 1)
        _fill(picture, tie, (-0.1, 5.62), (0.1, 5.62), (0.06, 5.42), (-0.06, 5.42))
        _fill(picture, tie * 0.9, (-0.06, 5.42), (0.06, 5.42), (0.15, depth), (-0.15, depth))
    for side in (-1, 1):
        inner, notch = (side * wide, 6.6), (side * (wide + 0.42), 5.0)
        lapel = (inner, (side * (wide + 0.28), 6.2), (side * (wide + 0.3), 5.25), notch, (0.0, depth))
        _fill(picture, colour * 1.06, *lapel)
        _edge(picture, colour * 0.6, *lapel[1:])
        _edge(picture, colour * 0.7, inner, (0.0, depth))
        _edge(picture, colour * 0.6, (side * (wide + 0.3), 5.25), (side * (wide + 0.14), 5.35))
    return picture


@functools.cache
def _neck_surface() -> tuple[_Surface, _Surface]:
    """Returns the average neck and shoulders: the radius at angles and heights, and the height at angles and radii.

    Angles are 0 in front and in [0, 2 pi].
    """
    x, y, z = _skin_places().T
    angle, radius = np.arctan2(x, z - _AXIS), np.hypot(x, z - _AXIS)
    near = (y > 4.6) & (y < 6.15) & (radius < 2.0)
    angles = np.concatenate([angle[near] + turn for turn in (-2 * np.pi, 0, 2 * np.pi)])
    heights, radii = np.tile(y[near], 3), np.tile(radius[near], 3)
    return _interpolate(angles, heights, radii), _interpolate(angles, radii, heights)


def _interpolate(angles: np.ndarray, others: np.ndarray, values: np.ndarray) -> _Surface:
    # Not scipy's LinearNDInterpolator: in these long and thin triangles its search sometimes took a minute.
    linear = LinearTriInterpolator(Triangulation(angles, others), values)
    nearest = NearestNDInterpolator(np.column_stack([angles, others]), values)

    def find(at: np.ndarray, other: np.ndarray) -> np.ndarray:
        found = np.ma.filled(linear(at, np.broadcast_to(other, at.shape)), np.nan)
        return np.where(np.isnan(found), nearest(at, other), found)

    return find


def _skin_places() -> np.ndarray:
    heads = load_heads()
    return heads.rest[np.unique(heads.corner_vertex[heads.corner_part == 0])]


def _fit(head: Head, places: np.ndarray) -> np.ndarray:
    """Moves places (..., 3) on the average body to this person's, as the skin near them moves."""
    skin = np.unique(head.heads.corner_vertex[head.heads.corner_part == 0])
    distance, near = KDTree(head.heads.rest[skin]).query(places.reshape(-1, 3), k=12)
    weight = 1 / (distance + 0.05)
    moved = (head.rest - head.heads.rest)[skin][near]
    return places + ((moved * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)).reshape(places.shape)


def _collar(head: Head, colour, gap: tuple[float, float], high: float, points: float) -> Part:
    """Returns a collar round the neck.

    Args:
        head: the head above it.
        colour: sRGB (3,).
        gap: half the opening in front at the upper and at the lower edge, in radians.
        high: from the upper to the lower edge, in decimetres.
        points: how much further the lower edge reaches in front.
    """
    radius, height = _neck_surface()
    count = 49
    rows = []
    for depth, away in ((-0.04, 0.0), (0.0, 0.045), (0.35, 0.1), (1.0, 0.24)):
        opening = np.interp(depth, [0, 1], gap)
        angle = np.linspace(opening, 2 * np.pi - opening, count)
        turn = np.minimum(angle, 2 * np.pi - angle)
        top = 5.76 + 0.12 * (1 - np.cos(turn))
        out = radius(angle, top) + away
        y = top - depth * (high + points * np.exp(-((turn / 0.7) ** 2)))
        if depth > 0:  # over the cloth
            y = np.maximum(y, height(angle, out) + 0.13)
        rows.append(np.column_stack([out * np.sin(angle), y, out * np.cos(angle) + _AXIS]))
    places = _fit(head, np.stack(rows))
    along, down = np.gradient(places, axis=1), np.gradient(places, axis=0)
    normals = np.cross(down, along)
    outward = places - places.mean((0, 1))
    outward[..., 1] = 0
    normals *= np.sign((normals * outward).sum(-1, keepdims=True))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    a = (np.arange(len(rows) - 1)[:, None] * count + np.arange(count - 1)[None]).reshape(-1)
    triangles = np.concatenate([np.stack([a, a + 1, a + count], 1), np.stack([a + 1, a + count + 1, a + count], 1)])
    shade = np.array([0.55, 1.0, 1.0, 0.9])[:, None, None] * np.ones((1, count, 1))
    return places.reshape(-1, 3), normals.reshape(-1, 3), triangles, (shade * colour).reshape(-1, 3)


def _scarf(head: Head, rng: np.random.Generator) -> list[Part]:
    """Returns three loops of cloth round the neck."""
    radius, turn = _neck_surface()[0], np.linspace(0, 2 * np.pi, 40, endpoint=False)
    parts = []
    for number in range(3):
        thick = rng.uniform(0.12, 0.17)
        wave = 0.04 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.03 * np.sin(5 * turn + rng.uniform(0, 6))
        y = 5.42 + 0.15 * number + 0.1 * (1 - np.cos(turn)) / 2 + wave
        out = radius(turn, y) + 0.08 + 0.02 * number
        path = np.column_stack([out * np.sin(turn), y, out * np.cos(turn) + _AXIS])
        colour = _scarf_colour(head.person, number) * rng.uniform(0.9, 1.05)
        parts.append(tube(_fit(head, path), thick, colour, closed=True, sides=8))
    return parts


def _scarf_colour(person: Person, number: int) -> np.ndarray:
    """Returns the colour (3,) of the scarf's loop of this number."""
    first, second = person.clothes_colours
    return (second + (first - second) * 0.25 * (number == 1)).clip(0, 1)

"""Things that people wear on the face: glasses and earrings, as triangles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from emo_jax.synthetic.people.geometry import Head


@dataclass(frozen=True, eq=False)
class Solid:
    """Triangles (T, 3) between N points.

    Attributes:
        triangles: (T, 3) int32.
        points, normals, tint: (N, 3) places before the head turns, unit normals, sRGB in [0, 1].
        follow: (N,) see `geometry.follow_weight`.
    """

    triangles: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    tint: np.ndarray
    follow: np.ndarray


Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Points (P, 3), unit normals (P, 3), triangles (T, 3) and colours (P, 3)."""


def make_props(head: Head) -> list[Part]:
    """Returns the person's glasses and earrings."""
    rng = np.random.default_rng([head.person.seed, 17])
    tubes = _glasses(head) if head.person.glasses != "none" else []
    if head.person.male < 0.5 and head.person.age > 0.2 and rng.random() < 0.35:
        tubes += _earrings(head, rng)
    return tubes


def tube(path: np.ndarray, radius: float, colour, closed: bool = False, sides: int = 5, flat: float = 1.0):
    """Returns a tube along a path (P, 3): its points, normals and triangles, and the colour of each point."""
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True) + 1e-9
    side = np.cross(ahead, (0.05, 0.1, 1.0))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    up = np.cross(side, ahead)
    turn = np.arange(sides) * 2 * np.pi / sides
    normals = np.cos(turn)[None, :, None] * side[:, None] + flat * np.sin(turn)[None, :, None] * up[:, None]
    points = path[:, None] + radius * normals
    count = len(path)
    rows = np.arange(count if closed else count - 1)
    a = (rows[:, None] * sides + np.arange(sides)[None]).reshape(-1)
    b = (rows[:, None] * sides + (np.arange(sides)[None] + 1) % sides).reshape(-1)
    c, d = (a + sides) % (count * sides), (b + sides) % (count * sides)
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    return points.reshape(-1, 3), normals.reshape(-1, 3), triangles, np.tile(np.asarray(colour), (count * sides, 1))


def _glasses(head: Head) -> list:
    person = head.person
    thin = person.glasses == "thin"
    radius = 0.010 if thin else 0.019
    wide, high, power = {"round": (0.215, 0.205, 1.0), "square": (0.245, 0.175, 0.5), "thin": (0.235, 0.165, 0.7)}[
        person.glasses
    ]
    turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    outline = np.column_stack(
        [np.sign(c := np.cos(turn)) * np.abs(c) ** power, np.sign(s := np.sin(turn)) * np.abs(s) ** power]
    )
    front = head.eye_centres[:, 2].mean() + head.eye_radius + 0.14
    tubes, inner = [], []
    for eye, sign in zip(head.eye_centres, (1.0, -1.0), strict=True):
        middle = np.array([eye[0] + 0.015 * sign, eye[1] - 0.03])
        rim = middle + outline * (wide, high)
        bend = front - 0.22 * np.maximum(np.abs(rim[:, 0]) - 0.25, 0)
        tubes.append(tube(np.column_stack([rim, bend]), radius, person.glasses_colour, closed=True))
        inner.append((middle[0] - sign * wide, middle[1] + 0.06, front))
        hinge = np.array(
            [middle[0] + sign * wide, middle[1] + 0.07, front - 0.22 * max(abs(middle[0]) + wide - 0.25, 0)]
        )
        ear = head.rest[np.abs(head.heads.rest - (sign * 1.0, 7.25, 0.25)).sum(1).argmin()] + (0.02 * sign, 0.08, 0)
        bow = np.linspace(0, 1, 5)[:, None]
        tubes.append(
            tube(hinge + bow * (ear - hinge) + (0.06 * sign, 0, 0) * np.sin(np.pi * bow), radius, person.glasses_colour)
        )
    arch = np.linspace(0, 1, 7)[:, None]
    bridge = inner[0] + arch * (np.array(inner[1]) - inner[0]) + (0, 0.035, 0.04) * np.sin(np.pi * arch)
    return [*tubes, tube(bridge, radius, person.glasses_colour)]


def _earrings(head: Head, rng: np.random.Generator) -> list:
    colour = np.array([[0.85, 0.68, 0.3], [0.8, 0.8, 0.82], [0.3, 0.1, 0.2]])[rng.integers(3)]
    size, tubes = rng.uniform(0.03, 0.11), []
    for sign in (1.0, -1.0):
        lobe = head.rest[np.abs(head.heads.rest - (sign * 0.98, 6.93, 0.33)).sum(1).argmin()]
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        ring = lobe + (0, -size, 0) + size * np.column_stack([0.3 * np.sin(turn), np.cos(turn), np.sin(turn)])
        tubes.append(tube(ring, 0.014, colour, closed=True))
    return tubes


def join(parts: list[Part], follow: Callable[[np.ndarray], np.ndarray]) -> Solid | None:
    """Joins parts, whose places follow the head by `follow` of their points; None if there are none."""
    if not parts:
        return None
    offsets = np.cumsum([0, *(len(points) for points, *_ in parts)])
    points = np.concatenate([points for points, *_ in parts])
    return Solid(
        triangles=np.concatenate([t + o for (_, _, t, _), o in zip(parts, offsets, strict=False)]).astype(np.int32),
        points=points.astype(np.float32),
        normals=np.concatenate([normals for _, normals, _, _ in parts]).astype(np.float32),
        tint=np.concatenate([tint for *_, tint in parts]).clip(0, 1).astype(np.float32),
        follow=follow(points).astype(np.float32),
    )

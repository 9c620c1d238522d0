"""Hair, beards and eyelashes: strands that grow from the skin, combed, curled and pulled down, kept off the head."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from emo_jax.synthetic.people.assets import load_heads
from emo_jax.synthetic.people.geometry import Head, follow_weight, vertex_normals
from emo_jax.synthetic.people.skin import AXIS_Z, SIZE, beard_masks, cylinder_uv, hairline

CROWN = np.array([0.0, 8.42, -0.35])
_STEPS = 9  # points of a strand


@dataclass(frozen=True, eq=False)
class Strands:
    """Ribbons of S strands with K points each.

    Attributes:
        points: (S, K, 3) places before the head turns.
        tangents: (S, K, 3) unit vectors towards the tip.
        outward: (S, K, 3) unit vectors away from the head.
        width: (S, K) half the ribbon's width.
        random: (S,) in [0, 1].
        occlusion: (S, K) light that reaches the hair, in [0, 1].
        follow: (S, K) see `geometry.follow_weight`.
        roots: (S, 3) vertices and `shares` (S, 3) their weights: where a strand sits on moving skin.
    """

    points: np.ndarray
    tangents: np.ndarray
    outward: np.ndarray
    width: np.ndarray
    random: np.ndarray
    occlusion: np.ndarray
    follow: np.ndarray
    roots: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Cut:
    """How hair grows. Lengths in decimetres; the rest in [0, 1] unless said otherwise."""

    count: int
    length: tuple[float, float]
    top: float  # length on the crown, relative to the sides
    lift: float  # how far strands rise before they lie down
    layer: float  # thickness of the hair
    gravity: float
    stiff: float
    curl: float = 0.0  # radius
    turns: float = 0.0  # of a curl
    clump: float = 0.35
    width: float = 0.03
    comb: str = "crown"


CUTS: dict[str, Cut] = {
    "buzz": Cut(1700, (0.05, 0.09), 1.0, 0.35, 0.02, 0.2, 0.5, clump=0.0, width=0.018),
    "crop": Cut(1450, (0.12, 0.24), 2.0, 0.4, 0.11, 0.25, 0.45, comb="forward", width=0.022),
    "side": Cut(1450, (0.13, 0.28), 3.0, 0.4, 0.18, 0.25, 0.4, comb="part", width=0.022),
    "back": Cut(1400, (0.25, 0.42), 2.6, 0.45, 0.2, 0.12, 0.45, comb="back", width=0.023),
    "spiky": Cut(1400, (0.12, 0.2), 1.9, 0.8, 0.24, 0.05, 0.75, clump=0.6, comb="crown", width=0.02),
    "curly": Cut(1300, (0.35, 0.6), 1.1, 0.7, 0.3, 0.25, 0.5, curl=0.06, turns=2.5, clump=0.5, width=0.02),
    "afro": Cut(1750, (0.25, 0.5), 1.1, 1.0, 0.42, 0.0, 0.9, curl=0.05, turns=4.0, clump=0.1, width=0.022),
    "pixie": Cut(1400, (0.3, 0.42), 1.8, 0.35, 0.15, 0.45, 0.4, comb="part", width=0.022),
    "bob": Cut(1150, (1.2, 1.4), 1.35, 0.3, 0.18, 0.8, 0.35, clump=0.3, comb="part", width=0.024),
    "long": Cut(1100, (2.3, 3.2), 1.15, 0.3, 0.19, 0.85, 0.35, clump=0.4, comb="part", width=0.027),
    "wavy": Cut(
        1100, (1.7, 2.7), 1.15, 0.4, 0.26, 0.75, 0.35, curl=0.07, turns=2.4, clump=0.55, comb="part", width=0.026
    ),
    "tied": Cut(1400, (1.1, 1.5), 1.0, 0.1, 0.09, 0.0, 0.3, clump=0.2, comb="knot", width=0.022),
    "receding": Cut(1150, (0.1, 0.2), 1.2, 0.4, 0.07, 0.25, 0.45, comb="crown", width=0.02),
}
_FALLING = ("bob", "long", "wavy")  # hair that hangs beside the face


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


def _roots(head: Head, rng: np.random.Generator, count: int, weigh) -> tuple[np.ndarray, np.ndarray]:
    """Draws places on the skin: vertices (count, 3) of their triangles and weights (count, 3).

    `weigh` takes places (N, 3) on the average head and returns how likely hair grows there, in [0, 1].
    """
    heads = head.heads
    skin = heads.triangles[heads.corner_part[heads.triangles[:, 0]] == 0]
    table = heads.masks[:, :, 2:]
    uv = np.clip((heads.corner_uv[skin].mean(1) * len(table)).astype(int), 0, len(table) - 1)
    free = (table[uv[:, 1], uv[:, 0]] < 90).all(1)
    triangles = heads.corner_vertex[skin[free]]
    a, b, c = (heads.rest[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) * (weigh((a + b + c) / 3) + weigh(a) + weigh(b) + weigh(c))
    vertices, shares = np.zeros((0, 3), int), np.zeros((0, 3))
    for _ in range(20):
        chosen = triangles[rng.choice(len(triangles), 2 * count, p=area / area.sum())]
        split = rng.dirichlet([1, 1, 1], 2 * count)
        kept = rng.random(2 * count) < weigh((heads.rest[chosen] * split[..., None]).sum(1))
        vertices, shares = np.concatenate([vertices, chosen[kept]]), np.concatenate([shares, split[kept]])
        if len(vertices) >= count:
            break
    return vertices[:count], shares[:count]


class _Body:
    """The skin as an obstacle."""

    def __init__(self, head: Head):
        skin = np.unique(head.heads.corner_vertex[head.heads.corner_part == 0])
        self.normals = vertex_normals(head.rest)[skin]
        self.places = head.rest[skin]
        self.tree = KDTree(self.places)

    def outside(self, points: np.ndarray, layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pushes points (S, 3) out of the skin to at least `layer` (S,); returns them and the normals there."""
        distance, near = self.tree.query(points, k=3)
        weight = 1 / (distance + 1e-3)
        weight = (weight / weight.sum(1, keepdims=True))[..., None]
        normal = _unit((self.normals[near] * weight).sum(1))
        depth = ((points - (self.places[near] * weight).sum(1)) * normal).sum(1)
        return points + np.clip(layer - depth, 0, 0.6)[:, None] * normal, normal


def grow_hair(head: Head) -> Strands | None:
    """Returns the hair of a person; None for the bald."""
    person = head.person
    if person.hair_style == "bald":
        return None
    cut = CUTS[person.hair_style]
    rng = np.random.default_rng([person.seed, 13])
    recede = float(rng.uniform(0, 0.25)) * (1 if person.male > 0.5 else -1)
    recede = 1.0 if person.hair_style == "receding" else recede

    def weigh(rest):
        inside = hairline(np.arctan2(rest[:, 0], rest[:, 2] - AXIS_Z), rest[:, 1], recede)
        return np.clip(inside / 0.12, 0, 1)

    vertices, shares = _roots(head, rng, cut.count, weigh)
    rest = (head.heads.rest[vertices] * shares[..., None]).sum(1)
    start = (head.rest[vertices] * shares[..., None]).sum(1)
    body = _Body(head)
    up = np.clip((rest[:, 1] - 7.3) / 1.0, 0, 1)
    length = rng.uniform(*cut.length, len(start)) * (1 + (cut.top - 1) * up)
    length *= np.interp(rng.random(), [0, 1], [0.8, 1.25])
    frontal = (np.abs(rest[:, 0]) < 0.62) & (rest[:, 2] > 0.55)
    fringe = frontal & (person.fringe != "none")
    to_brows = (0.12 + 1.15 * (rest[:, 1] - 7.58)) * rng.uniform(0.85, 1.05, len(start))
    length = np.where(fringe, to_brows * (1.0 if person.fringe == "straight" else 1.15), length)
    if person.hair_style in _FALLING:  # hair from the temples hides less of the cheeks
        length = np.where(frontal & ~fringe, length * 0.95, length)
    layer = cut.layer * rng.uniform(0.15, 1, len(start)) ** 0.8 * (0.55 + 0.45 * up)
    points, outward = _grow(start, rest, length, layer, cut, fringe, person, body, rng)
    points = _clump(points, cut.clump, rng)
    points = _curl(points, cut, outward, rng)
    if person.hair_style == "tied":
        points, outward, vertices, shares, layer = _add_bun(points, outward, vertices, shares, layer, head, rng)
    inside = hairline(np.arctan2(rest[:, 0], rest[:, 2] - AXIS_Z), rest[:, 1], recede)
    fine = np.pad(np.clip(0.45 + 2.5 * inside, 0.45, 1), (0, len(points) - len(rest)), constant_values=1.0)
    width = cut.width * fine  # a hairline of single hairs instead of locks
    return _ribbons(points, outward, width, layer / cut.layer, vertices, shares, rng, person.hair_style)


def _comb(places: np.ndarray, rest: np.ndarray, kind: str, parting: float) -> np.ndarray:
    """Returns the direction (S, 3) in which hair at these places is combed."""
    side = np.sign(places[:, 0] - 0.32 * parting + 1e-6)
    if kind == "part":
        return _unit(np.column_stack([side * 1.0, -0.35 + 0 * side, -0.25 + 0 * side]))
    if kind == "back":
        return _unit(np.column_stack([0.25 * np.sign(places[:, 0]), 0.1 + 0 * side, -1 + 0 * side]))
    if kind == "forward":
        ahead = np.clip((rest[:, 1] - 7.9) / 0.3, 0, 1)
        return _unit(np.column_stack([0.35 * parting + 0 * side, -0.5 - (1 - ahead), ahead]))
    return _unit(places - CROWN)


def _grow(start, rest, length, layer, cut, fringe, person, body, rng):
    """Returns points (S, K, 3) of the strands and the normals (S, K, 3) of the skin below them."""
    points, normals = [start], []
    place, normal = body.outside(start, np.full(len(start), 0.005))
    crown = CROWN + (start.mean(0) - rest.mean(0))
    knot = np.array([0.0, 8.25, -0.75]) + (start.mean(0) - rest.mean(0))
    ahead = np.column_stack(
        [
            np.full(len(start), 0.0 if person.fringe == "straight" else 0.9 * person.parting),
            np.full(len(start), -0.7),
            np.full(len(start), 0.7),
        ]
    )
    before = _unit(normal * cut.lift + 0.15 * rng.standard_normal(start.shape))
    step = (length / (_STEPS - 1))[:, None]
    for index in range(_STEPS - 1):
        normals.append(normal)
        combed = _comb(place + (CROWN - crown), rest, cut.comb, person.parting)
        if cut.comb == "knot":
            combed = _unit(knot - place)
        elif cut.comb == "crown" and cut.lift > 0.6:
            combed = _unit(normal + 0.4 * combed)
        combed = np.where(fringe[:, None], _unit(ahead), combed)
        if cut.gravity > 0.5:  # combed on the head, hair hangs freely below it
            combed = combed * np.clip(1.3 - index * step / 0.55, 0, 1)
        along = combed - (combed * normal).sum(1, keepdims=True) * normal * (1 - cut.lift)
        pull = np.where(fringe, 0.3, cut.gravity) * (0.3 + 0.7 * index / _STEPS) * 2
        want = _unit(along + pull[:, None] * (0, -1, 0) + 0.06 * rng.standard_normal(start.shape))
        if cut.comb == "knot":
            far = np.linalg.norm(knot - place, axis=1, keepdims=True)
            step = np.minimum(step, far / 2)
        before = _unit(cut.stiff * before + (1 - cut.stiff) * want)
        place, normal = body.outside(place + step * before, layer * min(1.0, (index + 1) / 3))
        points.append(place)
    normals.append(normal)
    return np.stack(points, 1), np.stack(normals, 1)


def _clump(points: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draws strands together towards their tips, in locks."""
    guides = rng.choice(len(points), max(len(points) // 14, 1), replace=False)
    _, near = KDTree(points[guides, 0]).query(points[:, 0])
    along = np.linspace(0, 1, points.shape[1])[None, :, None] ** 1.3
    share = strength * along * rng.uniform(0.5, 1, (len(points), 1, 1))
    return points + share * (points[guides][near] - points)


def _curl(points: np.ndarray, cut: Cut, outward: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not cut.curl:
        return points
    tangent = _unit(np.gradient(points, axis=1))
    across = _unit(np.cross(tangent, outward))
    guides = max(len(points) // 14, 1)
    phase = rng.random(guides)[rng.integers(0, guides, len(points))][:, None] * 2 * np.pi
    along = np.linspace(0, 1, points.shape[1])
    angle = phase + 2 * np.pi * cut.turns * along * rng.uniform(0.8, 1.2, (len(points), 1))
    reach = (cut.curl * np.minimum(along * 3, 1))[None, :, None]
    return points + reach * (np.cos(angle)[..., None] * across + 0.7 * np.sin(angle)[..., None] * outward)


def _add_bun(points, outward, vertices, shares, layer, head, rng):
    """A knot of hair at the back of the crown."""
    count = 500
    middle = np.array([0.0, 8.42, -0.8]) + (head.rest[vertices].mean((0, 1)) - head.heads.rest[vertices].mean((0, 1)))
    axis = _unit(rng.standard_normal((count, 3)) * 0.35 + (0.0, 0.6, -0.5))
    first = _unit(np.cross(axis, rng.standard_normal((count, 3))))
    second = np.cross(axis, first)
    angle = (np.linspace(0, 1.3 * np.pi, _STEPS)[None] + rng.uniform(0, 2 * np.pi, (count, 1)))[..., None]
    normal = np.cos(angle) * first[:, None] + np.sin(angle) * second[:, None]
    offset = axis[:, None] * rng.uniform(-0.6, 0.6, (count, 1, 1))
    ball = _unit(normal + offset)
    knot = middle + 0.36 * ball * rng.uniform(0.85, 1.05, (count, 1, 1))
    pick = rng.integers(0, len(vertices), count)
    joined = [
        np.concatenate(pair)
        for pair in ((points, knot), (outward, ball), (vertices, vertices[pick]), (shares, shares[pick]))
    ]
    return *joined, np.concatenate([layer, np.full(count, layer.max())])


def _ribbons(points, outward, width, depth, vertices, shares, rng, style) -> Strands:
    order = np.argsort(-points[..., 2].mean(1) - 0.6 * depth, kind="stable")  # front to back: hidden hair costs little
    points, outward, depth, vertices, shares = (a[order] for a in (points, outward, depth, vertices, shares))
    width = np.broadcast_to(width, len(points))[order]
    tangents = _unit(np.gradient(points, axis=1))
    outward = _unit(outward - (outward * tangents).sum(-1, keepdims=True) * tangents)
    along = np.linspace(0, 1, points.shape[1])
    taper = np.interp(along, [0, 0.15, 0.7, 1], [0.8, 1, 1, 0.4 if style == "afro" else 0.15])
    occlusion = (0.5 + 0.5 * np.clip(depth, 0, 1))[:, None] * np.interp(along, [0, 0.3, 1], [0.62, 0.95, 1.0])
    return Strands(
        points=points.astype(np.float32),
        tangents=tangents.astype(np.float32),
        outward=outward.astype(np.float32),
        width=(np.reshape(width, (-1, 1)) * taper * rng.uniform(0.7, 1.3, (len(points), 1))).astype(np.float32),
        random=rng.random(len(points)).astype(np.float32),
        occlusion=occlusion.astype(np.float32),
        follow=follow_weight(points).astype(np.float32)
        if style in ("long", "wavy")
        else np.ones(points.shape[:2], np.float32),
        roots=vertices,
        shares=shares.astype(np.float32),
    )


def grow_beard(head: Head) -> Strands | None:
    """Returns the hair of a moustache or a beard; None where nothing longer than stubble grows."""
    person = head.person
    if person.beard in ("none", "stubble"):
        return None
    rng = np.random.default_rng([person.seed, 14])
    mask = beard_masks()[person.beard]

    def weigh(rest):
        texel = np.clip((cylinder_uv(rest) * SIZE).astype(int), 0, SIZE - 1)
        return mask[texel[:, 1], texel[:, 0]] * (rest[:, 2] > 0.3)

    vertices, shares = _roots(head, rng, 1500 if person.beard == "full" else 800, weigh)
    start = (head.rest[vertices] * shares[..., None]).sum(1)
    rest = (head.heads.rest[vertices] * shares[..., None]).sum(1)
    normal = _unit((vertex_normals(head.rest)[vertices] * shares[..., None]).sum(1))
    long = rng.uniform(0.05, 0.18) if person.beard == "full" else rng.uniform(0.05, 0.12)
    length = long * rng.uniform(0.6, 1.2, len(start)) * np.where(rest[:, 1] > 6.62, 0.6, 1)
    sideways = np.where(rest[:, 1] > 6.66, np.sign(rest[:, 0]) * 0.8, 0.15 * np.sign(rest[:, 0]))
    want = np.column_stack([sideways, np.full(len(start), -1.0), np.full(len(start), 0.1)])
    steps = np.linspace(0, 1, 4)[None, :, None]
    direction = _unit(
        _unit(want - (want * normal).sum(1, keepdims=True) * normal)
        + 0.5 * normal
        + 0.25 * rng.standard_normal(start.shape)
    )
    bend = np.array([0, -0.25, 0]) * steps**2
    points = start[:, None] + length[:, None, None] * (direction[:, None] * steps + bend) + 0.004 * normal[:, None]
    outward = np.repeat(normal[:, None], 4, 1)
    return _ribbons(points, outward, 0.012, np.full(len(start), 0.8), vertices, shares, rng, "beard")


@functools.cache
def _lash_ends() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns for each upper eyelid the vertices of the lashes' roots and tips, and the skin next to the roots."""
    heads = load_heads()
    skin = np.unique(heads.corner_vertex[heads.corner_part == 0])
    tree, ends = KDTree(heads.rest[skin]), []
    for name, part in (("l-upper", 1), ("r-upper", 2)):
        strip = heads.lashes[name]
        centre = heads.rest[np.unique(heads.corner_vertex[heads.corner_part == part])].mean(0)
        across, far = heads.rest[strip, 0], np.linalg.norm(heads.rest[strip] - centre, axis=1)
        bins = np.digitize(across, np.linspace(across.min(), across.max() + 1e-4, 12))
        groups = [np.flatnonzero(bins == b) for b in np.unique(bins)]
        root = np.array([strip[group[far[group].argmin()]] for group in groups])
        tip = np.array([strip[group[far[group].argmax()]] for group in groups])
        ends.append((root, tip, skin[tree.query(heads.rest[root])[1]]))
    return ends


def grow_lashes(head: Head) -> Strands:
    """Returns the lashes of the upper eyelids."""
    person = head.person
    rng = np.random.default_rng([person.seed, 15])
    parts = []
    for root, tip, anchor in _lash_ends():
        count = 26
        at = np.linspace(0, len(root) - 1.001, count)
        first, split = at.astype(int), (at % 1)[:, None]
        start = head.rest[root[first]] * (1 - split) + head.rest[root[first + 1]] * split
        end = head.rest[tip[first]] * (1 - split) + head.rest[tip[first + 1]] * split
        reach = (0.75 if person.male > 0.5 else 1.0) * (0.75 + 0.4 * person.make_up) * rng.uniform(0.8, 1.1, (count, 1))
        roots = np.column_stack([anchor[first], anchor[first + 1], anchor[first]])
        parts.append((start, (end - start) * reach, roots, np.column_stack([1 - split, split, 0 * split])))
    start, reach, roots, shares = (np.concatenate([part[k] for part in parts]) for k in range(4))
    points = start[:, None] + reach[:, None] * np.linspace(0, 1, 4)[None, :, None]
    outward = np.repeat(np.tile([0.0, 0.0, 1.0], (len(start), 1))[:, None], 4, 1)
    return _ribbons(points, outward, 0.008, np.ones(len(start)), roots, shares, rng, "lash")

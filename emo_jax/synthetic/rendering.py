"""Draws the people of the procedural world, and computes the positions of their face, mouth and nose."""

from __future__ import annotations

import cv2
import numpy as np

from emo_jax.synthetic.backdrops import backdrop, paint_clothes, paint_texture
from emo_jax.synthetic.canvas import SHIFT, Brush
from emo_jax.synthetic.features import CIRCLE, Layer, beard, brows, eyes, mouth, nose
from emo_jax.synthetic.head import Head, State, drop_jaw, project
from emo_jax.synthetic.identities import Identity


def hull(points: np.ndarray) -> np.ndarray:
    """Returns the convex hull of points (N, 2), float32 (M, 2)."""
    return cv2.convexHull(points.astype(np.float32))[:, 0]


def head_of(identity: Identity) -> Head:
    """Returns the head geometry of a person, cached with the person."""
    if "head" not in identity.cache:
        identity.cache["head"] = Head(identity)
    return identity.cache["head"]


def render(identity: Identity, state: State, size: int) -> np.ndarray:
    """Renders one frame, uint8 RGB (size, size, 3), drawn at twice the size and averaged down.

    Raises:
        ValueError: `size` is less than 16.
    """
    if size < 16:
        raise ValueError(f"image size {size} is too small to draw a head; give at least 16 pixels")
    head = head_of(identity)
    brush = Brush(backdrop(identity, 2 * size).copy())
    outline = 0.009 if identity.style == "cartoon" else 0.0
    _back_hair(brush, head, state, outline)
    paint_clothes(brush, identity, state, outline)
    _skull(brush, head, state, outline)
    layers = [*beard(identity, head, state), *nose(identity), *mouth(identity, state), *eyes(identity, state)]
    _paint(brush, head, state, layers)
    _front_hair(brush, head, state, outline)
    _paint(brush, head, state, brows(identity, state))
    if identity.glasses != "none":
        _spectacles(brush, head, state)
    image = cv2.resize(brush.image, (size, size), interpolation=cv2.INTER_AREA)
    return paint_texture(identity, image) if identity.style == "painterly" else image


def face_box(identity: Identity, state: State, size: int) -> np.ndarray:
    """Returns the face box, float32 (x0, y0, x1, y1) in pixels: forehead to chin, cheek to cheek."""
    head = head_of(identity)
    if "box" not in identity.cache:
        identity.cache["box"] = head.mesh[(head.mesh[:, 1] > -0.62) & (head.mesh[:, 2] > 0)]
    points = project(head, state, drop_jaw(identity.cache["box"], state.opening)) * size
    return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def mouth_box(identity: Identity, state: State, size: int) -> np.ndarray:
    """Returns the bounding box of the lips, float32 (x0, y0, x1, y1) in pixels."""
    head = head_of(identity)
    points = project(head, state, head.lift(mouth(identity, state)[0].points, 0.03)) * size
    return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def nose_tip(identity: Identity, state: State, size: int) -> np.ndarray:
    """Returns the position of the tip of the nose, float32 (x, y) in pixels."""
    head = head_of(identity)
    return (project(head, state, head.lift(np.array([[0.0, 0.2]]), identity.shape["nose_length"])) * size)[0].astype(
        np.float32
    )


def _paint(brush: Brush, head: Head, state: State, layers: list[Layer]) -> None:
    """Projects all layers onto the image at once, then draws them in order."""
    counts = [len(layer.points) for layer in layers]
    points = np.concatenate([layer.points for layer in layers])
    heights = np.repeat([layer.height for layer in layers], counts)
    placed = np.split(project(head, state, head.lift(points, heights)), np.cumsum(counts)[:-1])
    for layer, where in zip(layers, placed, strict=True):
        if layer.line:
            brush.line(where, layer.colour, layer.line * head.scale, layer.closed)
        else:
            brush.fill(where, layer.colour)


def _hair_points(head: Head) -> dict[str, np.ndarray]:
    """Returns the point sets of a hair style: `cap` on the head, `fall` behind it, `face` the free skin."""
    identity = head.identity
    turn = np.linspace(-np.pi / 2, np.pi / 2, 49)
    forehead = -0.66 + 0.12 * (identity.shape["brow_thickness"] * 37 % 1)
    line = forehead + (-0.02 - forehead) * np.abs(np.sin(turn)) ** 3.0
    mesh = head.mesh
    around = np.arctan2(mesh[:, 0] / head.half_width, mesh[:, 2])
    limit = np.where(np.abs(around) < np.pi / 2, forehead + (-0.02 - forehead) * np.abs(np.sin(around)) ** 3.0, -0.02)
    grow = {"short": 1.06, "curly": 1.12, "bob": 1.10, "long": 1.09, "bun": 1.05}[identity.hair_style]
    cap = mesh[(mesh[:, 1] < -0.02) | ((mesh[:, 2] < 0) & (mesh[:, 1] < 0.35))] * grow
    parts = {"cap": cap, "face": np.concatenate([mesh[mesh[:, 1] > limit], head.on_turn(line, turn)])}
    reach = {"bob": 0.78, "long": 1.75}.get(identity.hair_style)
    if reach:
        lock = zip((1.10, 1.18, 1.21, 1.18, 1.08, 0.85), (-0.2, 0.35, 0.62, 0.82, 0.95, 1.0), strict=True)
        corners = [
            (side * head.half_width * x, y if y < 0 else y * reach, z)
            for x, y in lock
            for side in (-1, 1)
            for z in (0.0, -0.7)
        ]
        parts["fall"] = np.concatenate([cap, corners])
    return parts


def _parts(head: Head) -> dict[str, np.ndarray]:
    if "hair" not in head.identity.cache:
        head.identity.cache["hair"] = {} if head.identity.hair_style == "bald" else _hair_points(head)
    return head.identity.cache["hair"]


def _solid(brush: Brush, points: np.ndarray, colour: np.ndarray, outline: float) -> np.ndarray:
    around = hull(points)
    brush.fill(around, colour)
    if outline:
        brush.line(around, colour * 0.25, outline, True)
    return around


def _back_hair(brush: Brush, head: Head, state: State, outline: float) -> None:
    parts, hair = _parts(head), head.identity.hair
    if "fall" in parts:
        _solid(brush, project(head, state, parts["fall"]), hair * 0.72, outline)
    if head.identity.hair_style == "bun":
        ball = np.array([[0, -1.12, -0.25]]) + np.column_stack([CIRCLE * 0.34, np.zeros(24)])
        _solid(brush, project(head, state, ball), hair * 0.9, outline)
    if head.identity.hair_style == "curly":
        turn = np.linspace(-2.1, 2.1, 15)
        centres = project(
            head,
            state,
            np.column_stack([np.sin(turn) * head.half_width * 1.08, -np.cos(turn) * 0.98 - 0.05, np.full(15, -0.15)]),
        )
        for centre in centres:
            _solid(brush, centre + CIRCLE * 0.24 * head.scale, hair * 0.95, outline)


def _skull(brush: Brush, head: Head, state: State, outline: float) -> None:
    identity, parts = head.identity, _parts(head)
    if parts:
        _solid(brush, project(head, state, parts["cap"]), identity.hair, outline)
    outer = project(head, state, drop_jaw(head.mesh, state.opening))
    skin = project(head, state, drop_jaw(parts["face"], state.opening)) if parts else outer
    covered = identity.hair_style in ("bob", "long")
    turned = np.array([-1, 1]) * state.yaw
    ears = [] if covered else [_ear(head, state, side) for side in (-1, 1)]
    for ear, toward in zip(ears, turned, strict=False):
        if toward >= 0 or abs(toward) < 6:
            _draw_ear(brush, identity, ear, outline)
    around = _solid(brush, skin, identity.skin, outline)
    for ear, toward in zip(ears, turned, strict=False):
        if toward <= -6:
            _draw_ear(brush, identity, ear, outline)
    if identity.style in ("shaded", "painterly"):
        both = hull(np.concatenate([around, project(head, state, parts["cap"])])) if parts else around
        _shade(brush, identity, both)


def _ear(head: Head, state: State, side: int) -> np.ndarray:
    size = head.identity.shape["ear_size"]
    ring = np.column_stack([CIRCLE[:, 0] * 0.13 * side * size, CIRCLE[:, 1] * 0.19 * size, -CIRCLE[:, 0] * 0.09])
    return project(head, state, ring + (side * head.half_width * 1.0, 0.05, -0.06))


def _draw_ear(brush: Brush, identity: Identity, ear: np.ndarray, outline: float) -> None:
    _solid(brush, ear, identity.skin * 0.94, outline)
    brush.fill(ear.mean(0) + (ear - ear.mean(0)) * 0.55, identity.skin * 0.78)


def _shade(brush: Brush, identity: Identity, around: np.ndarray) -> None:
    """Shades the head like a sphere inside its outline; the light stays fixed while the head turns."""
    corners = brush.corners(around)
    x, y, w, h = cv2.boundingRect(corners >> SHIFT)
    x, y = max(x, 0), max(y, 0)
    spot = brush.image[y : y + h, x : x + w]
    if "light" not in identity.cache:
        identity.cache["light"] = _light_map(identity)
    light = cv2.resize(identity.cache["light"], (spot.shape[1], spot.shape[0]), interpolation=cv2.INTER_LINEAR)
    inside = np.zeros(spot.shape[:2], np.uint8)
    cv2.fillPoly(inside, [corners - np.array([x, y], np.int32) * (1 << SHIFT)], 255, cv2.LINE_8, SHIFT)
    cv2.copyTo(cv2.multiply(spot, light, scale=1 / 128), inside, spot)


def _light_map(identity: Identity) -> np.ndarray:
    v, u = np.mgrid[-1:1:64j, -1:1:64j]
    z = np.sqrt(np.maximum(1 - 0.92 * (u * u + v * v), 0.02))
    lambert = np.clip(0.62 * identity.light * u - 0.45 * v + 0.75 * z, 0, 1.1)
    light = 0.58 + 0.55 * lambert
    if identity.style == "painterly":
        wobble = cv2.GaussianBlur(np.random.default_rng([identity.seed, 7]).normal(0, 1, (64, 64)), (0, 0), 4)
        light = np.round((light + 0.3 * wobble) * 7) / 7
    return cv2.merge([(128 * light).clip(0, 255).astype(np.uint8)] * 3)


def _front_hair(brush: Brush, head: Head, state: State, outline: float) -> None:
    """Draws the fringe on the forehead and the locks in front of the ears."""
    identity = head.identity
    if identity.hair_style in ("bob", "long"):
        reach = 0.78 if identity.hair_style == "bob" else 1.25
        for side in (-1, 1):
            y = np.linspace(-0.75, reach, 9)
            bulge = head.width(np.minimum(y, 0)) * (1.04 + 0.14 * np.sin(np.linspace(0.2, 2.6, 9)))
            inner = head.half_width * np.array([0.50, 0.68, 0.80, 0.86, 0.90, 0.93, 0.96, 1.0, 1.04])
            z = np.linspace(0.35, 0.0, 9)
            ring = np.concatenate(
                [np.column_stack([side * bulge, y, z - 0.25]), np.column_stack([side * inner, y, z])[::-1]]
            )
            where = project(head, state, ring)
            brush.fill(where, identity.hair * 0.9)
            if outline:
                brush.line(where, identity.hair * 0.25, outline, True)
    if identity.fringe == "none":
        return
    turn = np.linspace(-1.25, 1.25, 21)
    drop = (
        np.full(21, -0.44) + 0.03 * np.cos(turn * 9)
        if identity.fringe == "straight"
        else -0.72 + 0.42 * (0.5 + 0.5 * np.sin((turn * np.sign(identity.light) + 0.4) * 1.25)) ** 1.5
    )
    top = head.on_turn(np.full(21, -0.86), turn, 1.06)
    where = project(head, state, np.concatenate([top, head.on_turn(drop, turn, 1.05)[::-1]]))
    brush.fill(where, identity.hair * 1.04)
    if outline:
        brush.line(where[20:], identity.hair * 0.25, outline)


def _spectacles(brush: Brush, head: Head, state: State) -> None:
    identity = head.identity
    power = 1.0 if identity.glasses == "round" else 0.45
    rim = np.sign(CIRCLE) * np.abs(CIRCLE) ** power * (0.225, 0.19)
    colour, thick = identity.glasses_colour, 0.05
    frame = [Layer(rim + (side * identity.shape["eye_gap"], -0.1), colour, 0.10, thick) for side in (-1, 1)]
    inner = identity.shape["eye_gap"] - 0.225
    frame.append(Layer(np.array([[-inner, -0.13], [0, -0.16], [inner, -0.13]]), colour, 0.12, thick, False))
    _paint(brush, head, state, frame)
    for side in (-1, 1):
        if side * state.yaw <= 8:
            hinge = head.lift(np.array([[side * (identity.shape["eye_gap"] + 0.225), -0.12]]), 0.1)
            arm = np.concatenate([hinge, [[side * head.half_width * 1.02, -0.1, 0.0]]])
            brush.line(project(head, state, arm), colour, thick * head.scale)

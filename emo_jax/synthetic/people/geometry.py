"""One person's head as triangles: blend shapes, normals, the neck's bend, and points whose truth the records keep."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from emo_jax.faces.rotation import rotation_matrices
from emo_jax.synthetic.people.assets import PARTS, HeadData, load_heads
from emo_jax.synthetic.people.identity import Person

_MIRROR = np.diag([1.0, -1.0, 1.0])  # image coordinates have y down, the head's have y up
_UPPER_LIP, _LOWER_LIP = ((0.0, 6.608, 1.553), (0.0, 6.615, 1.514)), ((0.0, 6.606, 1.527), (0.0, 6.601, 1.540))
POINTS = {  # places on the average head, see `Head.points`
    "upper_lip": (0.0, 6.608, 1.553),
    "lower_lip": (0.0, 6.601, 1.540),
    "upper_lip_edge": (0.0, 6.75, 1.564),
    "lower_lip_edge": (0.0, 6.458, 1.503),
    "left_corner": (0.29, 6.6, 1.33),
    "right_corner": (-0.29, 6.6, 1.33),
    "nose_tip": (0.0, 6.969, 1.669),
    "under_nose": (0.0, 6.805, 1.573),
    "between_eyes": (0.0, 7.3, 1.5),
    "chin": (0.0, 6.13, 1.5),
    "left_eye_outer": (0.475, 7.28, 1.30),
    "left_eye_inner": (0.17, 7.25, 1.38),
    "right_eye_inner": (-0.17, 7.25, 1.38),
    "right_eye_outer": (-0.475, 7.28, 1.30),
    "left_lid_upper": (0.31, 7.36, 1.43),
    "left_lid_lower": (0.31, 7.21, 1.42),
    "right_lid_upper": (-0.31, 7.36, 1.43),
    "right_lid_lower": (-0.31, 7.21, 1.42),
}
POINT_NAMES = tuple(POINTS)
_MOUTH_MOVES = {
    "upper-teeth": np.array([0, -0.03, -0.06], np.float32),
    "lower-teeth": np.array([0, -0.05, -0.07], np.float32),
    "tongue": np.array([0, -0.11, -0.1], np.float32),
}


@functools.cache
def neck_weight() -> np.ndarray:
    """Returns how far each vertex (V,) follows the head's rotation: 0 on the chest, 1 on the head."""
    return follow_weight(load_heads().rest)


def follow_weight(rest: np.ndarray) -> np.ndarray:
    """Returns how far places (..., 3) of the average head follow its rotation, (...,) in [0, 1]."""
    raised = rest[..., 1] + 0.38 * np.clip(rest[..., 2] - 0.5, 0, 1)
    t = np.clip((raised - 5.2) / 0.95, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


@functools.cache
def point_vertices() -> np.ndarray:
    """Returns the vertex of each of `POINTS`, (P,)."""
    heads = load_heads()
    skin = np.unique(heads.corner_vertex[heads.corner_part == 0])
    places = heads.rest[skin]
    return np.array([skin[np.linalg.norm(places - place, axis=1).argmin()] for place in POINTS.values()])


@functools.cache
def face_vertices() -> np.ndarray:
    """Returns the vertices of the face: from the chin to the hairline, between the ears."""
    rest = load_heads().rest
    skin = np.unique(load_heads().corner_vertex[load_heads().corner_part == 0])
    x, y, z = rest[skin].T
    return skin[(y > 6.05) & (y < 7.95) & (z > 0.55) & (np.abs(x) < 0.95)]


@functools.cache
def _normal_sums() -> tuple[np.ndarray, sparse.csr_matrix]:
    heads = load_heads()
    triangles = heads.corner_vertex[heads.triangles]
    count = len(triangles)
    rows, columns = triangles.reshape(-1), np.repeat(np.arange(count), 3)
    matrix = sparse.csr_matrix((np.ones(3 * count, np.float32), (rows, columns)), (len(heads.rest), count))
    return triangles, matrix


def vertex_normals(vertices: np.ndarray) -> np.ndarray:
    """Returns unit normals (V, 3) of the head's vertices (V, 3), outward."""
    triangles, sums = _normal_sums()
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normals = sums @ np.cross(b - a, c - a)
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)


def head_matrix(angles: np.ndarray) -> np.ndarray:
    """Returns the rotation (..., 3, 3) of the head, y up, for yaw, pitch and roll (..., 3) in degrees."""
    return _MIRROR @ rotation_matrices(angles) @ _MIRROR


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along -z. Lengths in decimetres."""

    distance: float = 14.0
    height: float = 3.6  # of the picture, at the head
    middle: tuple[float, float] = (0.5, 0.43)  # where the eyes are at rest, in image heights from the top left

    def matrix(self) -> np.ndarray:
        """Returns the projection (4, 4) from places relative to the eyes' middle to clip coordinates."""
        focal, far = 2 * self.distance / self.height, self.distance + 8
        near = self.distance - 6
        project = np.array(
            [
                [focal, 0, 0, 0],
                [0, focal, 0, 0],
                [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
                [0, 0, -1, 0],
            ]
        )
        move = np.eye(4)
        move[2, 3] = -self.distance
        shift = np.eye(4)
        shift[0, 3], shift[1, 3] = 2 * self.middle[0] - 1, 1 - 2 * self.middle[1]
        return shift @ project @ move

    def project(self, places: np.ndarray, size: int) -> np.ndarray:
        """Returns pixels (..., 2) of places (..., 3) relative to the eyes' middle."""
        scale = self.distance / (self.distance - places[..., 2]) / self.height
        x = self.middle[0] + places[..., 0] * scale
        y = self.middle[1] - places[..., 1] * scale
        return np.stack([x, y], -1) * size


class Head:
    """The geometry of one person."""

    def __init__(self, person: Person, heads: HeadData | None = None):
        self.person = person
        self.heads = heads or load_heads()
        self.rest = person.shape(self.heads)
        for part, move in _MOUTH_MOVES.items():  # closed lips hide the teeth, and the tongue is low
            self.rest[np.unique(self.heads.corner_vertex[self.heads.corner_part == PARTS.index(part)])] += move
        self._index = {name: index for index, name in enumerate(self.heads.shape_names)}
        self.rest += self.gap(self.rest, self._face_unit()) / 0.6 * self.heads.shapes[self._index["mouthClose"]]
        self.pivot = self.heads.joint(self.rest, "neck") + (0, 0.12, 0.15)
        self.eyes = np.stack([self.heads.joint(self.rest, "l-eye"), self.heads.joint(self.rest, "r-eye")])
        self.centre = np.array([0.0, self.eyes[:, 1].mean(), self.eyes[:, 2].mean() - 0.6])
        part = self.heads.corner_part
        self.eye_centres = np.stack([self.rest[np.unique(self.heads.corner_vertex[part == k])].mean(0) for k in (1, 2)])
        left = self.rest[np.unique(self.heads.corner_vertex[part == 1])]
        self.eye_radius = float(np.median(np.linalg.norm(left - self.eye_centres[0], axis=1)))
        self.face_unit = self._face_unit()
        corners = self.rest[point_vertices()[[POINT_NAMES.index(n) for n in ("left_corner", "right_corner")]]]
        self.mouth_width = float(np.linalg.norm(corners[0] - corners[1]))

    def deform(self, weights: dict[str, float]) -> np.ndarray:
        """Returns the vertices (V, 3) under ARKit blend shapes, before the head turns."""
        vertices = self.rest.copy()
        for name, weight in weights.items():
            if abs(weight) > 1e-3:
                vertices += np.float32(weight) * self.heads.shapes[self._index[name]]
        return vertices

    def turn(self, places: np.ndarray, follow: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Moves places (P, 3) with the head and returns them relative to the resting eyes' middle.

        Args:
            places: before the head turns.
            follow: (P,) see `follow_weight`.
            rotation: (3, 3) from `head_matrix`.
            shift: (3,) of the body, in decimetres.
        """
        turned = (places - self.pivot) @ rotation.T + self.pivot
        return places + follow[:, None] * (turned - places) - self.centre + shift

    def _face_unit(self) -> float:
        between, under = self.rest[point_vertices()[[POINT_NAMES.index(n) for n in ("between_eyes", "under_nose")]]]
        return float(np.linalg.norm(between - under))

    def gap(self, vertices: np.ndarray, unit: float | None = None) -> float:
        """Returns the distance between the lips in units of `face_unit` (between the eyes to under the nose)."""
        upper, lower = _lip_vertices()
        gap = vertices[upper, 1].min() - vertices[lower, 1].max()
        return float(np.maximum(gap, 0) / (unit or self.face_unit))

    def width(self, vertices: np.ndarray) -> float:
        """Returns the distance between the mouth's corners relative to rest."""
        left, right = point_vertices()[[POINT_NAMES.index(n) for n in ("left_corner", "right_corner")]]
        return float(np.linalg.norm(vertices[left] - vertices[right]) / self.mouth_width)


@functools.cache
def _lip_vertices() -> tuple[np.ndarray, np.ndarray]:
    """Returns the vertices of the upper and the lower lip that touch at rest, in the middle."""
    rest = load_heads().rest
    find = [[np.linalg.norm(rest - place, axis=1).argmin() for place in lip] for lip in (_UPPER_LIP, _LOWER_LIP)]
    return np.array(find[0]), np.array(find[1])

"""Solid geometry of the drawn heads: the surface of the head, points on it, and their projection.

Head coordinates are in half face heights: x to the right of the image, y down (crown -1, chin 1), z towards the viewer.
Angles are degrees: yaw > 0 turns the face to the image's right, pitch > 0 nods it down, roll > 0 leans it clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emo_jax.faces.rotation import rotation_matrices
from emo_jax.synthetic.identities import Identity

DEPTH = 0.86
PIVOT = np.array([0.0, 0.55, -0.25])  # heads turn on the neck
CENTRE = np.array([0.5, 0.475])  # of the head at rest, in the image
JAW_DROP = 0.20
PERSPECTIVE = 0.10


@dataclass(frozen=True)
class State:
    """One frame of a person: angles in degrees, shifts in image heights, the rest in [0, 1] (gaze in [-1, 1])."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    blink: float = 0.0
    brow: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    opening: float = 0.0
    width: float = 0.5


class Head:
    """The surface of one person's head at rest.

    Args:
        identity: the person.
    """

    def __init__(self, identity: Identity):
        self.identity = identity
        self.half_width, self.jaw = identity.shape["face_width"], identity.shape["jaw"]
        self.scale = identity.shape["face_height"] / 2
        rows = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 32))
        turn = np.linspace(-np.pi, np.pi, 48, endpoint=False)
        self.mesh = np.stack(np.broadcast_arrays(*self._ring(rows[:, None], turn[None])), -1).reshape(-1, 3)

    def width(self, y: np.ndarray) -> np.ndarray:
        """Returns the half width of the head at heights y."""
        size = np.abs(y)
        return self.half_width * np.sqrt(np.maximum(1 - size ** np.where(y < 0, 2.4, self.jaw), 1e-4))

    def depth(self, y: np.ndarray) -> np.ndarray:
        """Returns the depth of the face at heights y: a flat front that ends in a chin."""
        return DEPTH * np.where(y < 0, np.sqrt(np.maximum(1 - np.abs(y) ** 2.6, 0)), 1 - 0.24 * y * y)

    def _ring(self, y, turn):
        back = DEPTH * 1.05 * np.sqrt(np.maximum(1 - np.where(y < 0, np.abs(y), y / 0.8) ** 2, 0))
        z = np.where(np.cos(turn) > 0, self.depth(y), back) * np.cos(turn)
        return self.width(y) * np.sin(turn), y, z

    def lift(self, points: np.ndarray, height: np.ndarray | float = 0.0) -> np.ndarray:
        """Lifts front-view points (N, 2) onto the face, or `height` above it, (N, 3)."""
        y = np.clip(points[:, 1], -0.98, 0.95)
        side = np.clip(points[:, 0] / self.width(y), -0.985, 0.985)
        return np.column_stack([points, self.depth(y) * np.sqrt(1 - side * side) + height])

    def on_turn(self, y: np.ndarray, turn: np.ndarray, grow: float = 1.0) -> np.ndarray:
        """Returns points (N, 3) at heights y and angles `turn` (radians) on the head scaled by `grow`."""
        return np.stack(np.broadcast_arrays(*self._ring(np.asarray(y), np.asarray(turn))), -1).reshape(-1, 3) * grow


def drop_jaw(points: np.ndarray, opening: float) -> np.ndarray:
    """Returns points (N, 2) or (N, 3) with the jaw lowered; column 1 is y."""
    moved = np.array(points, np.float64)
    moved[:, 1] += JAW_DROP * opening * np.clip((moved[:, 1] - 0.2) / 0.7, 0, 1)
    return moved


def project(head: Head, state: State, points: np.ndarray) -> np.ndarray:
    """Projects head coordinates (N, 3) to image coordinates (N, 2) in image heights."""
    x, y, z = (points - PIVOT).T
    matrix = rotation_matrices(np.array([state.yaw, state.pitch, state.roll]))
    # Without BLAS, whose sums depend on memory alignment: equal seeds must give equal pixels.
    turned = np.stack([row[0] * x + row[1] * y + row[2] * z for row in matrix], 1) + PIVOT
    near = head.scale / (1 - PERSPECTIVE * turned[:, 2:])
    return turned[:, :2] * near + (CENTRE + (state.shift_x, state.shift_y))

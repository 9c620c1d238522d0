"""The face mesh of face_landmarker: which point is where, the average face, and head rotation from all points.

Axes as in `rotation`: x to the image's right, y down, z towards the viewer.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

POINTS = 478
"""Landmarks of a face: 468 of the mesh, then five of each iris."""
MESH_POINTS = 468
RIGHT_EYE, LEFT_EYE = (33, 133), (362, 263)
"""Corners of the person's right eye and left eye, from the image's left to its right."""
RIGHT_LIDS, LEFT_LIDS = (159, 145), (386, 374)
"""Middle of the upper and of the lower lid of each eye."""
INNER_LIPS = (13, 14)
"""Middle of the upper and of the lower lip, where they touch."""
LIP_CORNERS = (61, 291)
NOSE_TIP, NOSE_BRIDGE, UNDER_NOSE = 4, 168, 2
DISTANCE = 60.0
"""Assumed distance of the camera in the mesh's unit, a centimetre: between a telephone's and a studio's."""
DEPTH_WEIGHT = 0.3
"""Weight of errors in depth, which the network estimates with more noise than x and y."""
LOOSE_WEIGHT, LOOSE_BELOW = 0.15, 1.5
"""Weight of the points below this y of the average face, because lips and jaw move by themselves."""
FIT_STEPS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class FaceMesh:
    """The average face, seen from the front.

    Attributes:
        points: (468, 3) float64 in centimetres.
        anchors: (468,) weights of the points by which Google's landmarker aligns a face; 0 for most.
    """

    points: np.ndarray
    anchors: np.ndarray

    @classmethod
    def parse(cls, content: bytes) -> FaceMesh:
        """Reads the protocol buffer `geometry_pipeline_metadata_landmarks.binarypb` of face_landmarker.task.

        Raises:
            KeyError: if the content has no mesh of 468 points.
        """
        weights, values = np.zeros(MESH_POINTS), []
        for field, value in _fields(content):
            if field == 1:  # the mesh; its field 3 has x, y, z, u and v of each vertex
                values = [number for inner, number in _fields(value) if inner == 3]
            elif field == 2:  # a point of the fit and its weight
                reference = dict(_fields(value))
                weights[reference.get(1, 0)] = reference[2]
        if len(values) != 5 * MESH_POINTS:
            raise KeyError(f"mesh of {len(values) // 5} points, expected {MESH_POINTS}")
        return cls(np.array(values).reshape(MESH_POINTS, 5)[:, :3] * (1, -1, 1), weights)

    @functools.cached_property
    def _fit_weights(self) -> np.ndarray:
        """Weights of all points, with sum 1: half for the anchors, half for the other points."""
        others = np.where(self.points[:, 1] > LOOSE_BELOW, LOOSE_WEIGHT, 1.0)
        return 0.5 * self.anchors / self.anchors.sum() + 0.5 * others / others.sum()

    def head_angles(self, points: np.ndarray) -> tuple[float, float, float]:
        """Estimates the rotation of a head from all of its landmarks.

        The average face is turned, scaled and moved so that its perspective projection is nearest to the landmarks, by
        Gauss-Newton steps from the orthogonal Procrustes solution.

        Args:
            points: (468 or more, 3) in pixels, from `FaceNetworks.landmarks`.

        Returns:
            Yaw, pitch and roll in degrees, as in `rotation.rotation_matrices`.
        """
        weights = self._fit_weights
        source = self.points - weights @ self.points
        target = points[:MESH_POINTS] - weights @ points[:MESH_POINTS]
        rotation = _procrustes((source * weights[:, None]).T @ target)
        turned = source @ rotation.T
        state = np.array([weights @ (target * turned).sum(1) / (weights @ (turned**2).sum(1)), 0, 0, 0])
        for _ in range(FIT_STEPS):
            turn, state = _fit_step(source @ rotation.T, target, weights, state)
            rotation = cv2.Rodrigues(turn)[0] @ rotation
        return matrix_angles(rotation)


def lip_gap(points: np.ndarray) -> float:
    """Returns the distance between the inner lips, relative to that from the bridge of the nose to below it.

    Args:
        points: (478, 2 or more) landmarks in pixels.
    """
    upper, lower, bridge, below = points[[*INNER_LIPS, NOSE_BRIDGE, UNDER_NOSE], :2]
    return float(np.linalg.norm(upper - lower) / max(float(np.linalg.norm(bridge - below)), 1e-6))


def mouth_width(points: np.ndarray) -> float:
    """Returns the distance between the mouth's corners, relative to that between the outer corners of the eyes.

    Args:
        points: (478, 2 or more) landmarks in pixels.
    """
    corners = points[[*LIP_CORNERS, RIGHT_EYE[0], LEFT_EYE[1]], :2]
    mouth, eyes = (np.linalg.norm(corners[k] - corners[k + 1]) for k in (0, 2))
    return float(mouth / max(eyes, 1e-6))


def matrix_angles(matrix: np.ndarray) -> tuple[float, float, float]:
    """Returns yaw, pitch and roll in degrees of a rotation matrix (3, 3), the inverse of `rotation_matrices`."""
    # matrix = roll @ yaw @ pitch: its third row depends on yaw and pitch, its first column on yaw and roll.
    yaw = np.arcsin(np.clip(-matrix[2, 0], -1, 1))
    pitch = np.arctan2(-matrix[2, 1], matrix[2, 2])
    roll = np.arctan2(matrix[1, 0], matrix[0, 0])
    return float(np.rad2deg(yaw)), float(np.rad2deg(pitch)), float(np.rad2deg(roll))


def _procrustes(covariance: np.ndarray) -> np.ndarray:
    """Returns the rotation (3, 3) that aligns two point sets with this covariance, source by target."""
    left, _, right = np.linalg.svd(covariance)
    left[:, 2] *= np.sign(np.linalg.det(left @ right))
    return (left @ right).T


def _fit_step(
    face: np.ndarray, target: np.ndarray, weights: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one Gauss-Newton step.

    Args:
        face: (468, 3), the average face as turned so far.
        target: (468, 3), the landmarks.
        weights: (468,) of the points.
        state: scale, and shift of x, y and depth.

    Returns:
        The further turn as a rotation vector (3,), and the new state.
    """
    scale, shift = state[0], state[1:]
    x, y, z = face.T
    near = 1 / (1 - z / DISTANCE)
    zero, one = np.zeros_like(x), np.ones_like(x)
    turns = [np.stack([zero, -z, y]), np.stack([z, zero, -x]), np.stack([-y, x, zero])]  # derivatives of the face
    columns = [
        np.stack([scale * (dx * near + x * near**2 * dz / DISTANCE), scale * (dy * near + y * near**2 * dz / DISTANCE),
                  scale * dz]) for dx, dy, dz in turns
    ]  # fmt: skip
    columns += [np.stack([x * near, y * near, z])]
    columns += [np.stack(axis) for axis in ((one, zero, zero), (zero, one, zero), (zero, zero, one))]
    errors = target.T - (scale * columns[3] + shift[:, None])
    importance = weights * np.array([[1.0], [1.0], [DEPTH_WEIGHT**2]])
    jacobian = np.stack(columns).reshape(7, -1)
    scaled = jacobian * importance.ravel()
    step = np.linalg.solve(scaled @ jacobian.T, scaled @ errors.ravel())
    return step[:3], state + step[3:]


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of the fields of a protocol buffer's message: int, float or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(content):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            length = varint()
            at += length
            yield key >> 3, content[at - length : at]
        else:
            at += 4
            yield key >> 3, struct.unpack("<f", content[at - 4 : at])[0]

"""Faces by landmarks: of one picture, and of the frames of a video (`LandmarkTracker`).

The box of a face is the extent of the 468 points of its mesh, from the upper forehead to the chin.
"""

from __future__ import annotations

import functools

import numpy as np

from emo_jax.faces.analyzer import Face, main_first
from emo_jax.faces.boxes import Box, check_image, overlap
from emo_jax.faces.mesh import MESH_POINTS
from emo_jax.faces.networks import Crop, Detection, FaceNetworks, detection_crop, landmark_crop

MIN_PRESENCE = 0.5
"""Smallest confidence of the landmark network that its crop shows a face."""
UPRIGHT_SCORE = 0.915
"""Confidence of a detection from which on a face counts as upright.

Of 12 portraits, the faces scored at least 0.92 upright, and at most 0.91 turned by 90, 180 and 270 degrees.
"""
CONFIDENCE = 0.9
"""Confidence of a rotation from landmarks."""

load_networks = functools.cache(FaceNetworks)
"""Returns the networks of a folder of model files; they are loaded once."""


def find_landmarks(image: np.ndarray, networks: FaceNetworks, tilted: bool = False) -> list[Face]:
    """Finds the faces of a picture, with landmarks.

    Args:
        image: uint8 RGB (height, width, 3).
        networks: from `load_networks`.
        tilted: whether to look in copies turned by 90, 180 and 270 degrees, too, if no face is clearly upright.

    Returns:
        The faces, the largest first.

    Raises:
        ValueError: if `image` is not uint8 RGB.
    """
    height, width = check_image(image)
    detections = networks.detect(image)
    if tilted and (not detections or detections[0].score < UPRIGHT_SCORE):
        detections = _detect_turned(image, networks, detections)
    faces: list[Face] = []
    for detection in detections:
        face = _measure(image, networks, detection_crop(detection), passes=2)
        if face is not None and not any(overlap(face.box, other.box) > 0.5 for other in faces):
            faces.append(face)
    return sorted(faces, key=lambda face: face.box[1] - face.box[3])


class LandmarkTracker:
    """A `FaceAnalyzer` that measures the landmarks of every frame anew, so that nothing drifts.

    The crop of the landmark network follows the landmarks of the previous frame. All faces are detected every few
    frames, and when the face is lost.
    """

    name, measures = "landmarks", "box, yaw, pitch and roll"
    EVERY = 8
    """Frames between detections of further faces."""

    def __init__(self, folder: str | None = None):
        """Loads the networks.

        Args:
            folder: folder of the model files; None for the default, see `models.default_folder`.

        Raises:
            ValueError: if a model file is missing or cannot be read.
        """
        self._networks = load_networks(folder)
        self.reset()

    def reset(self) -> None:
        """Forgets the face; call it at the start of a shot."""
        self._crop: Crop | None = None
        self._previous: Box | None = None
        self._others: list[Face] = []
        self._since_detection = self.EVERY

    def detect(self, image: np.ndarray) -> list[Face]:
        """Finds the faces of the next frame, uint8 RGB (height, width, 3), the main face first."""
        main = None if self._crop is None else _measure(image, self._networks, self._crop)
        self._since_detection += 1
        if main is None or self._since_detection >= self.EVERY:
            self._since_detection = 0
            faces = find_landmarks(image, self._networks)
            if main is not None:
                box = main.box
                faces = [main] + [face for face in faces if overlap(face.box, box) < 0.3]
            faces = main_first(faces, self._previous if main is None else main.box)
            main, self._others = (faces[0], faces[1:]) if faces else (None, [])
        if main is None:
            self._crop = None
            return []
        self._crop, self._previous = landmark_crop(main.landmarks), main.box  # pyright: ignore[reportArgumentType]
        return [main, *self._others]


def _measure(image: np.ndarray, networks: FaceNetworks, crop: Crop, passes: int = 1) -> Face | None:
    """Measures the face in a crop; each further pass crops around the landmarks of the pass before it."""
    for number in range(passes):
        points, presence = networks.landmarks(image, crop)
        if presence < MIN_PRESENCE:
            return None
        if number < passes - 1:
            crop = landmark_crop(points)
    size = np.array([image.shape[1], image.shape[0]], np.float64)
    x0, y0 = np.clip(points[:MESH_POINTS, :2].min(0), 0, size).tolist()
    x1, y1 = np.clip(points[:MESH_POINTS, :2].max(0), 0, size).tolist()
    if x1 - x0 < 1 or y1 - y0 < 1:  # outside the image
        return None
    return Face((x0, y0, x1, y1), networks.mesh.head_angles(points), CONFIDENCE, points[:, :2].astype(np.float32))


def _detect_turned(image: np.ndarray, networks: FaceNetworks, upright: list[Detection]) -> list[Detection]:
    """Returns `upright`, or the main face of the turned copy in which it is clearer, in pixels of `image`."""
    height, width = image.shape[:2]
    best = upright
    for quarters in (1, 2, 3):  # counterclockwise
        for found in networks.detect(np.ascontiguousarray(np.rot90(image, quarters)))[:1]:
            if best and found.score <= best[0].score:
                continue
            corners = _turn_back(np.array(found.box).reshape(2, 2), quarters, width, height)
            box = (*corners.min(0).tolist(), *corners.max(0).tolist())
            best = [Detection(box, _turn_back(found.points, quarters, width, height), found.score)]
    return best


def _turn_back(points: np.ndarray, quarters: int, width: int, height: int) -> np.ndarray:
    """Converts points (N, 2) of np.rot90(image, quarters) to points of the image, width x height pixels."""
    x, y = points.T
    if quarters == 1:
        return np.column_stack([width - y, x])
    if quarters == 2:
        return np.column_stack([width - x, height - y])
    return np.column_stack([y, height - x])

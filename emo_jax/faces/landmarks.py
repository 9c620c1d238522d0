"""A face analyzer based on mediapipe's Face Landmarker: boxes, landmarks and head poses. Needs the extra `faces`.

The mediapipe package has no model: `face_landmarker.task` must be downloaded from its model page, and given by path or
copied into the cache folder.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from emo_jax import cache
from emo_jax.faces.analyzer import Face, main_first
from emo_jax.faces.boxes import Box

MODEL_FILE = "face_landmarker.task"
MESH_POINTS = 468
"""Landmarks of the face mesh, from the brows to the chin; the landmarks of the irises follow them."""
MAX_FACES = 3


def cached_model() -> pathlib.Path:
    """Returns the path at which the model is looked for if none is given."""
    return cache.folder() / MODEL_FILE


class Landmarker:
    """A `FaceAnalyzer` that measures every frame separately, so that nothing drifts."""

    name, measures = "mediapipe", "box, yaw, pitch and roll"
    CONFIDENCE = 0.9

    def __init__(self, model: str | os.PathLike | None = None):
        """Loads the model.

        Args:
          model: path of face_landmarker.task; None for `cached_model()`.

        Raises:
          ValueError: if the file or mediapipe is missing, or mediapipe does not accept the file.
        """
        path = pathlib.Path(model) if model else cached_model()
        if not path.is_file():
            raise ValueError(
                f"mediapipe's face model {path} does not exist: download {MODEL_FILE} from mediapipe's Face Landmarker "
                "page and give its path (--face-model), or choose --faces haar"
            )
        try:
            import mediapipe  # pyright: ignore[reportMissingImports]
            from mediapipe.tasks.python import BaseOptions, vision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                "mediapipe is not installed: pip install -c constraints.txt -e '.[faces]', or choose --faces haar"
            ) from error
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(path)),
            running_mode=vision.RunningMode.IMAGE,
            num_faces=MAX_FACES,
            output_facial_transformation_matrixes=True,
        )
        try:
            self._detector = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"mediapipe does not accept {path} ({reason}); download {MODEL_FILE} again") from error
        self._to_mediapipe = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
        self._previous: Box | None = None

    def reset(self) -> None:
        """Forgets the main face of the previous frame."""
        self._previous = None

    def detect(self, image: np.ndarray) -> list[Face]:
        """Detects the faces of uint8 RGB (height, width, 3), with (468, 2) landmarks; the main face is first."""
        result = self._detector.detect(self._to_mediapipe(np.ascontiguousarray(image)))
        size = np.array([image.shape[1], image.shape[0]], np.float64)
        faces = []
        for marks, matrix in zip(result.face_landmarks, result.facial_transformation_matrixes, strict=True):
            points = np.array([(mark.x, mark.y) for mark in marks[:MESH_POINTS]]) * size
            x0, y0 = np.clip(points.min(axis=0), 0, size).tolist()
            x1, y1 = np.clip(points.max(axis=0), 0, size).tolist()
            angles = head_angles(np.asarray(matrix)[:3, :3])
            faces.append(Face((x0, y0, x1, y1), angles, self.CONFIDENCE, points.astype(np.float32)))
        faces = main_first(faces, self._previous)
        self._previous = faces[0].box if faces else self._previous
        return faces


def head_angles(matrix: np.ndarray) -> tuple[float, float, float]:
    """Converts a pose in mediapipe's axes to the angles of `rotation.rotation_matrices`.

    Args:
      matrix: (3, 3) from the canonical face to the camera, x to the image's right, y up, z towards the viewer. A
        uniform scale is allowed.

    Returns:
      Yaw, pitch and roll in degrees.
    """
    flip_y = np.diag([1.0, -1.0, 1.0])  # y points down in this project
    rotation = flip_y @ (matrix / np.cbrt(np.linalg.det(matrix))) @ flip_y
    # rotation = roll @ yaw @ pitch: its third row depends on yaw and pitch, its first column on yaw and roll.
    yaw = np.arcsin(np.clip(-rotation[2, 0], -1, 1))
    pitch = np.arctan2(-rotation[2, 1], rotation[2, 2])
    roll = np.arctan2(rotation[1, 0], rotation[0, 0])
    return float(np.rad2deg(yaw)), float(np.rad2deg(pitch)), float(np.rad2deg(roll))

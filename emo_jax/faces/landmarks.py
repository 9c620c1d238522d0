"""Faces by mediapipe's Face Landmarker: boxes, and head poses fitted to 468 points. The extra `faces` installs it.

mediapipe ships no model: `face_landmarker.task` comes from its model page, and is given or put into the cache.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from emo_jax import cache
from emo_jax.faces.boxes import Box
from emo_jax.faces.tracking import Face, main_first

MODEL_FILE = "face_landmarker.task"
BROW_TO_CHIN = 468  # landmarks of the face's mesh; those of the irises follow
MAX_FACES = 3


def cached_model() -> pathlib.Path:
    """Where the model is looked for if none is given."""
    return cache.folder() / MODEL_FILE


class Landmarker:
    """A `FaceAnalyzer`: every frame by itself, so nothing drifts.

    Args:
      model: path of face_landmarker.task; None for `cached_model()`.

    Raises:
      ValueError: if the file or mediapipe is missing, or mediapipe does not take the file.
    """

    name, gives = "mediapipe", "box, yaw, pitch and roll"
    CONFIDENCE = 0.9

    def __init__(self, model: str | os.PathLike | None = None):
        path = pathlib.Path(model) if model else cached_model()
        if not path.is_file():
            raise ValueError(
                f"mediapipe's face model {path} does not exist: download {MODEL_FILE} from mediapipe's Face Landmarker "
                "page and give its path (--face-model), or choose --faces haar"
            )
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
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
            raise ValueError(f"mediapipe does not take {path} ({reason}); download {MODEL_FILE} again") from error
        self._image = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
        self._previous: Box | None = None

    def reset(self) -> None:
        self._previous = None

    def faces(self, image: np.ndarray) -> list[Face]:
        result = self._detector.detect(self._image(np.ascontiguousarray(image)))
        size = np.array([image.shape[1], image.shape[0]], np.float64)
        found = []
        for marks, matrix in zip(result.face_landmarks, result.facial_transformation_matrixes, strict=True):
            points = np.array([(mark.x, mark.y) for mark in marks[:BROW_TO_CHIN]]) * size
            box = (*np.clip(points.min(axis=0), 0, size), *np.clip(points.max(axis=0), 0, size))
            angles = head_angles(np.asarray(matrix)[:3, :3])
            found.append(Face(tuple(map(float, box)), angles, self.CONFIDENCE, points.astype(np.float32)))
        found = main_first(found, self._previous)
        self._previous = found[0].box if found else self._previous
        return found


def head_angles(matrix: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, as `head.rotation_matrices` counts them, of a pose in mediapipe's axes.

    matrix: (3, 3), from the canonical face to the camera, x to the image's right, y up, z towards the viewer; a uniform
    scale is allowed.
    """
    flip = np.diag([1.0, -1.0, 1.0])  # our y points down
    turned = flip @ (matrix / np.cbrt(np.linalg.det(matrix))) @ flip
    # turned = roll @ yaw @ pitch: its third row holds yaw and pitch alone, its first column yaw and roll
    yaw = np.arcsin(np.clip(-turned[2, 0], -1, 1))
    pitch = np.arctan2(-turned[2, 1], turned[2, 2])
    roll = np.arctan2(turned[1, 0], turned[0, 0])
    return tuple(float(np.rad2deg(angle)) for angle in (yaw, pitch, roll))

"""What the frames of a video show: landmarks, rotation, identity, colour and sharpness of its main face."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from emo_jax.faces.boxes import Box
from emo_jax.faces.landmarks import LandmarkTracker
from emo_jax.faces.mesh import LEFT_EYE, LEFT_LIDS, RIGHT_EYE, RIGHT_LIDS, lip_gap, mouth_width
from emo_jax.faces.networks import Recognizer, five_points

EMBED_EVERY = 5
"""Frames between two embeddings."""
FACE_SIDE, EYE_SIDE = 96, 32
"""Sides to which a face and an eye are scaled before their sharpness is measured."""


@dataclasses.dataclass(frozen=True, eq=False)
class FaceTrack:
    """Measurements of the N frames of a video; rows are NaN where no face was found.

    Attributes:
        found: (N,) bool.
        rotation: (N, 3) yaw, pitch and roll in degrees.
        lip_gap: (N,) distance between the inner lips, relative to that from the bridge of the nose to below it.
        mouth_width: (N,) distance between the mouth's corners, relative to that between the outer corners of the eyes.
        eye_opening: (N, 2) distance between the lids of the right and left eye, relative to the eye's width.
        eye_sharpness: (N, 2) see `sharpness`.
        face_sharpness: (N,) likewise.
        colour: (N, 3) mean of the face in CIELAB.
        box: (N, 4) of the face.
        change: (N,) mean absolute difference to the previous frame, of 255; NaN for the first.
        embeddings: (M, 128), of every EMBED_EVERY-th frame with a face.
        embedded: (M,) their frames.
    """

    found: np.ndarray
    rotation: np.ndarray
    lip_gap: np.ndarray
    mouth_width: np.ndarray
    eye_opening: np.ndarray
    eye_sharpness: np.ndarray
    face_sharpness: np.ndarray
    colour: np.ndarray
    box: np.ndarray
    change: np.ndarray
    embeddings: np.ndarray
    embedded: np.ndarray

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.found)


def frame_change(previous: np.ndarray | None, image: np.ndarray) -> float:
    """Returns the mean absolute difference of two frames, of 255; NaN without a previous one of equal shape."""
    if previous is None or previous.shape != image.shape:
        return np.nan
    return float(cv2.absdiff(image, previous).mean())


class FaceMeter:
    """Measures the frames of one video, which are added in order; they are not kept.

    Args:
        folder: folder of the model files; None for the default.

    Raises:
        ValueError: a model file is missing.
    """

    def __init__(self, folder: str | None = None):
        self._tracker, self._recognizer = LandmarkTracker(folder), Recognizer(folder)
        self._rows: list[tuple] = []
        self._embeddings: list[np.ndarray] = []
        self._embedded: list[int] = []
        self._previous: np.ndarray | None = None

    def add(self, image: np.ndarray) -> None:
        """Measures the next frame, uint8 RGB (height, width, 3)."""
        change = frame_change(self._previous, image)
        self._previous = image
        faces = self._tracker.detect(image)
        if not faces:
            nan, eyes = np.nan, (np.nan,) * 2
            self._rows.append((False, (nan,) * 3, nan, nan, eyes, eyes, nan, (nan,) * 3, (nan,) * 4, change))
            return
        face, points = faces[0], faces[0].landmarks
        assert points is not None
        if len(self._rows) % EMBED_EVERY == 0:
            self._embeddings.append(self._recognizer.embed(image, five_points(points)))
            self._embedded.append(len(self._rows))
        crop = _crop(image, face.box)
        lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        eyes = [_eye_box(points[list(corners)]) for corners in (RIGHT_EYE, LEFT_EYE)]
        self._rows.append((
            True, face.rotation, lip_gap(points), mouth_width(points),
            (_distance(points, *RIGHT_LIDS) / _distance(points, *RIGHT_EYE),
             _distance(points, *LEFT_LIDS) / _distance(points, *LEFT_EYE)),
            [sharpness(_crop(image, eye), EYE_SIDE) for eye in eyes], sharpness(crop, FACE_SIDE),
            lab.mean((0, 1)), face.box, change,
        ))  # fmt: skip

    def track(self) -> FaceTrack:
        """Returns the measurements of all frames added so far.

        Raises:
            ValueError: no frame was added.
        """
        if not self._rows:
            raise ValueError("the video has no frames")
        found, *columns = zip(*self._rows, strict=True)
        others = ("found", "embeddings", "embedded")
        names = [field.name for field in dataclasses.fields(FaceTrack) if field.name not in others]
        measured = {name: np.array(column, float) for name, column in zip(names, columns, strict=True)}
        embeddings = np.array(self._embeddings).reshape(-1, 128)
        return FaceTrack(
            found=np.array(found), **measured, embeddings=embeddings, embedded=np.array(self._embedded, int)
        )


def sharpness(image: np.ndarray, side: int) -> float:
    """Returns the variance of the Laplacian of an image that is scaled to `side` x `side` pixels, in grey."""
    grey = cv2.cvtColor(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def _distance(points: np.ndarray, first: int, second: int) -> float:
    return max(float(np.linalg.norm(points[first] - points[second])), 1e-6)


def _eye_box(corners: np.ndarray) -> Box:
    """Returns the square around an eye, 1.5 times as wide as it."""
    x, y = corners.mean(0)
    half = 0.75 * float(np.linalg.norm(corners[1] - corners[0]))
    return float(x) - half, float(y) - half, float(x) + half, float(y) + half


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Returns the pixels of a box; at least one, inside the image."""
    height, width = image.shape[:2]
    left, top = min(max(int(box[0]), 0), width - 1), min(max(int(box[1]), 0), height - 1)
    return image[top : max(int(box[3]), top + 1), left : max(int(box[2]), left + 1)]

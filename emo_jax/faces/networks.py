"""The networks that analyze a face, run by OpenCV: YuNet, Google's Face Landmarker (mesh and blendshapes) and SFace.

Detection (YuNet) gives boxes and five points. The landmark network sees the face cropped, upright and at a fixed size,
because its error grows with the distance between that crop and the one that it was trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
import zipfile

import cv2
import numpy as np

from emo_jax.faces.boxes import Box
from emo_jax.faces.mesh import LEFT_EYE, LIP_CORNERS, NOSE_TIP, POINTS, RIGHT_EYE, FaceMesh
from emo_jax.faces.models import model_path

DETECTION_SIDES = (320, 640)
"""Longer sides, in pixels, of the copies in which faces are detected; the second one if the first shows none."""
MIN_SCORE = 0.6
"""Smallest confidence of a detection."""
LANDMARK_SIDE = 256
CROP_GROWTH = 1.5
"""Side of the landmark network's crop, relative to the longer side of the face."""
SHAPE_POINTS = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80, 81,
    82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153, 154,
    155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263,
    267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321,
    323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387,
    388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
)  # fmt: skip
"""The landmarks that the blendshape network takes."""
SHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""Names of the blendshapes, in the network's order."""
_MAX_DETECTORS = 8


@dataclasses.dataclass(frozen=True)
class Detection:
    """A face that YuNet found.

    Attributes:
        box: (x0, y0, x1, y1) in pixels; it may exceed the image.
        points: (5, 2) in pixels: the person's right eye, left eye, nose tip, right and left corner of the mouth.
        score: confidence in [0, 1].
    """

    box: Box
    points: np.ndarray
    score: float


@dataclasses.dataclass(frozen=True)
class Crop:
    """A turned square of an image.

    Attributes:
        centre: (x, y) in pixels.
        side: in pixels.
        angle: clockwise turn of its horizontal side, in radians.
    """

    centre: tuple[float, float]
    side: float
    angle: float

    def matrix(self, size: int) -> np.ndarray:
        """Returns the affine matrix (2, 3) from the image to the crop at `size` x `size` pixels."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]]) * (size / self.side)
        return np.column_stack([turn, size / 2 - turn @ self.centre])


class FaceNetworks:
    """Detector and landmark networks. One instance serves several threads."""

    def __init__(self, folder: str | None = None):
        """Loads the networks.

        Args:
            folder: folder of the model files; None: see `models.folder`.

        Raises:
            ValueError: if a file is missing, or OpenCV cannot read it.
        """
        self._detector_path = str(model_path("yunet", folder))
        task = model_path("face_landmarker", folder)
        try:
            with zipfile.ZipFile(task) as archive:
                self._landmarks = _read_tflite(archive.read("face_landmarks_detector.tflite"))
                self._shapes = _read_tflite(archive.read("face_blendshapes.tflite"))
                self.mesh = FaceMesh.parse(archive.read("geometry_pipeline_metadata_landmarks.binarypb"))
            self._make_detector((64, 64))
        except (zipfile.BadZipFile, KeyError, cv2.error) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the model files in {task.parent} cannot be read ({reason}); delete them and run: emo models download"
            ) from error
        self._lock = threading.Lock()  # a network keeps state while it runs
        self._make_detector = functools.lru_cache(_MAX_DETECTORS)(self._make_detector)

    def _make_detector(self, size: tuple[int, int]) -> cv2.FaceDetectorYN:
        return cv2.FaceDetectorYN.create(self._detector_path, "", size, MIN_SCORE)

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detects the faces of an image, uint8 RGB (height, width, 3), the largest first."""
        height, width = image.shape[:2]
        for side in DETECTION_SIDES:
            scale = min(1.0, side / max(height, width))
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
            with self._lock:
                rows = self._make_detector(size).detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
            if rows is not None and len(rows):
                ratio = np.array([width / size[0], height / size[1]])
                return sorted((_detection(row, ratio) for row in rows), key=lambda face: face.box[1] - face.box[3])
            if scale == 1:
                break
        return []

    def landmarks(self, image: np.ndarray, crop: Crop) -> tuple[np.ndarray, float]:
        """Computes the landmarks of the face in a crop of an image, uint8 RGB (height, width, 3).

        Returns:
            (points, presence): (478, 3) x and y in pixels of the image and z, towards the viewer, in the same unit; and
            the confidence in [0, 1] that the crop shows a face.
        """
        matrix = crop.matrix(LANDMARK_SIDE)
        square = cv2.warpAffine(image, matrix, (LANDMARK_SIDE, LANDMARK_SIDE), flags=cv2.INTER_LINEAR)
        with self._lock:
            self._landmarks.setInput(cv2.dnn.blobFromImage(square, 1 / 255.0))
            points, logit = self._landmarks.forward(["Identity", "Identity_1"])
        points = points.reshape(POINTS, 3).astype(np.float64)
        flat = (points[:, :2] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        depth = -points[:, 2] * crop.side / LANDMARK_SIDE  # the network's z points away from the viewer
        return np.column_stack([flat, depth]), float(1 / (1 + np.exp(-logit.ravel()[0])))

    def blendshapes(self, points: np.ndarray) -> np.ndarray:
        """Returns the weights (52,) in [0, 1] of `SHAPES` from landmarks (478, 2 or more) in pixels."""
        chosen = points[list(SHAPE_POINTS), :2].astype(np.float32)
        with self._lock:
            self._shapes.setInput(np.ascontiguousarray(chosen[None]))
            return self._shapes.forward().ravel().copy()


class Recognizer:
    """SFace: identity embeddings of faces."""

    def __init__(self, folder: str | None = None):
        """Loads the network.

        Args:
            folder: folder of the model files; None: see `models.folder`.

        Raises:
            ValueError: if the file is missing, or OpenCV cannot read it.
        """
        path = model_path("sface", folder)
        try:
            self._network = cv2.FaceRecognizerSF.create(str(path), "")
        except cv2.error as error:
            raise ValueError(f"{path} cannot be read; delete it and run: emo models download") from error
        self._lock = threading.Lock()

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Returns the embedding (128,) float32 of length 1 of a face.

        Args:
            image: uint8 RGB (height, width, 3).
            points: (5, 2) of `five_points` or of a `Detection`.
        """
        row = np.concatenate([np.zeros(4), points.ravel(), np.ones(1)]).astype(np.float32)
        with self._lock:
            aligned = self._network.alignCrop(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), row)
            embedding = self._network.feature(aligned).ravel().copy()
        return embedding / max(float(np.linalg.norm(embedding)), 1e-9)


def detection_crop(detection: Detection) -> Crop:
    """Returns the landmark network's crop around a detected face, turned so that its eyes are level."""
    x0, y0, x1, y1 = detection.box
    across = detection.points[1] - detection.points[0]
    side = CROP_GROWTH * max(x1 - x0, y1 - y0)
    return Crop(((x0 + x1) / 2, (y0 + y1) / 2), side, math.atan2(across[1], across[0]))


def landmark_crop(points: np.ndarray) -> Crop:
    """Returns the landmark network's crop around a face whose landmarks (478, 2 or more) are known."""
    flat = points[:, :2]
    across = flat[LEFT_EYE[1]] - flat[RIGHT_EYE[0]]
    angle = math.atan2(across[1], across[0])
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])
    upright = flat @ turn.T
    low, high = upright.min(0), upright.max(0)
    x, y = turn.T @ ((low + high) / 2)
    return Crop((float(x), float(y)), CROP_GROWTH * float((high - low).max()), angle)


def five_points(points: np.ndarray) -> np.ndarray:
    """Returns the five points (5, 2) of a `Detection` from landmarks (478, 2 or more)."""
    flat = points[:, :2]
    eyes = [flat[list(eye)].mean(0) for eye in (RIGHT_EYE, LEFT_EYE)]
    return np.stack([*eyes, flat[NOSE_TIP], *flat[list(LIP_CORNERS)]])


def _read_tflite(content: bytes) -> cv2.dnn.Net:
    return cv2.dnn.readNetFromTFLite(np.frombuffer(content, np.uint8))


def _detection(row: np.ndarray, ratio: np.ndarray) -> Detection:
    """Converts a row of YuNet (x, y, width, height, five points, score) to pixels of the image."""
    corner, size = row[:2] * ratio, row[2:4] * ratio
    box = tuple(float(value) for value in (*corner, *(corner + size)))
    return Detection(box, (row[4:14].reshape(5, 2) * ratio).astype(np.float64), float(row[14]))  # pyright: ignore

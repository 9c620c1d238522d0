"""Faces from frame to frame: one interface, `FaceAnalyzer`, and the analyzer that needs nothing but OpenCV.

An analyzer is fed the frames of one shot in order and says for each which faces it sees, the main one first.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import cv2
import numpy as np

from emo_jax.faces.boxes import Box
from emo_jax.faces.detection import DETECTION_SIDE, find_faces

ANALYZERS = ("auto", "haar", "mediapipe")
SECOND_FACE = 0.4  # of the main face's height: what is smaller stands in the background and is not counted


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in one frame.

    Attributes:
      box: (x0, y0, x1, y1) in pixels.
      rotation: yaw, pitch and roll in degrees, as in `Record`; 0 where the analyzer cannot tell.
      confidence: in [0, 1], how far the head's rotation speed can be trusted.
      landmarks: (P, 2) points of the face in pixels, of which there are always as many; None from an analyzer that
        has none.
    """

    box: Box
    rotation: tuple[float, float, float]
    confidence: float
    landmarks: np.ndarray | None = dataclasses.field(default=None, compare=False)


class FaceAnalyzer(Protocol):
    """What `emo prepare videos` asks of a face detector."""

    name: str
    gives: str
    """What it can tell, for the record: "box and roll" or "box, yaw, pitch and roll"."""

    def reset(self) -> None:
        """Forget the faces seen: another shot begins."""

    def faces(self, image: np.ndarray) -> list[Face]:
        """The faces of the next frame, uint8 RGB (height, width, 3): the main one first, then others near its size."""


def make_analyzer(name: str = "auto", model: str | None = None) -> FaceAnalyzer:
    """The analyzer of that name: haar | mediapipe | auto (mediapipe where a model is given or cached, else haar).

    model: path of mediapipe's face_landmarker.task. Raises ValueError (one line) on an unknown name, a missing model
    or a missing package.
    """
    if name not in ANALYZERS:
        raise ValueError(f"face analyzer {name!r} is unknown; choose one of {', '.join(ANALYZERS)}")
    from emo_jax.faces import landmarks as landmarker

    if name == "mediapipe" or (name == "auto" and (model or landmarker.cached_model().is_file())):
        return landmarker.Landmarker(model)
    if model:
        raise ValueError(f"the face analyzer haar takes no model, but {model} was given; choose mediapipe or auto")
    return HaarTracker()


def analyzer_flags(analyzer: FaceAnalyzer) -> list[str]:
    """What a record says of how its face was found."""
    return ["roll-only"] if analyzer.gives == "box and roll" else []


def main_first(faces: list[Face], previous: Box | None) -> list[Face]:
    """The main face (the one that overlaps `previous` most, else the largest), then the others worth counting."""
    if not faces:
        return []
    overlaps = [overlap(face.box, previous) if previous else 0.0 for face in faces]
    by_size = [_height(face.box) for face in faces]
    main = int(np.argmax(overlaps if max(overlaps) > 0.1 else by_size))
    least = SECOND_FACE * by_size[main]
    return [faces[main]] + [face for k, face in enumerate(faces) if k != main and by_size[k] >= least]


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / (_area(first) + _area(second) - wide * high)


class HaarTracker:
    """OpenCV's Haar cascades on every `EVERY`th frame, optical flow between them: box and roll, no yaw, no pitch.

    Roll is counted from the shot's first frame; the speed that follows from it misses most turns of a head, so the
    confidence is low.
    """

    name, gives = "haar", "box and roll"
    EVERY = 8  # frames from one look to the next
    PATIENCE = 50  # frames that flow alone may carry a face which the cascades lost (a profile, closed eyes, hands)
    CONFIDENCE = 0.2

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._box: Box | None = None
        self._roll, self._since_look, self._since_seen = 0.0, self.EVERY, 0
        self._others: list[Face] = []
        self._grey = self._points = None

    def faces(self, image: np.ndarray) -> list[Face]:
        scale = max(1.0, max(image.shape[:2]) / DETECTION_SIDE)
        size = (max(1, round(image.shape[1] / scale)), max(1, round(image.shape[0] / scale)))
        grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        if self._box is not None:
            self._follow(grey, scale)
        self._grey, self._since_look, self._since_seen = grey, self._since_look + 1, self._since_seen + 1
        if self._since_look >= self.EVERY:
            self._look(image, scale)
        if self._since_seen > self.PATIENCE:
            self._box = None
        if self._box is None:
            return []
        return [Face(self._box, (0.0, 0.0, self._roll), self.CONFIDENCE), *self._others]

    def _look(self, image: np.ndarray, scale: float) -> None:
        self._since_look = 0
        found = main_first([Face(box, (0.0, 0.0, 0.0), 0.0) for box in find_faces(image)], self._box)
        if not found:
            self._others = []
            return
        seen = found[0].box
        followed = self._box is not None and overlap(seen, self._box) > 0.3
        if not followed and self._box is not None and self._since_seen <= 2 * self.EVERY:
            return  # a chance hit elsewhere, while the face was seen a moment ago
        self._box = tuple((a + b) / 2 for a, b in zip(seen, self._box, strict=True)) if followed else seen
        self._others, self._since_seen = found[1:], 0
        self._points = _corners(self._grey, self._box, scale)

    def _follow(self, grey: np.ndarray, scale: float) -> None:
        """Moves box and roll as the points in the upper face moved; forgets the face where they cannot be followed."""
        move = None if self._points is None else _motion(self._grey, grey, self._points)
        if move is None:
            self._box, self._others, self._since_look = None, [], self.EVERY
            return
        matrix, self._points = move
        turn, grow = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])), math.hypot(matrix[0, 0], matrix[1, 0])
        x0, y0, x1, y1 = self._box
        x, y = matrix[:, :2] @ ((x0 + x1) / 2 / scale, (y0 + y1) / 2 / scale) + matrix[:, 2]
        wide, high = (x1 - x0) * grow / 2, (y1 - y0) * grow / 2
        self._box = (x * scale - wide, y * scale - high, x * scale + wide, y * scale + high)
        self._roll += turn
        if len(self._points) < 12:
            self._points = _corners(grey, self._box, scale)


def _corners(grey: np.ndarray, box: Box, scale: float) -> np.ndarray | None:
    """(P, 1, 2) points that can be followed, in the upper face: the mouth moves by itself."""
    x0, y0, x1, y1 = (value / scale for value in box)
    mask = np.zeros_like(grey)
    rows = slice(max(0, round(y0)), max(0, round(y0 + 0.65 * (y1 - y0))))
    mask[rows, max(0, round(x0 + 0.1 * (x1 - x0))) : max(0, round(x1 - 0.1 * (x1 - x0)))] = 255
    return cv2.goodFeaturesToTrack(grey, 80, 0.01, 3, mask=mask)


def _motion(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """((2, 3) similarity, points (P, 1, 2) in the frame after) from optical flow that agrees with its way back."""
    options = dict(winSize=(15, 15), maxLevel=3)
    ahead, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **options)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, ahead, None, **options)
    good = (found & returned).ravel().astype(bool) & (np.linalg.norm(back - points, axis=2).ravel() < 1)
    if good.sum() < 6:
        return None
    matrix, used = cv2.estimateAffinePartial2D(points[good], ahead[good], ransacReprojThreshold=2)
    if matrix is None or used.mean() < 0.5:
        return None
    return matrix, ahead[good]


def _height(box: Box) -> float:
    return box[3] - box[1]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])

"""A face analyzer that needs only OpenCV: Haar cascades every few frames, optical flow between them."""

from __future__ import annotations

import math

import cv2
import numpy as np

from emo_jax.faces.analyzer import Face, main_first
from emo_jax.faces.boxes import Box, overlap
from emo_jax.faces.detection import DETECTION_SIDE, find_faces


class HaarTracker:
    """A `FaceAnalyzer` that measures box and roll, but not yaw and pitch.

    Roll is relative to the first frame of the shot. The rotation speed computed from roll alone misses most turns of a
    head, so the confidence is low.
    """

    name, measures = "haar", "box and roll"
    EVERY = 8
    """Frames between detections."""
    PATIENCE = 50
    """Frames for which optical flow alone may follow a face that the cascades lost (a profile, closed eyes, hands)."""
    CONFIDENCE = 0.2

    def __init__(self):
        """Starts without a face."""
        self.reset()

    def reset(self) -> None:
        """Forgets the face; call it at the start of a shot."""
        self._box: Box | None = None
        self._roll, self._since_detection, self._since_success = 0.0, self.EVERY, 0
        self._others: list[Face] = []
        self._grey: np.ndarray | None = None
        self._points: np.ndarray | None = None

    def detect(self, image: np.ndarray) -> list[Face]:
        """Detects or follows the faces of the next frame, uint8 RGB (height, width, 3); the main face is first."""
        scale = max(1.0, max(image.shape[:2]) / DETECTION_SIDE)
        size = (max(1, round(image.shape[1] / scale)), max(1, round(image.shape[0] / scale)))
        grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        if self._box is not None:
            self._follow(self._box, grey, scale)
        self._grey = grey
        self._since_detection, self._since_success = self._since_detection + 1, self._since_success + 1
        if self._since_detection >= self.EVERY:
            self._detect(image, grey, scale)
        if self._since_success > self.PATIENCE:
            self._box = None
        if self._box is None:
            return []
        return [Face(self._box, (0.0, 0.0, self._roll), self.CONFIDENCE), *self._others]

    def _detect(self, image: np.ndarray, grey: np.ndarray, scale: float) -> None:
        self._since_detection = 0
        faces = main_first([Face(box, (0.0, 0.0, 0.0), 0.0) for box in find_faces(image)], self._box)
        if not faces:
            self._others = []
            return
        box = faces[0].box
        if self._box is not None:
            if overlap(box, self._box) > 0.3:
                x0, y0, x1, y1 = ((a + b) / 2 for a, b in zip(box, self._box, strict=True))
                box = x0, y0, x1, y1
            elif self._since_success <= 2 * self.EVERY:
                return  # a chance detection elsewhere, while the face was detected a moment ago
        self._box, self._others, self._since_success = box, faces[1:], 0
        self._points = _corners(grey, box, scale)

    def _follow(self, box: Box, grey: np.ndarray, scale: float) -> None:
        """Moves box and roll with the points in the upper face; forgets the face if they cannot be followed."""
        motion = None if self._points is None or self._grey is None else _motion(self._grey, grey, self._points)
        if motion is None:
            self._box, self._others, self._since_detection = None, [], self.EVERY
            return
        matrix, points = motion
        angle, growth = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])), math.hypot(matrix[0, 0], matrix[1, 0])
        x0, y0, x1, y1 = box
        x, y = matrix[:, :2] @ ((x0 + x1) / 2 / scale, (y0 + y1) / 2 / scale) + matrix[:, 2]
        half_width, half_height = (x1 - x0) * growth / 2, (y1 - y0) * growth / 2
        self._box = moved = (
            x * scale - half_width,
            y * scale - half_height,
            x * scale + half_width,
            y * scale + half_height,
        )
        self._roll += angle
        self._points = points if len(points) >= 12 else _corners(grey, moved, scale)


def _corners(grey: np.ndarray, box: Box, scale: float) -> np.ndarray | None:
    """Finds (P, 1, 2) points to follow in the upper face; the mouth is left out because it moves independently."""
    x0, y0, x1, y1 = (value / scale for value in box)
    mask = np.zeros_like(grey)
    rows = slice(max(0, round(y0)), max(0, round(y0 + 0.65 * (y1 - y0))))
    mask[rows, max(0, round(x0 + 0.1 * (x1 - x0))) : max(0, round(x1 - 0.1 * (x1 - x0)))] = 255
    return cv2.goodFeaturesToTrack(grey, 80, 0.01, 3, mask=mask)


def _motion(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Estimates the motion of points between two grey images by forward-backward optical flow.

    Returns:
        (matrix, points): the (2, 3) similarity transform and (P, 1, 2) points in `after`; None if too few agree.
    """
    options = dict(winSize=(15, 15), maxLevel=3)
    forward, status, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **options)  # pyright: ignore
    back, status_back, _ = cv2.calcOpticalFlowPyrLK(after, before, forward, None, **options)  # pyright: ignore
    good = (status & status_back).ravel().astype(bool) & (np.linalg.norm(back - points, axis=2).ravel() < 1)
    if good.sum() < 6:
        return None
    matrix, used = cv2.estimateAffinePartial2D(points[good], forward[good], ransacReprojThreshold=2)
    if matrix is None or used.mean() < 0.5:
        return None
    return matrix, forward[good]

"""The interface of face analyzers, which find the faces of a video frame by frame."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from emo_jax.faces.boxes import Box, overlap

MIN_SECOND_FACE = 0.4
"""Smallest height of a second face as a share of the main face's; smaller ones are background and not counted."""


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in one frame.

    Attributes:
        box: (x0, y0, x1, y1) in pixels.
        rotation: yaw, pitch and roll in degrees, as in `Record`; 0 for an angle that the analyzer does not measure.
        confidence: in [0, 1], how reliable the head's rotation speed is.
        landmarks: (P, 2) points of the face in pixels, P constant for an analyzer; None if it has no landmarks.
    """

    box: Box
    rotation: tuple[float, float, float]
    confidence: float
    landmarks: np.ndarray | None = dataclasses.field(default=None, compare=False)


class FaceAnalyzer(Protocol):
    """A face detector that receives the frames of one shot in order.

    Attributes:
        name: recorded with the measurements.
        measures: what it measures, recorded too: "box and roll" or "box, yaw, pitch and roll".
    """

    name: str
    measures: str

    def reset(self) -> None:
        """Forgets the previous frames; call it at the start of a shot."""
        ...

    def detect(self, image: np.ndarray) -> list[Face]:
        """Detects the faces of the next frame.

        Args:
            image: uint8 RGB (height, width, 3).

        Returns:
            The main face first, then other faces near its size.
        """
        ...


def analyzer_flags(analyzer: FaceAnalyzer) -> list[str]:
    """Returns the flags of records whose faces were found by `analyzer`."""
    return ["roll-only"] if analyzer.measures == "box and roll" else []


def main_first(faces: list[Face], previous: Box | None) -> list[Face]:
    """Sorts the faces of a frame.

    Args:
        faces: all faces detected.
        previous: box of the main face in the previous frame, if there was one.

    Returns:
        The main face (the one that overlaps `previous` most, or else the largest), then the others of at least
        MIN_SECOND_FACE of its height.
    """
    if not faces:
        return []
    overlaps = [overlap(face.box, previous) if previous else 0.0 for face in faces]
    heights = [face.box[3] - face.box[1] for face in faces]
    main = int(np.argmax(overlaps if max(overlaps) > 0.1 else heights))
    min_height = MIN_SECOND_FACE * heights[main]
    return [faces[main]] + [face for k, face in enumerate(faces) if k != main and heights[k] >= min_height]

"""Chooses how faces are found: by landmarks if the model files are on this machine, otherwise by Haar cascades."""

from __future__ import annotations

import numpy as np

from emo_jax.faces.analyzer import Face, FaceAnalyzer
from emo_jax.faces.detection import find_faces
from emo_jax.faces.landmarks import LandmarkTracker, find_landmarks, load_networks
from emo_jax.faces.models import has_models
from emo_jax.faces.tracking import HaarTracker

ANALYZERS = ("auto", "haar", "landmarks")
NEEDED = ("yunet", "face_landmarker")
"""Models that landmarks need."""


def make_analyzer(name: str = "auto", folder: str | None = None) -> FaceAnalyzer:
    """Creates a face analyzer.

    Args:
        name: "haar", "landmarks", or "auto" (landmarks if the model files are there, else haar).
        folder: folder of the model files; None for the default, see `models.default_folder`.

    Raises:
        ValueError: if the name is unknown, or a model file is missing.
    """
    if name not in ANALYZERS:
        raise ValueError(f"face analyzer {name!r} is unknown; choose one of {', '.join(ANALYZERS)}")
    if name == "landmarks" or (name == "auto" and (folder or has_models(*NEEDED))):
        return LandmarkTracker(folder)
    if folder:
        raise ValueError(f"the face analyzer haar takes no models, but {folder} was given; choose landmarks or auto")
    return HaarTracker()


def portrait_faces(image: np.ndarray, folder: str | None = None) -> list[Face]:
    """Finds the faces of a portrait, upright or tilted, the largest first.

    With the model files, each has 478 landmarks and a rotation. Without them, Haar cascades find its box only.

    Args:
        image: uint8 RGB (height, width, 3).
        folder: folder of the model files; None for the default, see `models.default_folder`.

    Raises:
        ValueError: if `image` is not uint8 RGB, or a model file is missing in a given folder.
    """
    if folder or has_models(*NEEDED):
        return find_landmarks(image, load_networks(folder), tilted=True)
    return [Face(box, (0.0, 0.0, 0.0), 0.0) for box in find_faces(image, tilted=True)]

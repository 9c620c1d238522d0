"""Chooses a face analyzer by name."""

from __future__ import annotations

from emo_jax.faces.analyzer import FaceAnalyzer
from emo_jax.faces.landmarks import Landmarker, cached_model
from emo_jax.faces.tracking import HaarTracker

ANALYZERS = ("auto", "haar", "mediapipe")


def make_analyzer(name: str = "auto", model: str | None = None) -> FaceAnalyzer:
    """Creates a face analyzer.

    Args:
      name: "haar", "mediapipe", or "auto" (mediapipe if a model is given or cached, else haar).
      model: path of mediapipe's face_landmarker.task.

    Raises:
      ValueError: if the name is unknown, or the model or a package is missing.
    """
    if name not in ANALYZERS:
        raise ValueError(f"face analyzer {name!r} is unknown; choose one of {', '.join(ANALYZERS)}")
    if name == "mediapipe" or (name == "auto" and (model or cached_model().is_file())):
        return Landmarker(model)
    if model:
        raise ValueError(f"the face analyzer haar takes no model, but {model} was given; choose mediapipe or auto")
    return HaarTracker()

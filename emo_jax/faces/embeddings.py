"""Face embeddings that hallo is conditioned on: from a file, or by a recognition network of InsightFace.

InsightFace's networks (glintr100.onnx in hallo's own pipeline) are for non-commercial use, so the user gets them.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import cv2
import numpy as np

from emo_jax.faces.boxes import check_image

SIDE = 112
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where the five points of `networks.five_points` are in the crop that the network takes, in pixels."""


def read_embedding(path: str | os.PathLike, length: int = 512) -> np.ndarray:
    """Reads an embedding that `numpy.save` wrote.

    Args:
        path: the .npy file, with (length,) or (1, length) numbers; as InsightFace's `embedding`, not normalized.
        length: expected number of values.

    Returns:
        float32 (length,).

    Raises:
        ValueError: if the file is missing, damaged, or holds something else.
    """
    try:
        values = np.load(path, allow_pickle=False)
        embedding = np.asarray(values, np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"face embedding {path} cannot be read ({error}); expected a .npy file of numbers") from error
    if embedding.shape not in ((length,), (1, length)) or not np.isfinite(embedding).all():
        raise ValueError(
            f"face embedding {path} has the shape {embedding.shape}; expected ({length},), all finite, as the raw "
            "embedding of InsightFace"
        )
    return embedding.reshape(length)


class InsightFace:
    """A recognition network of InsightFace, run by onnxruntime (extra: arcface)."""

    def __init__(self, path: str | os.PathLike):
        """Loads the network.

        Args:
            path: the .onnx file.

        Raises:
            ValueError: if onnxruntime or the file is missing, or onnxruntime does not accept it.
        """
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                "an ONNX file needs onnxruntime: pip install -c constraints.txt -e '.[arcface]'; or give the "
                "embedding itself as a .npy file"
            ) from error
        if not pathlib.Path(path).is_file():
            raise ValueError(f"face recognition network {path} does not exist; expected InsightFace's glintr100.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(os.fspath(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception class for each status code
            reason = " ".join(str(error).split())[:100]
            raise ValueError(f"{path} is no network that onnxruntime can read ({reason})") from error
        self._input = self._session.get_inputs()[0]
        if list(self._input.shape[1:]) != [3, SIDE, SIDE]:
            raise ValueError(
                f"{path} takes {self._input.shape}; expected one image of (1, 3, {SIDE}, {SIDE}), as InsightFace's "
                "recognition networks"
            )

    def embed(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Returns the raw embedding of a face, float32 (D,); D is 512 for glintr100.

        Args:
            image: uint8 RGB (height, width, 3).
            points: (5, 2) of `networks.five_points`.
        """
        blob = (align(image, points).astype(np.float32) - 127.5) / 127.5
        return np.asarray(self._session.run(None, {self._input.name: blob.transpose(2, 0, 1)[None]})[0]).ravel()


def align(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Crops a face so that its five points are nearest to TEMPLATE.

    Args:
        image: uint8 RGB (height, width, 3).
        points: (5, 2) of `networks.five_points`.

    Returns:
        uint8 RGB (112, 112, 3).
    """
    check_image(image)
    x, y = points.T
    one, zero = np.ones(5), np.zeros(5)
    # A similarity (a, b, x, y) is linear: its least squares solution is that of Umeyama.
    equations = np.concatenate([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
    a, b, shift_x, shift_y = np.linalg.lstsq(equations, TEMPLATE.T.ravel(), rcond=None)[0]
    return cv2.warpAffine(image, np.array([[a, -b, shift_x], [b, a, shift_y]]), (SIDE, SIDE))

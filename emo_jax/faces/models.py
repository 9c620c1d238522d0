"""Model files: what they are, where they come from, and where they are on this machine.

None of them is part of the package. `emo models download` gets those of face analysis; without them, faces are found by
OpenCV's Haar cascades. Those of metrics are downloaded by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable

from emo_jax import cache
from emo_jax.files import atomic_write

CHUNK = 1 << 16
TIMEOUT = 30.0
"""Seconds without an answer after which a download fails."""
ENVIRONMENT = "EMO_FACE_MODELS"
_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/25f423d0e04c31a17254620e58febd7386da523b/models"
_MEDIAPIPE = "https://storage.googleapis.com/mediapipe-models"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model file.

    Attributes:
        name: how this project calls it.
        file: name of the file.
        address: the official address.
        sha256: hash of the content.
        size: in bytes.
        licence: SPDX identifier.
        purpose: what it computes.
    """

    name: str
    file: str
    address: str
    sha256: str
    size: int
    licence: str
    purpose: str


MODELS = (
    Model(
        name="yunet",
        file="face_detection_yunet_2023mar_int8bq.onnx",
        address=f"{_ZOO}/face_detection_yunet/face_detection_yunet_2023mar_int8bq.onnx",
        sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        size=122_489,
        licence="MIT",
        purpose="face detection",
    ),
    Model(
        name="face_landmarker",
        file="face_landmarker.task",
        address=f"{_MEDIAPIPE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        size=3_758_596,
        licence="Apache-2.0",
        purpose="478 landmarks, 52 blendshapes",
    ),
    Model(
        name="sface",
        file="face_recognition_sface_2021dec_int8bq.onnx",
        address=f"{_ZOO}/face_recognition_sface/face_recognition_sface_2021dec_int8bq.onnx",
        sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        size=10_667_852,
        licence="Apache-2.0",
        purpose="identity embeddings",
    ),
)


METRICS = (
    Model(
        name="inception",
        file="pt_inception-2015-12-05-6726825d.pth",
        address="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        size=95_628_359,
        licence="Apache-2.0",
        purpose="FID (emo evaluate --inception)",
    ),
    Model(
        name="syncnet",
        file="syncnet_v2.model",
        address="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
        size=54_573_114,
        licence="not stated",
        purpose="Sync-C, Sync-D (emo evaluate --syncnet; reading it needs the extra torch)",
    ),
)
"""Models of metrics, which nothing else needs."""


def default_folder() -> pathlib.Path:
    """Returns the folder of the model files: $EMO_FACE_MODELS, or `models` in the cache. It need not exist."""
    return pathlib.Path(os.environ.get(ENVIRONMENT) or cache.folder() / "models")


def find_model(name: str, folder: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Returns the path of a model file if it is on this machine with the expected size, else None.

    Args:
        name: name of one of MODELS or METRICS.
        folder: folder of the model files; None for `default_folder()`.
    """
    model = _model(name)
    path = pathlib.Path(folder or default_folder()) / model.file
    try:
        return path if path.stat().st_size == model.size else None
    except OSError:
        return None


def model_path(name: str, folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns the path of a model file.

    Args:
        name: name of one of MODELS.
        folder: folder of the model files; None for `default_folder()`.

    Raises:
        ValueError: if the file is missing or has another size.
    """
    path = find_model(name, folder)
    if path is None:
        expected = pathlib.Path(folder or default_folder()) / _model(name).file
        state = "has an unexpected size" if expected.is_file() else "is missing"
        raise ValueError(
            f"the model file {expected} {state}: run emo models download, or copy it there from {_model(name).address}"
        )
    return path


def has_models(*names: str, folder: str | os.PathLike | None = None) -> bool:
    """Returns whether the named models are on this machine."""
    return all(find_model(name, folder) for name in names)


def matches_hash(path: pathlib.Path, model: Model) -> bool:
    """Returns whether a file has the content of `model`."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == model.sha256


def download(
    model: Model, folder: str | os.PathLike | None = None, tick: Callable[[int], None] = lambda _: None
) -> pathlib.Path:
    """Downloads a model file from its official address, unless it is there already.

    Args:
        model: one of MODELS.
        folder: folder of the model files; None for `default_folder()`.
        tick: called with the number of bytes that arrived since the last call.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the address cannot be reached, or its content is not the expected one. Then no file is left.
        OSError: if the file cannot be written.
    """
    target = pathlib.Path(folder or default_folder()) / model.file
    if target.is_file() and matches_hash(target, model):
        tick(model.size)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as partial:
        _fetch(model, partial, tick)
    return target


def _fetch(model: Model, path: pathlib.Path, tick: Callable[[int], None]) -> None:
    request = urllib.request.Request(model.address, headers={"User-Agent": "emo_jax"})
    digest, received = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, open(path, "wb") as file:
            while received <= model.size and (chunk := answer.read(CHUNK)):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                tick(len(chunk))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"{model.file} cannot be downloaded from {model.address} ({reason}); check the network, or copy the file "
            f"to {path.parent}"
        ) from error
    if digest.hexdigest() != model.sha256:
        raise ValueError(
            f"{model.address} sent {received} bytes with the hash {digest.hexdigest()[:16]}; expected {model.size} "
            f"bytes with {model.sha256[:16]}: the address may be blocked or redirected; copy the file to {path.parent}"
        )


def _model(name: str) -> Model:
    return next(model for model in (*MODELS, *METRICS) if model.name == name)

"""Inputs about the face that some weights take: regions of the voice's branches, and an identity embedding."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from emo_jax.faces.analyzers import portrait_faces
from emo_jax.faces.boxes import Box, check_box, overlap
from emo_jax.faces.embeddings import InsightFace, read_embedding
from emo_jax.faces.networks import five_points
from emo_jax.faces.regions import regions_from_box, regions_from_landmarks
from emo_jax.generation.framing import Placement
from emo_jax.generation.inputs import check_options
from emo_jax.models.conditions import BRANCHES
from emo_jax.models.emo import EMO

_SAME_FACE = 0.3
"""Overlap from which a face found in the crop is the one that was placed there."""


def face_regions(
    placement: Placement, levels: Sequence[tuple[int, int]]
) -> tuple[UInt8[np.ndarray, "1 height width 1"], tuple[Float[np.ndarray, "1 _ _ branches"], ...]]:
    """Returns the Face Locator's mask, and the regions of the audio branches at each level of the Backbone.

    They follow the landmarks of the face if the model files are on this machine (`emo models`), and its box otherwise.

    Args:
        placement: the portrait's crop and its face.
        levels: (height, width) of the levels' maps.
    """
    height, width = size = placement.crop.shape[:2]
    left, top, right, bottom = placement.window
    scales, limits = (width / (right - left), height / (bottom - top)) * 2, (width, height) * 2
    corners = zip(placement.face, (left, top) * 2, scales, limits, strict=True)
    x0, y0, x1, y1 = (min(max((x - start) * scale, 0.0), limit) for x, start, scale, limit in corners)
    box = (x0, y0, x1, y1)
    face = max(portrait_faces(placement.crop), key=lambda found: overlap(found.box, box), default=None)
    if face is None or face.landmarks is None or overlap(face.box, box) < _SAME_FACE:
        regions = regions_from_box(box, height, width)
    else:
        regions = regions_from_landmarks(face.landmarks, height, width)
    masks = regions.masks(levels)
    branches = zip(*(masks[name] for name in ("pose", "face", "lip")), strict=True)
    mask = np.round(regions.face_region(size)).astype(np.uint8)
    return mask[None, ..., None], tuple(np.stack(level, axis=-1)[None] for level in branches)


def face_masks(emo: EMO, placement: Placement) -> tuple[UInt8[np.ndarray, "1 height width 1"], Any]:
    """Returns the mask of the Face Locator, and the regions of the audio branches, None for networks without them."""
    if emo.backbone.config.audio_branches:
        return face_regions(placement, emo.level_sizes)
    return placement.mask[None], None


def variant_inputs(
    emo: EMO, sampling: ConfigDict, face_embedding: Any, weights: dict[str, float | None]
) -> dict[str, Any]:
    """Returns the arguments of `VideoSampler.stream` that only some networks have.

    Prints a note on stderr if the networks use an identity embedding and there is none.

    Args:
        emo: the networks.
        sampling: the config's `sampling`, with the weights' defaults.
        face_embedding: identity embedding of the face, or None.
        weights: {"pose_weight": weight of this branch or None for the config's, ...}.

    Raises:
        ValueError: one is given that these networks do not have, or that cannot be used.
        TypeError: another weight is given.
    """
    check_options(seed=0, **weights)
    given, extra = {name: value for name, value in weights.items() if value is not None}, {}
    if given and not emo.backbone.config.audio_branches:
        raise ValueError(f"{next(iter(given))} is given, but these weights have no such branches of the voice")
    if given:
        used = {**sampling, **given}
        extra["branch_weights"] = np.array([used[f"{name}_weight"] for name in BRANCHES], np.float32)
    if face_embedding is not None and emo.face_projector is None:
        raise ValueError("face_embedding is given, but these weights do not use one")
    if face_embedding is None and emo.face_projector is not None:
        print("note: no face embedding; the video keeps the person's identity less well without it", file=sys.stderr)
    if face_embedding is not None:
        extra["face"] = check_embedding(face_embedding, emo.config.model.face_embedding.size)[None]
    return extra


def embedding_size(model: ConfigDict) -> int:
    """Returns how many numbers of an identity embedding networks use, by their config's `model`; 0 if none."""
    embedding = model.get("face_embedding")  # older weights: none
    return embedding.size if embedding and embedding.tokens else 0


def load_embedding(
    path: str | os.PathLike, size: int, image: UInt8[np.ndarray, "rows columns 3"], face_box: Box | int | None
) -> Float[np.ndarray, " {size}"]:
    """Returns the identity embedding of a face: from a .npy file, or computed by an ONNX network of InsightFace.

    Args:
        path: the .npy or .onnx file.
        size: numbers that the networks expect.
        image: the portrait, from which a network computes the embedding.
        face_box: the face in it: its box, its number, or None for the largest.

    Raises:
        ValueError: the file cannot be used, or the portrait's face has no landmarks, which a network needs.
    """
    if os.fspath(path).lower().endswith(".onnx"):
        network, faces = InsightFace(path), portrait_faces(image)
        if face_box is not None and not isinstance(face_box, int):
            box = check_box(face_box, *image.shape[:2])
            faces = [face for face in faces if overlap(face.box, box) >= _SAME_FACE]
            faces.sort(key=lambda face: -overlap(face.box, box))
        number = face_box if isinstance(face_box, int) else 1
        landmarks = faces[number - 1].landmarks if 1 <= number <= len(faces) else None
        if landmarks is None:
            raise ValueError(
                f"{path} needs the landmarks of a face in the portrait, of which none was found; run emo models "
                "download, or give the embedding as a .npy file"
            )
        return check_embedding(network.embed(image, five_points(landmarks)), size, path)
    return read_embedding(path, size)


def check_embedding(embedding: object, size: int, name: object = "face_embedding") -> Float[np.ndarray, " {size}"]:
    """Returns an identity embedding as `size` float32 numbers.

    Raises:
        ValueError: it has another shape, or holds something else than finite numbers.
    """
    array = np.asarray(embedding)
    if array.dtype.kind not in "fiu" or array.size != size or not np.isfinite(array).all():
        raise ValueError(f"{name} is {array.dtype} {array.shape}; expected {size} finite numbers")
    return array.reshape(size).astype(np.float32)

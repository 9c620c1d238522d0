"""Inputs of a generation: the portrait, the voice and the numeric options, checked and brought to one form."""

import math
import numbers
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from emo_jax.faces.boxes import Box, check_box, crop_around, default_box, mask_from_box
from emo_jax.faces.detection import find_faces
from emo_jax.media.audio import MAX_PEAK, NOTES, decode_audible_track
from emo_jax.media.images import from_pil, load_image
from emo_jax.media.loudness import audibility_warning
from emo_jax.media.soundtrack import SoundTrack, array_track, file_track
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
"""Folder of the bundled portrait and voice."""
MAX_FPS = 240
"""Highest frame rate of a written file."""

PortraitLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
"""What `load_portrait` accepts."""
AudioLike: TypeAlias = str | os.PathLike | np.ndarray
"""What `load_voice` accepts."""


class Voice(NamedTuple):
    """A recording, as the networks take it and as the written file carries it.

    Attributes:
        samples: mono sound at SAMPLE_RATE, not yet levelled.
        track: the same sound with all channels, for the sound track of the video.
    """

    samples: Float[np.ndarray, " samples"]
    track: SoundTrack


def load_portrait(portrait: PortraitLike) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a portrait as an upright RGB array.

    Args:
        portrait: a path, a Pillow image, or a uint8 RGB array (height, width, 3).

    Raises:
        ValueError: the file cannot be read (see `load_image`), or the array has another type or shape.
    """
    if isinstance(portrait, str | os.PathLike):
        return load_image(portrait)
    if isinstance(portrait, Image.Image):
        return from_pil(portrait)
    image = np.asarray(portrait)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"portrait is {image.dtype} {image.shape}; expected a path or uint8 RGB (height, width, 3)")
    return image


def load_voice(audio: AudioLike) -> Voice:
    """Returns a recording as a `Voice`.

    Prints a warning on stderr if a file is damaged, or if hardly any voice can be heard in it.

    Args:
        audio: a path, or float samples (samples,) in [-1, 1] at 16 kHz.

    Raises:
        ValueError: the file cannot be read (see `load_audio`), or the array has another type or shape, NaN or infinite
            samples, or samples far outside [-1, 1].
    """
    if isinstance(audio, str | os.PathLike):
        (samples, flags), index = decode_audible_track(audio)
        for flag in flags:
            print(f"warning: {audio}: {NOTES[flag]}", file=sys.stderr)
        if warning := audibility_warning(samples):
            print(f"warning: {audio} {warning}; hardly any voice will move the mouth", file=sys.stderr)
        return Voice(samples, file_track(audio, index))
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"audio is {samples.dtype} {samples.shape}; expected float32 (samples,) at 16 kHz")
    peak = float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))
    if not math.isfinite(peak):
        raise ValueError("audio has NaN or infinite samples; expected numbers in [-1, 1]")
    if peak > MAX_PEAK:
        raise ValueError(f"audio has samples up to {peak:g}; expected [-1, 1]: divide by the full scale")
    samples = np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)
    return Voice(samples, array_track(samples, SAMPLE_RATE))


def check_options(
    *,
    seed: object,
    steps: object = None,
    speed: object = None,
    reference_scale: object = None,
    audio_scale: object = None,
    fps: object = None,
) -> None:
    """Checks the numeric options of a generation. None stands for the config's value.

    Raises:
        ValueError: a value has the wrong type or is out of range.
    """
    if not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**32:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2**32 - 1")
    if steps is not None and not (isinstance(steps, numbers.Integral) and int(steps) >= 1):
        raise ValueError(f"steps is {steps!r}; expected an integer of at least 1")
    for name, value in dict(speed=speed, reference_scale=reference_scale, audio_scale=audio_scale).items():
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value) and float(value) >= 0):
            raise ValueError(f"{name} is {value!r}; expected a number of at least 0")
    if fps is not None and not 1 <= exact_fps(fps) <= MAX_FPS:  # pyright: ignore[reportArgumentType]
        raise ValueError(f"fps is {fps}; expected 1 to {MAX_FPS}")


def check_size(size: object) -> tuple[int, int]:
    """Returns the (height, width) of a size in pixels: a pair, or the side of a square.

    Raises:
        ValueError: the size is not one or two positive integers.
    """
    sides = (size, size) if isinstance(size, numbers.Integral) else size
    if not isinstance(sides, Sequence) or len(sides) != 2:
        raise ValueError(f"size is {size!r}; expected (height, width) or one side, in pixels")
    if not all(isinstance(side, numbers.Integral) and int(side) > 0 for side in sides):
        raise ValueError(f"size is {size!r}; expected positive integers, in pixels")
    return int(sides[0]), int(sides[1])


def place_portrait(
    image: UInt8[np.ndarray, "rows columns 3"],
    clip: ConfigDict,
    face_box: Box | None = None,
    name: object = "the portrait",
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width 1"]]:
    """Crops a portrait so that its face is where the faces of the training clips are.

    The face is `face_box`, else the largest detected face, with a note on stderr if there are several, else
    `default_box`, with a warning on stderr. The crop stays inside the image, so the face is off its training position
    where the image does not reach far enough.

    Args:
        image: the portrait.
        clip: the config's `clip`, which holds the size of the crop and the position of the face.
        face_box: (x0, y0, x1, y1) in pixels of the portrait, from forehead to chin.
        name: name of the portrait in the note or warning.

    Returns:
        The crop, and the mask (0 or 1) of the region in which the face may move.

    Raises:
        ValueError: `face_box` is not a box inside the image.
    """
    box = _find_face(image, name) if face_box is None else check_box(face_box, *image.shape[:2])
    height, width = clip.image_size
    crop, box = crop_around(image, box, (height, width), clip.face.height, tuple(clip.face.centre), inside=True)
    face_width, face_height = box[2] - box[0], box[3] - box[1]
    left, top, right, bottom = clip.face.growth
    region = (
        box[0] - left * face_width,
        box[1] - top * face_height,
        box[2] + right * face_width,
        box[3] + bottom * face_height,
    )
    return crop, mask_from_box(region, height, width)


def _find_face(image: UInt8[np.ndarray, "rows columns 3"], name: object) -> Box:
    """Returns the box of the largest detected face, or a default box; says on stderr if there was a choice or none."""
    faces = find_faces(image)
    if not faces:
        box = default_box(*image.shape[:2])
        print(
            f"warning: no face found in {name}; assuming {_corners(box)} (set the face box otherwise)", file=sys.stderr
        )
        return box
    if len(faces) > 1:
        others = " or ".join(_corners(box) for box in faces[1:])
        print(
            f"note: {len(faces)} faces found in {name}; using the largest, {_corners(faces[0])}; for another one set "
            f"the face box (--face-box, face_box) to {others}",
            file=sys.stderr,
        )
    return faces[0]


def _corners(box: Box) -> str:
    return ",".join(f"{value:.0f}" for value in box)

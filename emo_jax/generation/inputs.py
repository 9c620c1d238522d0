"""Inputs of a generation: the portrait, the voice and the numeric options, checked and brought to one form."""

import contextlib
import math
import numbers
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from emo_jax.faces.analyzers import portrait_faces
from emo_jax.faces.boxes import Box, check_box, default_box, parse_box
from emo_jax.generation.framing import Placement, place
from emo_jax.generation.speed import check_speed
from emo_jax.media.audio import (
    MAX_PEAK,
    MAX_RATE,
    MAX_SECONDS,
    MIN_RATE,
    NOTES,
    decode_audible_track,
    to_float,
    to_mono,
)
from emo_jax.media.images import from_pil, load_picture
from emo_jax.media.loudness import audibility_warning
from emo_jax.media.resampling import resample_blocks
from emo_jax.media.soundtrack import LAYOUTS, SoundTrack, array_track, file_track
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
"""Folder of the bundled portrait and voice."""
SAMPLE_TYPES = ("float16", "float32", "float64", "int16", "int32", "uint8")
"""Types of the samples of an array; integers are divided by their full scale."""
MAX_FPS = 240
"""Highest frame rate of a written file."""


@runtime_checkable
class BinaryFile(Protocol):
    """An open file or another object with the bytes of one."""

    def read(self) -> bytes:
        """Returns the remaining bytes."""
        ...


PortraitLike: TypeAlias = str | os.PathLike | bytes | BinaryFile | Image.Image | np.ndarray
"""What `load_portrait` accepts."""


class Voice(NamedTuple):
    """A recording, as the networks take it and as the written file carries it.

    Attributes:
        samples: mono sound at SAMPLE_RATE, not yet levelled.
        track: the same sound with all channels, for the sound track of the video.
    """

    samples: Float[np.ndarray, " samples"]
    track: SoundTrack


AudioLike: TypeAlias = str | os.PathLike | bytes | BinaryFile | np.ndarray | tuple[int, np.ndarray] | Voice
"""What `load_voice` accepts."""


def load_portrait(portrait: PortraitLike) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a portrait as an upright RGB array.

    Prints a note on stderr if a file has too many pixels and is reduced: face boxes refer to the reduced size.

    Args:
        portrait: a path, the bytes of a file or an open file, a Pillow image, or an array: uint8, or float in [0, 1],
            (height, width) grey, or (height, width, channels) grey, RGB or RGBA. Transparency is blended with white.

    Raises:
        ValueError: the file cannot be read (see `load_picture`), or the array has another type, shape or range.
    """
    if isinstance(portrait, str | os.PathLike):
        return _load_file(portrait, portrait)
    if isinstance(portrait, Image.Image):
        return from_pil(portrait)
    if isinstance(portrait, bytes | BinaryFile):
        with _temporary_file(_content(portrait), "the portrait") as path:
            return _load_file(path, "the portrait")
    image = np.asarray(portrait)
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype.kind not in "uf" or image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        raise ValueError(
            f"portrait is {image.dtype} {image.shape}; expected a path, or uint8 or float RGB (height, width, 3)"
        )
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # False for NaN, too
            raise ValueError(f"portrait has values from {low:g} to {high:g}; expected floats in [0, 1], or uint8")
        image = np.round(image * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"portrait is {image.dtype}; expected uint8, or floats in [0, 1]")
    if channels == 3:
        return image
    return from_pil(Image.fromarray(image[..., 0] if image.ndim == 3 and channels == 1 else image))


def _load_file(path: str | os.PathLike, name: object) -> np.ndarray:
    image, scale = load_picture(path)
    if scale > 1:
        height, width = image.shape[:2]
        print(f"note: {name} is read at {width}x{height} pixels, to which face boxes refer", file=sys.stderr)
    return image


def load_voice(audio: AudioLike, seconds: float = MAX_SECONDS) -> Voice:
    """Returns a recording as a `Voice`.

    Prints a warning on stderr if a file is damaged, or if hardly any voice can be heard in it.

    Args:
        audio: a path, the bytes of a file or an open file, samples at 16 kHz, or (rate in Hz, samples). Samples are
            floats in [-1, 1], or integers of 8, 16 or 32 bits: (samples,), (samples, channels) or (channels, samples).
            A `Voice`, as `songs.load_song` returns it, is returned.
        seconds: of a file, read only so much from the start.

    Raises:
        ValueError: the file cannot be read (see `decode_audio`), or the array has another type or shape, NaN or
            infinite samples, or samples far outside [-1, 1].
    """
    if isinstance(audio, Voice):
        return audio
    if isinstance(audio, str | os.PathLike):
        samples, index = _load_voice_file(audio, audio, seconds)
        return Voice(samples, file_track(audio, index))
    if isinstance(audio, bytes | BinaryFile):
        return _load_voice_bytes(_content(audio))
    rate, samples = audio if isinstance(audio, tuple) and len(audio) == 2 else (SAMPLE_RATE, audio)
    if not isinstance(rate, numbers.Integral):
        raise ValueError(f"audio is ({type(rate).__name__}, ...); expected (rate in Hz, samples)")
    if not MIN_RATE <= int(rate) <= MAX_RATE:
        raise ValueError(
            f"audio has the rate {rate!r}; expected (rate, samples), the rate from {MIN_RATE} to {MAX_RATE} Hz"
        )
    samples = _float_samples(np.asarray(samples))
    mono = np.concatenate(list(resample_blocks([(int(rate), to_mono(samples))], SAMPLE_RATE)))
    return Voice(np.clip(mono, -1.0, 1.0), array_track(samples, int(rate)))


def _load_voice_file(path: str | os.PathLike, name: object, seconds: float = MAX_SECONDS) -> tuple[np.ndarray, int]:
    """Returns the samples of a file, and the index of the audio track that they are from."""
    (samples, flags), index = decode_audible_track(path, seconds=seconds)
    for flag in flags:
        print(f"warning: {name}: {NOTES[flag]}", file=sys.stderr)
    if warning := audibility_warning(samples):
        print(f"warning: {name} {warning}; hardly any voice will move the mouth", file=sys.stderr)
    return samples, index


def _load_voice_bytes(content: bytes) -> Voice:
    with _temporary_file(content, "the audio") as path:
        samples, index = _load_voice_file(path, "the audio")
        track = file_track(path, index)

    def blocks() -> Iterator[np.ndarray]:
        with _temporary_file(content, "the audio") as path:
            yield from file_track(path, index).blocks()

    return Voice(samples, track._replace(blocks=blocks))


def _float_samples(samples: np.ndarray) -> np.ndarray:
    """Converts samples of any type and shape that `load_voice` accepts to float32 (samples, channels) in [-1, 1]."""
    channels = min(samples.shape) if samples.ndim == 2 else 1
    if samples.ndim not in (1, 2) or samples.dtype.name not in SAMPLE_TYPES or channels > max(LAYOUTS):
        raise ValueError(
            f"audio is {samples.dtype} {samples.shape}; expected (samples,) or (samples, channels) of a type out of "
            f"{', '.join(SAMPLE_TYPES)}"
        )
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    samples = to_float(samples).astype(np.float32)
    peak = float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))
    if not math.isfinite(peak):
        raise ValueError("audio has NaN or infinite samples; expected numbers in [-1, 1]")
    if peak > MAX_PEAK:
        raise ValueError(f"audio has samples up to {peak:g}; expected [-1, 1]: divide by the full scale")
    return np.clip(samples, -1.0, 1.0)


def _content(file: bytes | BinaryFile) -> bytes:
    content = file if isinstance(file, bytes) else file.read()
    if not isinstance(content, bytes):
        raise ValueError(
            f"reading {file!r} gives {type(content).__name__}; expected bytes: open the file with mode 'rb'"
        )
    return content


@contextlib.contextmanager
def _temporary_file(content: bytes, name: str) -> Iterator[str]:
    """Yields the path of a file with the content; in error messages `name` stands for the path."""
    with tempfile.TemporaryDirectory(prefix="emo-") as folder:
        path = os.path.join(folder, "input")
        with open(path, "wb") as file:
            file.write(content)
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(path, name)) from error


def check_options(
    *,
    seed: object,
    steps: object = None,
    speed: object = None,
    reference_scale: object = None,
    audio_scale: object = None,
    pose_weight: object = None,
    face_weight: object = None,
    lip_weight: object = None,
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
    if speed is not None:
        check_speed(speed)
    scales = dict(reference_scale=reference_scale, audio_scale=audio_scale)
    weights = dict(pose_weight=pose_weight, face_weight=face_weight, lip_weight=lip_weight)
    for name, value in (scales | weights).items():
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
    face_box: Box | int | None = None,
    name: object = "the portrait",
) -> Placement:
    """Crops a portrait around its face, see `framing.place`.

    The face is `face_box`, else the largest detected face, with a note on stderr if there are several, else
    `default_box`, with a warning on stderr.

    Args:
        image: the portrait.
        clip: the config's `clip`, which holds the size of the crop and the position of the face.
        face_box: (x0, y0, x1, y1) in pixels of the portrait, from forehead to chin, or the number of a detected face;
            1 is the largest.
        name: name of the portrait in the note or warning.

    Raises:
        ValueError: `face_box` is not a box inside the image, or there are fewer faces.
    """
    if face_box is None:
        box = _find_face(image, name)
    elif isinstance(face_box, int):
        box = choose_face(image, face_box, name)
    else:
        box = check_box(face_box, *image.shape[:2])
    return place(image, box, clip)


def parse_face(text: str) -> Box | int:
    """Parses the number of a face, or a box X0,Y0,X1,Y1.

    Raises:
        ValueError: the text is neither.
    """
    return int(text) if text.isdecimal() else parse_box(text)


def choose_face(image: UInt8[np.ndarray, "rows columns 3"], number: int, name: object = "the portrait") -> Box:
    """Returns the box of a detected face by its number; 1 is the largest.

    Raises:
        ValueError: there are fewer faces.
    """
    faces = [face.box for face in portrait_faces(image)]
    if not 1 <= number <= len(faces):
        raise ValueError(
            f"face is {number}, but {len(faces)} faces were found in {name}; expected a number from 1 to "
            f"{len(faces)}, or the box X0,Y0,X1,Y1 of the face"
        )
    return faces[number - 1]


def _find_face(image: UInt8[np.ndarray, "rows columns 3"], name: object) -> Box:
    """Returns the box of the largest detected face, or a default box; says on stderr if there was a choice or none."""
    faces = [face.box for face in portrait_faces(image)]
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

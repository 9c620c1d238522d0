"""`emo generate`: a portrait and a voice become a talking video.

emo generate --portrait me.jpg --audio song.mp3 --out me.mp4
"""

from __future__ import annotations

import math
import numbers
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np

from emo_jax.faces.boxes import check_box, crop_around, default_box, mask_from_box
from emo_jax.faces.detection import find_face
from emo_jax.media.audio import MAX_PEAK, load_audio
from emo_jax.media.images import from_pil, load_image
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
"""Portrait and voice that come with the package."""

TRACK_RATE = 44100  # Hz, of the sound in the file; the networks hear SAMPLE_RATE
MAX_FPS = 240


class Voice(NamedTuple):
    """A recording: `heard` float32 (samples,) at 16 kHz as it is; `track`, the same sound at `rate` Hz for the file."""

    heard: np.ndarray
    track: np.ndarray
    rate: int


def load_portrait(portrait) -> np.ndarray:
    """A path, a Pillow image or an array as upright uint8 RGB (height, width, 3); ValueError for anything else."""
    if isinstance(portrait, str | os.PathLike):
        return load_image(portrait)
    if not isinstance(portrait, np.ndarray) and hasattr(portrait, "convert"):
        return from_pil(portrait)
    image = np.asarray(portrait)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"portrait is {image.dtype} {image.shape}; expected a path or uint8 RGB (height, width, 3)")
    return image


def load_voice(audio, track: bool = True) -> Voice:
    """A path or float samples (samples,) at 16 kHz as a `Voice`; without `track` what is heard stands for it too.

    Raises ValueError (one line): see `load_audio`; for an array another shape, integers, NaN, or far beyond full scale.
    """
    if isinstance(audio, str | os.PathLike):
        heard = load_audio(audio)
        return Voice(heard, load_audio(audio, TRACK_RATE), TRACK_RATE) if track else Voice(heard, heard, SAMPLE_RATE)
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"the audio is {samples.dtype} {samples.shape}; expected float32 (samples,) at 16 kHz")
    peak = float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))
    if not math.isfinite(peak):
        raise ValueError("the audio has NaN or infinite samples; expected numbers in [-1, 1]")
    if peak > MAX_PEAK:
        raise ValueError(f"the audio has samples up to {peak:g}; expected [-1, 1]: divide by the full scale")
    samples = np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)
    return Voice(samples, samples, SAMPLE_RATE)


def check_options(*, seed, steps=None, speed=None, reference_scale=None, audio_scale=None, fps=None) -> None:
    """ValueError (one line) for numbers that make no sense; None is the config's."""
    whole = isinstance(seed, numbers.Integral) and (steps is None or isinstance(steps, numbers.Integral))
    if not whole or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r} and steps {steps!r}; expected whole numbers, the seed from 0 to 2**32 - 1")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    for name, value in dict(speed=speed, reference_scale=reference_scale, audio_scale=audio_scale).items():
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value!r}; expected a number of at least 0")
    if fps is not None and not 1 <= exact_fps(fps) <= MAX_FPS:
        raise ValueError(f"fps is {fps:g}; expected 1 to {MAX_FPS}")


def place(image: np.ndarray, clip, face_box=None, name="the portrait"):
    """Crops a portrait as the training clips are: (crop uint8 (H, W, 3), mask uint8 (H, W, 1) of the face's region).

    The face is `face_box`, else the largest one found, else `default_box`, which is told in a line on stderr. The crop
    lies inside the image; its face is where training's were (`clip`: `config.clip`), as far as the image reaches.
    Raises ValueError where `face_box` lies outside the image.
    """
    box = find_face(image) if face_box is None else check_box(face_box, *image.shape[:2])
    if box is None:
        box = default_box(*image.shape[:2])
        where = ",".join(f"{value:.0f}" for value in box)
        print(f"warning: no face found in {name}; assuming {where} (face box x0,y0,x1,y1 sets it)", file=sys.stderr)
    size, face = tuple(clip.image_size), clip.face
    crop, box = crop_around(image, box, size, face.height, tuple(face.centre), inside=True)
    width, height = box[2] - box[0], box[3] - box[1]
    left, top, right, bottom = face.growth
    union = box[0] - left * width, box[1] - top * height, box[2] + right * width, box[3] + bottom * height
    return crop, mask_from_box(union, *size)

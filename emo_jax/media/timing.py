"""Sound: of any container at 16 kHz mono, as a WAV file, and the windows of it that belong to video frames.

Every place that turns frames into samples or back uses the functions below, in exact rational arithmetic, so that
training, sampling and the written file agree on where a frame's sound lies.
"""

from __future__ import annotations

import math
import numbers
from fractions import Fraction

import numpy as np

SAMPLE_RATE = 16000
"""Samples per second of all sound in this project (wav2vec 2.0's rate)."""
AUDIO_MARGIN = 256
"""Samples added on both sides of every window: more than half of the 400 samples wav2vec 2.0 sees at once."""


def exact_fps(fps: float | Fraction) -> Fraction:
    """The frame rate as an exact fraction: a float is read as the nearest one with a denominator up to 1001.

    So 29.97 is 2997/100 (as a float32 too), 30000 / 1001 is itself, 25.0 is 25. Raises ValueError unless fps > 0.
    """
    known = isinstance(fps, (numbers.Real, np.number)) and math.isfinite(fps)
    exact = Fraction(fps) if isinstance(fps, numbers.Rational) else Fraction(float(fps) if known else 0)
    if not isinstance(fps, numbers.Rational):
        exact = exact.limit_denominator(1001)
    if exact <= 0:
        raise ValueError(f"fps is {fps!r}; expected a frame rate above 0, such as 25 or 29.97")
    return exact


def frame_count(samples: int, fps: float | Fraction) -> int:
    """Video frames that cover `samples` samples at 16 kHz: ceil(samples * fps / 16000), so no sound is cut off."""
    return math.ceil(int(samples) * exact_fps(fps) / SAMPLE_RATE)


def window_bounds(start_frame: int, frames: int, fps: float | Fraction) -> tuple[int, int]:
    """(start, length) in samples of the sound of `frames` frames from `start_frame` on, margins included.

    start = round(start_frame * 16000 / fps) - AUDIO_MARGIN, negative near the beginning (see `cut`);
    length = ceil(frames * 16000 / fps) + 2 * AUDIO_MARGIN, which depends on `frames` and `fps` only.
    """
    per_frame = SAMPLE_RATE / exact_fps(fps)
    return round(start_frame * per_frame) - AUDIO_MARGIN, math.ceil(frames * per_frame) + 2 * AUDIO_MARGIN


def audio_context(clip) -> float:
    """`config.clip`'s audio_context, seconds that training hears besides on both sides; older configs have none."""
    return clip.get("audio_context", 0.0)


def context_samples(seconds: float) -> int:
    """Samples of so much context, on one side."""
    return round(seconds * SAMPLE_RATE)


def cut(audio: np.ndarray, start: int, length: int) -> np.ndarray:
    """Samples [start, start + length) of `audio` (samples,), zeros where that lies outside it; same dtype, a copy."""
    window = np.zeros(length, audio.dtype)
    first, last = max(start, 0), min(start + length, len(audio))
    if first < last:
        window[first - start : last - start] = audio[first:last]
    return window


def require_frames(audio: np.ndarray, fps: float | Fraction, name: object = "the audio") -> int:
    """`frame_count` of `audio` (samples,), or ValueError where it does not fill one video frame."""
    if len(audio) * exact_fps(fps) < SAMPLE_RATE:
        need = 1000 / float(exact_fps(fps))
        raise ValueError(
            f"{name} lasts {1000 * len(audio) / SAMPLE_RATE:.1f} ms; expected at least one video frame "
            f"({need:.1f} ms at {float(fps):g} fps): give a longer recording"
        )
    return frame_count(len(audio), fps)

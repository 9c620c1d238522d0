"""Converts between video frames, audio samples and seconds.

Every conversion in the project uses these functions. They compute with exact fractions, so that training, sampling and
the written file agree on which samples belong to a frame.
"""

from __future__ import annotations

import math
import numbers
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SAMPLE_RATE = 16000
"""Samples per second of all audio that the networks receive (the rate of wav2vec 2.0)."""
AUDIO_MARGIN = 256
"""Samples added on both sides of every window: more than half of wav2vec 2.0's receptive field of 400 samples."""


def exact_fps(fps: float | Fraction) -> Fraction:
    """Converts a frame rate to an exact fraction.

    A float becomes the nearest fraction with a denominator of at most 1001: 29.97 is 2997/100 (as float32 too),
    30000 / 1001 is itself, 25.0 is 25.

    Raises:
        ValueError: unless `fps` is a finite number above 0.
    """
    is_number = isinstance(fps, (numbers.Real, np.number)) and math.isfinite(fps)
    exact = Fraction(fps) if isinstance(fps, numbers.Rational) else Fraction(float(fps) if is_number else 0)
    if not isinstance(fps, numbers.Rational):
        exact = exact.limit_denominator(1001)
    if exact <= 0:
        raise ValueError(f"fps is {fps!r}; expected a frame rate above 0, such as 25 or 29.97")
    return exact


def frame_count(samples: int, fps: float | Fraction) -> int:
    """Returns the number of video frames that cover `samples` samples at 16 kHz: ceil(samples * fps / 16000)."""
    return math.ceil(int(samples) * exact_fps(fps) / SAMPLE_RATE)


def window_bounds(start_frame: int, frames: int, fps: float | Fraction) -> tuple[int, int]:
    """Computes the window of audio, margins included, that belongs to a range of frames.

    Args:
        start_frame: first frame; may be negative.
        frames: number of frames.
        fps: frames per second.

    Returns:
        (start, length) in samples at 16 kHz. start = round(start_frame * 16000 / fps) - AUDIO_MARGIN, which is negative
        near the beginning (see `cut`). length = ceil(frames * 16000 / fps) + 2 * AUDIO_MARGIN, which depends on
        `frames` and `fps` alone.
    """
    per_frame = SAMPLE_RATE / exact_fps(fps)
    return round(start_frame * per_frame) - AUDIO_MARGIN, math.ceil(frames * per_frame) + 2 * AUDIO_MARGIN


def audio_context(clip: ConfigDict) -> float:
    """Returns `config.clip.audio_context`: seconds of extra audio on both sides in training; 0 in older configs."""
    return float(clip.get("audio_context", 0.0))  # pyright: ignore[reportArgumentType]


def context_samples(seconds: float) -> int:
    """Returns the number of samples in `seconds` of audio context, on one side."""
    return round(seconds * SAMPLE_RATE)


def cut(audio: np.ndarray, start: int, length: int) -> np.ndarray:
    """Copies samples [start, start + length) of `audio` (samples,), with zeros outside; keeps the dtype."""
    window = np.zeros(length, audio.dtype)
    first, last = max(start, 0), min(start + length, len(audio))
    if first < last:
        window[first - start : last - start] = audio[first:last]
    return window


def require_frames(audio: np.ndarray, fps: float | Fraction, name: object = "the audio") -> int:
    """Returns `frame_count` of `audio` (samples,) and checks that it fills at least one frame.

    Args:
        audio: (samples,) at 16 kHz.
        fps: frames per second.
        name: name of the audio in the error message.

    Raises:
        ValueError: if the audio is shorter than one video frame.
    """
    if len(audio) * exact_fps(fps) < SAMPLE_RATE:
        need = 1000 / float(exact_fps(fps))
        raise ValueError(
            f"{name} lasts {1000 * len(audio) / SAMPLE_RATE:.1f} ms; expected at least one video frame "
            f"({need:.1f} ms at {float(fps):g} fps): give a longer recording"
        )
    return frame_count(len(audio), fps)

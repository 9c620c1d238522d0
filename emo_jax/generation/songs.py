"""Songs: what the networks hear and what the video plays may differ."""

from __future__ import annotations

import os
import sys

import numpy as np

from emo_jax.generation.inputs import AudioLike, Voice, load_voice
from emo_jax.media.activity import mute_pauses
from emo_jax.media.separation import can_separate, separate_voice
from emo_jax.media.timing import SAMPLE_RATE

MAX_DIFFERENCE = 0.5
"""Seconds by which recordings of the same song may differ in length, as encoders pad them."""


def load_song(
    audio: AudioLike, *, vocals: str | os.PathLike = "off", soundtrack: str | os.PathLike | None = None
) -> Voice:
    """Returns what the networks hear, and what the video plays with all its channels.

    With separated vocals, stretches without voice become silence, which closes the mouth.

    Args:
        audio: the recording, as `load_voice` takes it.
        vocals: "off" to hear the recording; "auto" to hear its voice, which the extra `vocals` separates from the
            music, with a note on stderr if the extra is missing; or a file with the voice alone.
        soundtrack: a file that the video plays instead of `audio`.

    Raises:
        ValueError: a file cannot be read, or files differ in length by more than MAX_DIFFERENCE.
    """
    voice = load_voice(audio)
    if vocals == "auto" and not can_separate():
        print(
            "note: --vocals auto needs the extra vocals (pip install -c constraints.txt -e '.[vocals]'); the mouth "
            "follows the voice and the music together",
            file=sys.stderr,
        )
    elif vocals != "off":
        if vocals == "auto":
            print("separating the voice from the music", file=sys.stderr, flush=True)
            heard = separate_voice(voice.track)
        else:
            heard = load_voice(vocals).samples
            _check_lengths(heard, voice.samples, f"the vocals {vocals}")
        missing = max(0, len(voice.samples) - len(heard))
        voice = voice._replace(samples=mute_pauses(np.pad(heard, (0, missing))[: len(voice.samples)]))
    if soundtrack is not None:
        played = load_voice(soundtrack)
        _check_lengths(played.samples, voice.samples, f"the soundtrack {soundtrack}")
        voice = voice._replace(track=played.track)
    return voice


def _check_lengths(samples: np.ndarray, others: np.ndarray, name: str) -> None:
    lengths = len(samples) / SAMPLE_RATE, len(others) / SAMPLE_RATE
    if abs(lengths[0] - lengths[1]) > MAX_DIFFERENCE:
        raise ValueError(
            f"{name} lasts {lengths[0]:.2f} s and the audio {lengths[1]:.2f} s; expected the same recording: export "
            "both with the same start and end"
        )

"""Separates the voice from the music of a song, with the extra `vocals` (demucs)."""

from __future__ import annotations

import importlib.util

import numpy as np

from emo_jax.media.resampling import resample_blocks
from emo_jax.media.soundtrack import SoundTrack
from emo_jax.media.timing import SAMPLE_RATE


def can_separate() -> bool:
    """Returns whether the extra `vocals` is installed."""
    return importlib.util.find_spec("demucs") is not None


def separate_voice(track: SoundTrack) -> np.ndarray:
    """Returns the voice of a song, float32 (samples,) at 16 kHz, without its music.

    demucs downloads its model at the first use, or takes it from torch's cache.

    Args:
        track: the song.

    Raises:
        ValueError: demucs cannot be used, for example because its model cannot be downloaded.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from demucs.api import Separator  # pyright: ignore[reportMissingImports]

    song = track.read()
    stereo = np.stack([song, song] if song.ndim == 1 else [song[:, 0], song[:, 1]]).astype(np.float32)
    try:
        separator = Separator(progress=True)
        _, stems = separator.separate_tensor(torch.from_numpy(stereo), track.rate)
    except Exception as error:  # of the model's download, of the device, of the model
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"demucs cannot separate the voice ({reason}); separate it yourself and give it as --vocals FILE, or use "
            "--vocals off"
        ) from error
    voice = np.asarray(stems["vocals"], np.float32).mean(0)
    return np.concatenate(list(resample_blocks([(int(separator.samplerate), voice)], SAMPLE_RATE)))

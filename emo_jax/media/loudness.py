"""Measures and levels the loudness of speech."""

from __future__ import annotations

import numpy as np

TARGET_DB = -20.0
"""Active level of levelled speech in dBFS."""
MAX_GAIN_DB = 50.0
"""Enough for the quietest audio that is not silence."""
SILENCE_DB = -65.0
"""Audio whose loudest 20 ms are below this level is silence."""
ACTIVE_RANGE_DB = 30.0
"""Frames of speech are active within this range of the loudest frame."""
OFFSET_DB = -30.0
"""DC offset, relative to the active level, below which it neither changes the level nor can be heard."""
MIN_ACTIVE_SHARE = 0.02
"""Share of active frames below which a recording counts as almost silent."""
MAX_MISSING_DB = 15.0
"""By how much levelled speech may miss TARGET_DB, because its peaks limit the gain."""
FRAME = 320  # samples of 20 ms at 16 kHz
BLOCK = 4096  # frames processed at a time
OFFSET_SMOOTHING = 15  # frames averaged for the DC offset: 0.3 s


def normalise(audio: np.ndarray) -> np.ndarray:
    """Scales speech to an active level of -20 dBFS and removes a DC offset.

    Args:
        audio: (samples,) in [-1, 1] at 16 kHz.

    Returns:
        float32 (samples,), `remove_offset(audio)` times its `level_gain`. Silence is returned unchanged.

    Raises:
        ValueError: if `audio` has several channels.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio has shape {audio.shape}; expected one channel, (samples,)")
    audio = remove_offset(audio)
    return (audio * np.float64(level_gain(audio))).astype(np.float32)  # one rounding: the product is float64


def level_gain(audio: np.ndarray) -> float:
    """Computes the factor that scales speech to an active level of -20 dBFS.

    The active level is the mean power of the 20 ms frames within 30 dB of the loudest frame. The gain is at most
    MAX_GAIN_DB and never lifts a peak above 1.

    Args:
        audio: float32 (samples,) in [-1, 1] at 16 kHz, without a DC offset (`remove_offset`).

    Returns:
        The factor; 1 for silence and for no samples.
    """
    if is_silent(audio):
        return 1.0
    power = _frame_power(audio)
    gain = np.clip(TARGET_DB - 10 * np.log10(_active_power(power)), -MAX_GAIN_DB, MAX_GAIN_DB)
    return float(min(10 ** (gain / 20), 1 / max(np.abs(audio).max(), 1e-9)))


def remove_offset(audio: np.ndarray) -> np.ndarray:
    """Removes a DC offset, constant or slowly varying, which would hide pauses from the level measurement.

    The offset is the mean of 20 ms frames, smoothed over 0.3 s. It is subtracted if its power is above -30 dB of the
    active level.

    Args:
        audio: float32 (samples,) in [-1, 1] at 16 kHz.

    Returns:
        float32 (samples,); `audio` itself if the offset is negligible.
    """
    count = -(-len(audio) // FRAME)
    if not count:
        return audio
    starts = np.arange(count) * FRAME
    sizes = np.minimum(len(audio) - starts, FRAME)
    means = np.add.reduceat(audio, starts, dtype=np.float64) / sizes
    window = np.hanning(OFFSET_SMOOTHING + 2)[1:-1]
    padded = np.pad(means, OFFSET_SMOOTHING // 2, mode="edge")
    offset = np.convolve(padded, window / window.sum(), mode="valid")
    power = np.mean(offset**2)
    if power == 0:
        return audio
    centred = np.empty(len(audio), np.float32)
    for start in range(0, len(audio), BLOCK * FRAME):
        stop = min(start + BLOCK * FRAME, len(audio))
        centred[start:stop] = audio[start:stop] - np.interp(np.arange(start, stop), starts + sizes / 2, offset)
    return centred if power > _active_power(_frame_power(centred)) * 10 ** (OFFSET_DB / 10) else audio


def is_silent(audio: np.ndarray) -> bool:
    """Returns whether the loudest 20 ms of audio (samples,) at 16 kHz are below SILENCE_DB."""
    return loudest_db(audio) < SILENCE_DB


def loudest_db(audio: np.ndarray) -> float:
    """Computes the level in dBFS of the loudest 20 ms of audio (samples,) at 16 kHz; -inf for zeros."""
    power = _frame_power(audio).max(initial=0.0)
    return float(10 * np.log10(power)) if power > 0 else -np.inf


def audibility_warning(audio: np.ndarray) -> str | None:
    """Describes why hardly any voice can be heard in a recording.

    Args:
        audio: float32 (samples,) in [-1, 1] at 16 kHz, before `normalise`.

    Returns:
        A phrase that completes "The recording ...", or None for an audible recording.
    """
    audio = remove_offset(np.asarray(audio, np.float32))
    power = _frame_power(audio)
    if is_silent(audio):
        return f"is silent: its loudest 20 ms are below {SILENCE_DB:g} dBFS"
    level = 10 * np.log10(_active_power(power)) + 20 * np.log10(level_gain(audio))
    share = np.mean(power > power.max() / 10 ** (ACTIVE_RANGE_DB / 10))
    if share < MIN_ACTIVE_SHARE:
        return f"is almost silent: only {share:.1%} of it is within {ACTIVE_RANGE_DB:g} dB of its loudest 20 ms"
    if level < TARGET_DB - MAX_MISSING_DB:
        return f"is too quiet beside its peaks: its voice reaches {level:.0f} dBFS, expected {TARGET_DB:g}"
    return None


def _frame_power(audio: np.ndarray) -> np.ndarray:
    """Computes the mean power (N,) of each 20 ms frame of audio (samples,); the last frame is padded with zeros."""
    if not len(audio):
        return np.zeros(0)
    frames = np.pad(audio, (0, -len(audio) % FRAME)).reshape(-1, FRAME)
    # In blocks, because float64 of hours of audio at once would take gigabytes.
    blocks = np.array_split(frames, len(frames) // BLOCK + 1)
    return np.concatenate([(block.astype(np.float64) ** 2).mean(1) for block in blocks])


def _active_power(power: np.ndarray) -> float:
    """Computes the mean power of the frames within ACTIVE_RANGE_DB of the loudest."""
    return float(power[power > power.max() / 10 ** (ACTIVE_RANGE_DB / 10)].mean()) if power.max() > 0 else 0.0

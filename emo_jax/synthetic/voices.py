"""Voices of the procedural world: a formant synthesiser that speaks and sings, and the mouth track of a sound.

All sound is float32, 16 kHz, mono.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import signal

from emo_jax.media.loudness import normalise
from emo_jax.media.timing import SAMPLE_RATE

STEP = 80
"""Samples between synthesis parameters."""
CLOSED_DB, OPEN_DB = -38.0, -17.0
"""Band loudness of a closed and of a fully open mouth."""
NARROW_DB, WIDE_DB = -29.0, 1.0
"""Power of 1.4-4 kHz relative to 250-900 Hz in 'oo' and in 'ee'."""
_VOWELS = {  # first three formants, Hz
    "a": (800, 1250, 2600),
    "e": (480, 2050, 2650),
    "i": (290, 2350, 3050),
    "o": (470, 850, 2500),
    "u": (310, 720, 2350),
    "ae": (690, 1720, 2500),
    "@": (520, 1480, 2500),
    "y": (290, 1950, 2350),
    "oe": (440, 1600, 2350),
    "A": (700, 1080, 2500),
}
_CONSONANTS = {  # kind, seconds, voiced level, noise level, noise band (0 low, 1 middle, 2 high), F1-F3
    "p": ("stop", 0.085, 0.0, 0.16, 0, (300, 800, 2300)),
    "t": ("stop", 0.08, 0.0, 0.2, 2, (300, 1700, 2600)),
    "k": ("stop", 0.085, 0.0, 0.2, 1, (300, 1900, 2400)),
    "b": ("stop", 0.075, 0.03, 0.08, 0, (250, 800, 2300)),
    "d": ("stop", 0.07, 0.03, 0.1, 2, (250, 1700, 2600)),
    "g": ("stop", 0.07, 0.03, 0.1, 1, (250, 1900, 2400)),
    "s": ("noise", 0.11, 0.0, 0.11, 2, (350, 1700, 2600)),
    "sh": ("noise", 0.11, 0.0, 0.11, 1, (350, 1800, 2500)),
    "f": ("noise", 0.09, 0.0, 0.05, 0, (350, 1100, 2400)),
    "z": ("noise", 0.08, 0.05, 0.06, 2, (300, 1700, 2600)),
    "m": ("voiced", 0.08, 0.09, 0.0, 0, (260, 1050, 2200)),
    "n": ("voiced", 0.07, 0.09, 0.0, 0, (270, 1500, 2500)),
    "l": ("voiced", 0.065, 0.24, 0.0, 0, (350, 1150, 2700)),
    "r": ("voiced", 0.065, 0.2, 0.0, 0, (420, 1250, 1650)),
    "w": ("voiced", 0.07, 0.22, 0.0, 0, (320, 700, 2250)),
    "j": ("voiced", 0.065, 0.24, 0.0, 0, (290, 2250, 3000)),
}


@dataclass(frozen=True)
class Language:
    """The sounds and rhythm of an invented language.

    Attributes:
        vowels: names of vowels to draw from.
        consonants: names of consonants to draw from.
        coda: probability of a closing consonant.
        rate: syllables per second.
        stress: how much a stressed syllable is lengthened.
    """

    vowels: tuple[str, ...]
    consonants: tuple[str, ...]
    coda: float
    rate: float
    stress: float


LANGUAGES: dict[str, Language] = {
    "open": Language(("a", "e", "i", "o", "u"), ("p", "t", "k", "m", "n", "s", "r"), 0.08, 4.8, 0.1),
    "stressed": Language(
        ("ae", "i", "@", "A", "u", "e", "@"),
        ("p", "t", "k", "b", "d", "s", "f", "m", "n", "l", "r", "w"),
        0.55,
        3.9,
        0.6,
    ),
    "rounded": Language(
        ("a", "e", "i", "y", "oe", "u", "o"), ("t", "k", "b", "d", "z", "sh", "f", "m", "l", "r"), 0.35, 4.3, 0.25
    ),
    "hushed": Language(("a", "i", "u", "@"), ("sh", "s", "k", "t", "j", "n", "z", "g"), 0.3, 4.4, 0.3),
    "gliding": Language(("a", "o", "i", "u", "A", "e"), ("w", "j", "l", "m", "n", "p", "b", "g"), 0.2, 3.6, 0.2),
}


@dataclass(frozen=True)
class Speaker:
    """The voice of one speaker.

    Attributes:
        f0: fundamental frequency in Hz.
        tract: formant scale, from 0.85 (large head) to 1.25 (child).
        tempo: speaking rate; 1 is normal.
        breath: breathiness in [0, 1].
        lively: range of the intonation in [0, 1].
        sings: whether the speaker sings.
    """

    f0: float = 120.0
    tract: float = 1.0
    tempo: float = 1.0
    breath: float = 0.2
    lively: float = 0.5
    sings: bool = False

    @classmethod
    def sample(cls, rng: np.random.Generator, sings: bool = False) -> Speaker:
        """Draws a random speaker."""
        f0 = float(np.exp(rng.uniform(np.log(85), np.log(290))))
        tract = float(np.clip(0.92 + 0.25 * (np.log(f0 / 85) / np.log(290 / 85)) + rng.normal(0, 0.04), 0.85, 1.25))
        return cls(
            f0, tract, float(rng.uniform(0.8, 1.2)), float(rng.uniform(0, 0.6)), float(rng.uniform(0.2, 1)), sings
        )


def _score(rng: np.random.Generator, seconds: float, language: Language, speaker: Speaker) -> np.ndarray:
    """Returns rows of (seconds, voiced level, noise level, noise band, F1, F2, F3, pitch in octaves)."""
    rows, time = [], 0.0
    time += _rest(rows, rng.uniform(0.05, 0.3))
    while time < seconds:
        syllables = int(rng.integers(3, 9) if speaker.sings else rng.integers(6, 15))
        degree = int(rng.integers(0, 5))
        for index in range(syllables):
            degree = int(np.clip(degree + rng.integers(-2, 3), -3, 8))
            declination = 0.12 * (0.5 - index / syllables)
            pitch = _scale(degree) if speaker.sings else speaker.lively * (declination + rng.normal(0, 0.09))
            time += _syllable(rows, rng, language, speaker, pitch)
        time += _rest(rows, rng.uniform(0.3, 0.5) if rng.random() < 0.75 else rng.uniform(0.5, 1.0))
    return np.array(rows)


def _scale(degree: int) -> float:
    """Returns the pitch of a degree of the major scale in octaves."""
    return degree // 7 + (0, 2, 4, 5, 7, 9, 11)[degree % 7] / 12


def _rest(rows: list, length: float) -> float:
    formants = rows[-1][4:7] if rows else _VOWELS["@"]
    rows.append((length, 0.0, 0.0, 0, *formants, 0.0))
    return length


def _syllable(rows: list, rng: np.random.Generator, language: Language, speaker: Speaker, pitch: float) -> float:
    start = len(rows)
    stressed = rng.random() < 0.4
    if rng.random() < 0.9:
        _consonant(rows, rng, str(rng.choice(language.consonants)), speaker, pitch)
    vowel = _VOWELS[str(rng.choice(language.vowels))]
    length = 0.62 / language.rate * (1 + language.stress * (0.6 if stressed else -0.3)) * rng.uniform(0.8, 1.25)
    if speaker.sings:
        length = float(rng.choice((0.3, 0.45, 0.6, 1.0), p=(0.35, 0.3, 0.2, 0.15)))
    level = 0.75 + 0.25 * stressed + rng.normal(0, 0.06)
    rows.append(
        (length / speaker.tempo, level, 0.12 * speaker.breath, 3, *vowel, pitch + 0.04 * stressed * speaker.lively)
    )
    if rng.random() < language.coda:
        _consonant(rows, rng, str(rng.choice(language.consonants)), speaker, pitch)
    return sum(row[0] for row in rows[start:])


def _consonant(rows: list, rng: np.random.Generator, name: str, speaker: Speaker, pitch: float) -> None:
    kind, length, voiced, noise, band, formants = _CONSONANTS[name]
    length *= rng.uniform(0.85, 1.3) / speaker.tempo
    if kind == "stop":
        rows.append((length, voiced, 0.0, band, *formants, pitch))
        rows.append((0.018, voiced, noise, band, *formants, pitch))
    else:
        rows.append((length, voiced, noise, band, *formants, pitch))


def synthesise(rng: np.random.Generator, seconds: float, language: str | Language, speaker: Speaker) -> np.ndarray:
    """Synthesises speech, or song if the speaker sings.

    Returns:
        float32 (round(seconds * 16000),) at 16 kHz, before loudness normalisation.

    Raises:
        ValueError: the language is unknown or `seconds` is not positive.
    """
    if isinstance(language, str):
        if language not in LANGUAGES:
            raise ValueError(f"language {language!r} is unknown; choose one of {', '.join(LANGUAGES)}")
        language = LANGUAGES[language]
    if not seconds > 0:
        raise ValueError(f"cannot synthesise {seconds} seconds; give a positive duration")
    count = round(seconds * SAMPLE_RATE)
    grid = count // STEP + 2
    score = _score(rng, seconds + 0.1, language, speaker)
    row = np.minimum(
        np.searchsorted(np.cumsum(score[:, 0]), np.arange(grid) * STEP / SAMPLE_RATE, side="right"), len(score) - 1
    )
    tracks = score[row, 1:]
    level, noise = _smooth(tracks[:, 0], 3), _smooth(tracks[:, 1], 2)
    formants = np.stack([_smooth(tracks[:, column], 9) for column in (3, 4, 5)], 1) * speaker.tract
    f0 = speaker.f0 * 2.0 ** _smooth(tracks[:, 6], 7 if speaker.sings else 15)
    time = np.arange(grid) * STEP / SAMPLE_RATE
    if speaker.sings:
        f0 = f0 * 2 ** (0.02 * np.sin(2 * np.pi * rng.uniform(4.8, 6) * time))
    else:
        f0 = f0 * (1 + _smooth(rng.normal(0, 0.03, grid), 5))
    voice = _harmonics(f0, level, formants, count)
    hiss = _hiss(rng, tracks[:, 2], noise, count)
    return (0.2 * (voice + hiss)).astype(np.float32)


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    window = np.hanning(width + 2)
    return np.convolve(np.pad(values, width // 2 + 1, mode="edge"), window / window.sum(), mode="same")[
        width // 2 + 1 : -(width // 2 + 1)
    ]


def _to_samples(track: np.ndarray, count: int) -> np.ndarray:
    """Interpolates grid values (grid,) linearly to samples (count,)."""
    ramp = np.arange(STEP, dtype=np.float32) / STEP
    lines = track[:-1, None] * (1 - ramp) + track[1:, None] * ramp
    return lines.astype(np.float32).reshape(-1)[:count]


def _harmonics(f0: np.ndarray, level: np.ndarray, formants: np.ndarray, count: int) -> np.ndarray:
    """Returns the sum of the glottal source's harmonics below 4.5 kHz, weighted by the resonance of the formants."""
    phase = 2 * np.pi * np.cumsum(_to_samples(f0, count).astype(np.float64)) / SAMPLE_RATE
    double = (2 * np.cos(phase)).astype(np.float32)
    before, current = np.zeros(count, np.float32), np.sin(phase).astype(np.float32)
    number = np.arange(1, int(4500 / f0.min()) + 1)
    frequency = f0[:, None] * number
    gain = level[:, None] * np.where(frequency < 4500, number**-0.6, 0)
    for column, bandwidth in enumerate((90.0, 110.0, 170.0)):
        centre = formants[:, column, None]
        gain = gain * centre**2 / np.sqrt((centre**2 - frequency**2) ** 2 + (bandwidth * 1.6 * frequency) ** 2)
    out = np.zeros(count, np.float32)
    for column in range(len(number)):
        out += current * _to_samples(gain[:, column], count)
        before, current = current, double * current - before  # sin((k + 1) p) = 2 cos(p) sin(k p) - sin((k - 1) p)
    return out


_BANDS = ((400, 6500), (1800, 4200), (4000, 7600), (600, 4500))  # of the noises: p f, k sh, t s, breath


def _hiss(rng: np.random.Generator, band: np.ndarray, level: np.ndarray, count: int) -> np.ndarray:
    white = rng.normal(0, 1, count).astype(np.float32)
    out = np.zeros(count, np.float32)
    for index, edges in enumerate(_BANDS):
        gain = np.where(band == index, level, 0.0)
        if gain.any():
            sections = signal.butter(2, edges, "bandpass", fs=SAMPLE_RATE, output="sos")
            out += np.asarray(signal.sosfilt(sections, white), np.float32) * _to_samples(_smooth(gain, 3), count)
    return out * 2.0


def _band_power(audio: np.ndarray, low: float, high: float, centres: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Returns the power of a band around each centre, (frames,). Filter and window reach 16 and 40 ms to each side."""
    taps = signal.firwin(513, (low, high), pass_zero=False, fs=SAMPLE_RATE)
    squared = signal.fftconvolve(audio, taps, mode="same") ** 2
    half = len(window) // 2
    padded = np.pad(squared, half)
    around = padded[np.clip(centres, 0, len(audio))[:, None] + np.arange(2 * half)]
    return (around * window[: 2 * half]).sum(1)


def mouth_track(audio: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """Computes the mouth opening and width of the drawn world from a sound.

    Opening grows with the loudness of 100-2500 Hz in about 80 ms, width with the power of 1.4-4 kHz relative to 250-900
    Hz. Apart from the gain of `normalise`, a frame depends only on the sound within 100 ms of its middle.

    Args:
        audio: float32 (samples,) at 16 kHz.
        fps: frames per second.
        frames: number of frames.

    Returns:
        float32 (frames, 2): opening and width in [0, 1]; silence is (0, 0.5).

    Raises:
        ValueError: `frames` or `fps` is not positive.
    """
    if frames < 1 or not fps > 0:
        raise ValueError(f"cannot track {frames} frames at {fps} fps; give at least one frame and a positive rate")
    sound = normalise(audio).astype(np.float64)
    if not sound.size:
        return np.tile(np.array([0.0, 0.5], np.float32), (frames, 1))
    centres = np.round((np.arange(frames) + 0.5) * SAMPLE_RATE / fps).astype(int)
    window = np.hanning(1281)[:1280]
    window = window / window.sum()
    loud, front, back = (
        10 * np.log10(np.maximum(_band_power(sound, *band, centres, window), 1e-9))
        for band in ((100, 2500), (1400, 4000), (250, 900))
    )
    opening = np.clip((loud - CLOSED_DB) / (OPEN_DB - CLOSED_DB), 0, 1) ** 1.3
    audible = np.clip((np.maximum(loud, front) + 50) / 14, 0, 1)
    width = 0.5 + audible * (np.clip((front - back - NARROW_DB) / (WIDE_DB - NARROW_DB), 0, 1) - 0.5)
    return np.stack([opening, width], 1).astype(np.float32)

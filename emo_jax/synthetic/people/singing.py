"""Singing and laughing: a spoken voice, vocoded to a melody with held vowels, or to a row of bursts."""

from __future__ import annotations

import numpy as np
from scipy import signal

from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.synthetic.people.visemes import Phone, is_vowel
from emo_jax.synthetic.people.voices import Voice, engines, make_sentence, shift_phones, speak, speak_passage, trim

_HOP, _ORDER = 80, 18  # samples between frames, coefficients
_SCALE = np.array([0, 2, 4, 5, 7, 9, 11])


def sing(rng: np.random.Generator, seconds: float) -> Voice:
    """Returns a song of about `seconds`: vowels are held on the notes of a major scale, with vibrato."""
    here = [name for name in engines() if name != "hibari"] or list(engines())
    engine = str(rng.choice(here))
    language = str(rng.choice(["en-us", "de", "fr", "es", "it", "fi"])) if engine == "espeak" else "en-us"
    voice = language + str(rng.choice(["", "+f4", "+m3"])) if engine == "espeak" else str(rng.choice(["slt", "rms"]))
    low = float(np.exp(rng.uniform(np.log(100), np.log(260))))
    parts, phones, length, degree = [], [], 0.0, int(rng.integers(0, 5))
    while length < seconds:
        spoken = trim(speak(make_sentence(rng, language), engine, voice, int(rng.integers(140, 175)), 50, 0))
        sung, degree = hold_vowels(spoken, rng, low, degree)
        pause = np.zeros(int(rng.uniform(0.1, 0.6) * SAMPLE_RATE), np.float32)
        phones += shift_phones(sung.phones, length + len(pause) / SAMPLE_RATE)
        parts += [pause, sung.sound]
        length += (len(pause) + len(sung.sound)) / SAMPLE_RATE
    return Voice(np.concatenate(parts), phones, f"song, {engine} {voice}")


def hold_vowels(spoken: Voice, rng: np.random.Generator, low: float, degree: int) -> tuple[Voice, int]:
    """Stretches the vowels of a sentence to notes and gives it a melody; also returns the last note."""
    phones, sources, pitches, time = [], [], [], 0.0
    for phone in spoken.phones:
        long = phone.end - phone.start
        if is_vowel(phone.symbol):
            degree = int(np.clip(degree + rng.integers(-2, 3), -2, 8))
            long = max(long, float(rng.choice((0.18, 0.3, 0.45, 0.8), p=(0.35, 0.35, 0.2, 0.1))))
        phones.append(Phone(phone.symbol, time, time + long, phone.stressed))
        sources.append((time, phone.start))
        pitches.append((time, low * 2 ** (degree // 7 + _SCALE[degree % 7] / 12)))
        time += long
    sources.append((time, spoken.phones[-1].end if spoken.phones else 0.0))
    grid = np.arange(int(time * SAMPLE_RATE / _HOP)) * _HOP / SAMPLE_RATE
    here, there = np.array(sources).T
    read = np.interp(grid, here, there)
    steps = np.array([p for _, p in pitches])[
        np.maximum(np.searchsorted([t for t, _ in pitches], grid, "right") - 1, 0)
    ]
    f0 = np.exp(_smooth(np.log(steps), 9)) * (1 + 0.018 * np.sin(2 * np.pi * rng.uniform(4.8, 6.2) * grid))
    return Voice(vocode(spoken.sound, read, f0, rng), phones, spoken.source), degree


def laugh(rng: np.random.Generator, seconds: float) -> Voice:
    """Returns a sentence or two with laughter between them, about `seconds` long."""
    spoken = speak_passage(rng, seconds * 0.45)
    low, length = float(rng.uniform(140, 330)), 0.0
    parts, phones = [], []
    vowel = str(rng.choice(["a", "ɛ", "ə"]))
    source = trim(
        speak(
            {"a": "ah", "ɛ": "eh", "ə": "uh"}[vowel] + ".",
            "espeak" if "espeak" in engines() else engines()[0],
            "en-us" if "espeak" in engines() else "slt",
        )
    )
    voiced = [p for p in source.phones if is_vowel(p.symbol)] or [Phone(vowel, 0.05, 0.2)]
    while length < max(seconds - len(spoken.sound) / SAMPLE_RATE, 0.8):
        bursts, pitch = int(rng.integers(3, 9)), low * rng.uniform(0.9, 1.5)
        for burst in range(bursts):
            breath, voice = rng.uniform(0.05, 0.09), rng.uniform(0.07, 0.13)
            grid = np.arange(int((breath + voice) * SAMPLE_RATE / _HOP))
            middle = (voiced[0].start + voiced[0].end) / 2
            f0 = np.full(len(grid), pitch * (1 - 0.06 * burst))
            f0[: int(breath * SAMPLE_RATE / _HOP)] = 0.0
            sound = vocode(source.sound, np.full(len(grid), middle), f0, rng)
            sound *= np.where(np.repeat(f0, _HOP)[: len(sound)] > 0, 1.0, 0.25) * (1 - 0.06 * burst)
            phones += [
                Phone("h", length, length + breath),
                Phone(vowel, length + breath, length + breath + voice, burst == 0),
            ]
            parts.append(sound)
            length += len(sound) / SAMPLE_RATE
        pause = np.zeros(int(rng.uniform(0.2, 0.6) * SAMPLE_RATE), np.float32)
        parts.append(pause)
        length += len(pause) / SAMPLE_RATE
    if rng.random() < 0.5:
        return Voice(
            np.concatenate([*parts, spoken.sound]),
            phones + shift_phones(spoken.phones, length),
            f"laughter, {spoken.source}",
        )
    offset = len(spoken.sound) / SAMPLE_RATE
    return Voice(
        np.concatenate([spoken.sound, *parts]),
        spoken.phones + shift_phones(phones, offset),
        f"laughter, {spoken.source}",
    )


def vocode(sound: np.ndarray, read: np.ndarray, f0: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resynthesises a voice by linear prediction.

    Args:
        sound: (samples,) at 16 kHz.
        read: (F,) the time in `sound` that each output frame of 5 ms takes its timbre from.
        f0: (F,) Hz; 0 is a whisper.
        rng: of the noise.

    Returns:
        float32 (F * 80,).
    """
    frames = np.clip((read * SAMPLE_RATE).astype(int), 0, max(len(sound) - 1, 0))
    padded = np.pad(sound.astype(np.float64), 200) + 1e-5 * rng.standard_normal(len(sound) + 400)
    blocks = padded[frames[:, None] + np.arange(400)] * np.hanning(400)
    spectra = np.fft.irfft(np.abs(np.fft.rfft(blocks, 1024)) ** 2)[:, : _ORDER + 1]
    voiced = _voicing(spectra, blocks) * (f0 > 0)
    phase = np.cumsum(np.repeat(np.maximum(f0, 60), _HOP)) / SAMPLE_RATE
    pulses = np.diff(np.floor(phase), prepend=0.0)
    noise = rng.standard_normal(len(pulses))
    share = np.repeat(voiced, _HOP)
    excitation = (
        share * pulses * np.sqrt(SAMPLE_RATE / np.repeat(np.maximum(f0, 60), _HOP))
        + (0.05 + 0.95 * (1 - share)) * noise * 0.7
    )
    out, state = np.zeros(len(pulses)), np.zeros(_ORDER)
    for index, correlation in enumerate(spectra):
        coefficients, gain = _levinson(correlation)
        piece = slice(index * _HOP, (index + 1) * _HOP)
        out[piece], state = signal.lfilter([gain / 14], coefficients, excitation[piece], zi=state)
    return out.astype(np.float32)


def _voicing(spectra: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Returns how voiced frames are, in [0, 1]: hiss has a small correlation at a lag of one sample."""
    tilt = spectra[:, 1] / (spectra[:, 0] + 1e-9)
    return _smooth(np.clip((tilt - 0.25) / 0.35, 0, 1) * (np.abs(blocks).max(1) > 1e-3), 3)


def _levinson(correlation: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the prediction filter (order + 1,) and its gain."""
    r = correlation.copy()
    r[0] = r[0] * 1.0003 + 1e-9
    a, error = np.array([1.0]), r[0]
    for k in range(1, len(r)):
        reflection = -(a @ r[k:0:-1]) / error
        a = np.append(a, 0.0)
        a = a + reflection * a[::-1]
        error *= 1 - reflection**2
    return a, float(np.sqrt(max(error, 0)))


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    window = np.hanning(width + 2)[1:-1]
    return np.convolve(np.pad(values, width // 2, mode="edge"), window / window.sum(), "valid")[: len(values)]

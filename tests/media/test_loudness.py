"""Levelling speech: gain, DC offset, silence, and warnings about recordings without an audible voice."""

import numpy as np
import pytest

from emo_jax.media.loudness import audibility_warning, is_silent, level_gain, normalise, remove_offset

RATE = 16000


def voice(seconds=4.0, level_db=-20.0, pauses=True):
    """A harmonic tone of 120 Hz at an active RMS level, in bursts of half a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 8))
    envelope = ((time % 1.0) < 0.5) if pauses else np.ones_like(time)
    return (tone * envelope / tone.std() * 10 ** (level_db / 20)).astype(np.float32)


def active_db(audio):
    power = (audio.reshape(-1, 320).astype(np.float64) ** 2).mean(1)
    return 10 * np.log10(power[power > power.max() / 1000].mean())


@pytest.mark.parametrize("level_db", [-60, -50, -45, -40, -30, -20, -12])
def test_every_level_is_brought_to_minus_20_dbfs(level_db):
    assert active_db(normalise(voice(level_db=level_db))) == pytest.approx(-20, abs=0.5)


def test_silence_is_unchanged():
    audio = voice(level_db=-75)
    np.testing.assert_array_equal(normalise(audio), audio)
    assert is_silent(audio) and level_gain(np.zeros(0, np.float32)) == 1 and len(normalise(np.zeros(0))) == 0


def test_gain_does_not_lift_peaks_above_full_scale():
    audio = voice(level_db=-50)
    audio[5000] = 0.5
    assert np.abs(normalise(audio)).max() == pytest.approx(1, abs=0.01)


OFFSETS = {
    "constant": lambda time: 0 * time + 0.05,
    "negative": lambda time: 0 * time - 0.1,
    "small": lambda time: 0 * time + 0.01,
    "half of the recording": lambda time: 0.08 * (time > 2),
    "drift": lambda time: 0.1 * np.cos(2 * np.pi * 0.2 * time),
}


@pytest.mark.parametrize("kind", OFFSETS)
def test_dc_offset_does_not_change_the_level(kind):
    clean = voice(level_db=-30)
    audio = (clean + OFFSETS[kind](np.arange(len(clean)) / RATE)).astype(np.float32)
    levelled = normalise(audio)
    assert active_db(levelled) == pytest.approx(-20, abs=0.5)
    time = np.arange(len(levelled)) / RATE
    pauses = (time % 1 > 0.7) & (time % 1 < 0.95) & (np.abs(time - 2) > 0.2)  # a step keeps its onset
    assert np.abs(levelled[pauses]).max() < 0.02


def test_dc_offset_in_silence_is_silence():
    assert is_silent(remove_offset(np.full(RATE, 0.2, np.float32)))


def test_audio_without_offset_is_unchanged():
    audio = voice()
    assert remove_offset(audio) is audio
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    assert remove_offset(noise) is noise


def test_levels_of_any_length():
    for samples in (1, 319, 320, 321, 5000):
        assert len(normalise(np.full(samples, 0.1, np.float32))) == samples


def test_audibility_warning():
    assert audibility_warning(voice()) is None and audibility_warning(voice(level_db=-55)) is None
    assert "silent" in audibility_warning(np.zeros(RATE, np.float32))
    assert "silent" in audibility_warning(np.full(RATE, 0.3, np.float32))
    click = np.zeros(10 * RATE, np.float32)
    click[RATE : RATE + 100] = 0.5
    assert "almost silent" in audibility_warning(click)
    loud_peaks = voice(level_db=-50, pauses=False)
    loud_peaks[::RATE] = 0.9
    assert audibility_warning(loud_peaks) is not None


def test_the_gain_is_applied_in_double_precision():
    """A product in float32 would change the frames of seeded videos by single levels."""
    audio = voice(level_db=-31)
    expected = (audio.astype(np.float64) * level_gain(audio)).astype(np.float32)
    np.testing.assert_array_equal(normalise(audio), expected)
    assert (audio * np.float32(level_gain(audio)) != expected).any()

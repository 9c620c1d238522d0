"""Voices, their level, and the mouth that follows them."""

import numpy as np
import pytest

from emo_jax.media.loudness import normalise
from emo_jax.synthetic import espeak
from emo_jax.synthetic.voices import LANGUAGES, Speaker, mouth_track, synthesise

RATE = 16000


def voice(seed, seconds=4.0, sings=False):
    rng = np.random.default_rng(seed)
    return synthesise(rng, seconds, list(LANGUAGES)[seed % len(LANGUAGES)], Speaker.sample(rng, sings))


def tone(seconds, amplitude=0.2, hertz=500):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.503])
def test_voice_has_the_requested_length(seconds):
    sound = voice(0, seconds)
    assert sound.shape == (round(seconds * RATE),) and sound.dtype == np.float32


def test_equal_seeds_give_equal_voices():
    assert np.array_equal(voice(1), voice(1))
    assert not np.array_equal(voice(1), voice(6))  # the same language


def test_a_voice_articulates_and_pauses():
    for seed in range(5):
        opening = mouth_track(voice(seed), 25, 100)[:, 0]
        assert opening.std() > 0.25
        assert 0.1 < (opening < 0.02).mean() < 0.5
        assert (opening > 0.55).mean() > 0.2


def test_song_holds_its_notes():
    spoken = np.mean([mouth_track(voice(seed), 25, 100)[:, 0].mean() for seed in range(4)])
    sung = np.mean([mouth_track(voice(seed, sings=True), 25, 100)[:, 0].mean() for seed in range(4)])
    assert sung > spoken


def test_silence_keeps_the_mouth_shut():
    assert np.array_equal(mouth_track(np.zeros(RATE, np.float32), 25, 25), np.tile([0.0, 0.5], (25, 1)))
    track = mouth_track(np.concatenate([tone(1), np.zeros(RATE, np.float32)]), 25, 50)
    assert (track[28:, 0] == 0).all() and (track[28:, 1] == 0.5).all() and (track[3:22, 0] > 0.5).all()


def test_opening_follows_loudness():
    steps = np.concatenate([tone(0.4, amplitude) for amplitude in (0.01, 0.03, 0.1, 0.2)])
    opening = mouth_track(steps, 25, 40)[5::10, 0]
    assert (np.diff(opening) > 0.08).all()


def test_width_follows_the_spectrum():
    def balance(share):
        return mouth_track(tone(1, 0.2, 400) + share * tone(1, 0.2, 2200), 25, 25)[10, 1]

    assert balance(0.01) < 0.1 < 0.4 < balance(0.3) < balance(1.0)


def test_mouth_depends_on_100_ms_of_sound_around_its_frame():
    sound = np.tile(tone(0.05), 40) * np.repeat(np.random.default_rng(0).uniform(0.5, 1, 40), 800).astype(np.float32)
    sound = normalise(sound)
    other = sound.copy()
    other[:16000] = sound[15999::-1]  # the same level, other details
    frame = 30  # its middle is at 1.22 s
    assert np.allclose(mouth_track(sound, 25, 50)[frame:], mouth_track(other, 25, 50)[frame:], atol=2e-3)
    assert not np.allclose(mouth_track(sound, 25, 50)[:20], mouth_track(other, 25, 50)[:20], atol=2e-2)


def test_error_names_the_bad_input():
    with pytest.raises(ValueError, match="klingon"):
        synthesise(np.random.default_rng(0), 1, "klingon", Speaker())
    with pytest.raises(ValueError, match="positive"):
        synthesise(np.random.default_rng(0), 0, "open", Speaker())
    with pytest.raises(ValueError, match="0 frames"):
        mouth_track(np.zeros(100, np.float32), 25, 0)


@pytest.mark.skipif(not espeak.espeak_available(), reason="espeak-ng is not on this machine")
def test_espeak_output_does_not_depend_on_earlier_calls():
    before = espeak.espeak("Nobody knew.", "en-us+m1")
    espeak.espeak("Die Kinder spielen.", "de+f4", 150, 70)
    assert np.array_equal(espeak.espeak("Nobody knew.", "en-us+m1"), before)
    assert len(before) > RATE // 4 and 0.01 < np.abs(before).max() <= 1
    with pytest.raises(ValueError, match="nowhere"):
        espeak.espeak("Hello.", "nowhere")


def test_missing_espeak_names_the_package(monkeypatch):
    monkeypatch.setattr(espeak, "espeak_available", lambda: False)
    with pytest.raises(RuntimeError, match="espeakng-loader"):
        espeak.espeak("Hello.")

"""The mouth follows phonemes: closures, bites, rounding ahead of the sound, silence."""

import numpy as np
import pytest

from emo_jax.synthetic.people.visemes import (
    ARTICULATORS,
    RATE,
    Phone,
    articulate,
    mouth_weights,
    sample_frames,
    split_phones,
)

JAW, ROUND = ARTICULATORS.index("jaw"), ARTICULATORS.index("round")


def _say(*symbols, length=0.12, pause=0.4):
    phones = [Phone(s, pause + k * length, pause + (k + 1) * length) for k, s in enumerate(symbols)]
    return phones, articulate(phones, pause * 2 + length * len(symbols))


def _at(track, seconds):
    return track[round(seconds * RATE)]


@pytest.mark.parametrize("symbol", ["p", "b", "m"])
def test_lips_close_for_bilabials_between_open_vowels(symbol):
    _, track = _say("a", symbol, "a")
    middle = mouth_weights(_at(track, 0.4 + 0.18))
    assert _at(track, 0.58)[6] == pytest.approx(1.0)
    assert middle["mouthClose"] == pytest.approx(middle["jawOpen"])
    vowel = mouth_weights(_at(track, 0.4 + 0.05))
    assert vowel["jawOpen"] - vowel["mouthClose"] > 0.15


@pytest.mark.parametrize("symbol", ["t", "k", "s", "l"])
def test_lips_stay_open_for_other_consonants(symbol):
    _, track = _say("a", symbol, "a")
    assert track[:, 6].max() == 0


def test_every_closure_is_seen_at_25_frames_a_second():
    for offset in np.linspace(0, 0.04, 9):
        phones = [
            Phone("a", 0.2, 0.4 + offset),
            Phone("b", 0.4 + offset, 0.45 + offset),
            Phone("a", 0.45 + offset, 0.7),
        ]
        frames = sample_frames(articulate(phones, 1.0), 25, 25)
        assert frames[:, 6].max() > 0.95


def test_labiodentals_bite_the_lower_lip_and_show_the_teeth():
    _, track = _say("a", "f", "a")
    bite = mouth_weights(_at(track, 0.58))
    assert bite["mouthRollLower"] > 0.4
    assert bite["mouthUpperUpLeft"] > 0.2


def test_rounding_comes_before_its_vowel_and_spreading_does_not_round():
    _, track = _say("t", "u")
    start = round((0.4 + 0.12) * RATE)
    assert track[start, ROUND] > 0.5 * track[:, ROUND].max()
    _, spread = _say("t", "i")
    assert spread[:, ROUND].max() < 0.2


def test_silence_closes_the_mouth_and_openness_orders_the_vowels():
    _, track = _say("a", "a", "a")
    assert track[:10, JAW].max() < 0.03
    assert track[-5:, JAW].max() < 0.06
    peaks = {s: _say(s, s)[1][:, JAW].max() for s in "aei"}
    assert peaks["a"] > peaks["e"] > peaks["i"]


def test_louder_vowels_open_wider():
    phones, _ = _say("a", "a")
    quiet, loud = (articulate(phones, 1.0, np.full(100, level))[:, JAW].max() for level in (0.6, 1.4))
    assert loud > 1.15 * quiet


def test_ipa_strings_split_into_known_symbols():
    phones = split_phones("ˈtʃaɪː", 1.0, 1.4)
    assert [p.symbol for p in phones] == ["t", "ʃ", "a", "ɪ"]
    assert all(p.stressed for p in phones)
    assert phones[-1].end == pytest.approx(1.4)
    assert split_phones("|", 0, 1)[0].symbol == ""

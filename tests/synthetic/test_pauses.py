"""Shares of open mouths and of long pauses in the rendered data: a portrait may be open where the clip is closed."""

import numpy as np
import pytest

from emo_jax.media.loudness import normalise
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.synthetic import pauses, world
from emo_jax.synthetic.espeak import espeak_available
from emo_jax.synthetic.voices import Speaker, mouth_track, synthesise

FPS, SECONDS = 25, 5.0  # the defaults of emo prepare synthetic
OPEN, CLOSED = 0.35, 0.1


def voices(count):
    """Yields (generator, voice) of the drawn world, spoken by formants, which is fast."""
    for seed in range(count):
        rng = np.random.default_rng([seed, 2])
        yield rng, normalise(synthesise(rng, SECONDS, "stressed", Speaker.sample(rng)))


def longest_pause(opening):
    """Returns the longest time in seconds in which a mouth is closed."""
    best = run = 0
    for value in opening:
        run = run + 1 if value < CLOSED else 0
        best = max(best, run)
    return best / FPS


@pytest.fixture(scope="module")
def drawn():
    """(mouth openings without pauses, with pauses, pauses) of drawn people."""
    plain, paused, drawn_pauses = [], [], []
    for rng, sound in voices(24):
        pause = pauses.draw_pause(rng, sound, 0.5)
        drawn_pauses.append(pause)
        plain.append(mouth_track(sound, FPS, round(SECONDS * FPS))[:, 0])
        sound = sound if pause is None else pauses.insert_pause(sound, pause)
        paused.append(mouth_track(sound, FPS, round(SECONDS * FPS))[:, 0])
    return plain, paused, drawn_pauses


def test_a_share_of_the_voices_pauses_for_long():
    rngs = [np.random.default_rng([seed, 2]) for seed in range(2000)]
    sound = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32)
    drawn = [pauses.draw_pause(rng, sound) for rng in rngs]
    found = [pause.length / SAMPLE_RATE for pause in drawn if pause is not None]
    assert len(found) / len(rngs) == pytest.approx(pauses.SHARE, abs=0.03) and pauses.SHARE >= 0.1
    assert 1.2 <= min(found) < 1.3 and 2.3 < max(found) <= 2.4
    noise = [float(np.sqrt(np.mean(pause.noise**2))) for pause in drawn if pause is not None]
    assert 9e-5 < min(noise) < 2e-4 and 6e-3 < max(noise) < 9e-3


def test_a_pause_changes_no_other_draw():
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    pauses.draw_pause(one, np.ones(SAMPLE_RATE, np.float32), 1.0)
    assert one.random() == two.random()


def test_drawn_mouths_close_in_long_pauses_and_are_open_in_a_third_of_the_frames(drawn):
    plain, paused, drawn_pauses = drawn
    assert np.mean([longest_pause(opening) >= 1.2 for opening in plain]) <= 0.05
    for opening, pause in zip(paused, drawn_pauses, strict=True):
        if pause is not None:
            end = min(SECONDS, (pause.start + pause.length) / SAMPLE_RATE)
            assert longest_pause(opening) >= min(end - pause.start / SAMPLE_RATE, 2.4) - 0.25
    share = np.mean([longest_pause(opening) >= 1.2 for opening in paused])
    assert share == np.mean([pause is not None for pause in drawn_pauses]) > 0.2  # drawn with a share of 0.5
    assert 0.2 < np.mean(np.concatenate(paused) > OPEN) < 0.6  # a reference is any frame


def test_clips_in_long_pauses_meet_references_with_open_mouths(drawn):
    """The share of the pairs of a reference and a frame at least a second away, in which only the reference is open."""
    shares = []
    for opening, pause in zip(drawn[1], drawn[2], strict=True):
        if pause is not None:
            first, last = (round(n / SAMPLE_RATE * FPS) for n in (pause.start, pause.start + pause.length))
            inside = np.arange(first + 5, min(last - 5, len(opening)))
            away = [np.abs(np.arange(len(opening)) - frame) >= FPS for frame in inside]
            shares += [np.mean(opening[far] > OPEN) for far in away]
    assert np.mean(shares) > 0.2


def test_inserted_silence_moves_what_follows():
    sound = np.arange(1, 101, dtype=np.float32)
    pause = pauses.Pause(40, 10, np.full(10, 0.5, np.float32))
    paused = pauses.insert_pause(sound, pause)
    np.testing.assert_array_equal(paused, np.concatenate([sound[:40], np.zeros(10), sound[40:90]]))
    assert (pauses.add_noise(paused, pause) - paused)[40:50].tolist() == [0.5] * 10
    late = pauses.Pause(95, 10, np.full(10, 0.5, np.float32))
    assert len(pauses.add_noise(pauses.insert_pause(sound, late), late)) == 100


def test_records_of_drawn_people_have_pauses_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(world, "make_voice", lambda rng, seconds: (next(iter(voices(1)))[1], "formants"))
    seed, options = 1, dict(seconds=SECONDS, size=32)
    plain, paused = world.make_record(seed, **options), world.make_record(seed, **options, pauses=1.0)
    assert longest_pause(plain.mouth[:, 0]) < 1.2 <= longest_pause(paused.mouth[:, 0])
    start = int(np.argmax(plain.audio != paused.audio))
    inside = paused.audio[start + 200 : start + round(1.1 * SAMPLE_RATE)].astype(np.float32) / 32767
    level = np.sqrt(np.mean(inside**2))
    assert 0 < level <= 1.5 * pauses.NOISE[1] < np.sqrt(np.mean((plain.audio / 32767) ** 2))
    assert world.make_record(seed, **options).video == plain.video


@pytest.mark.skipif(not espeak_available(), reason="needs espeak-ng")
def test_rendered_people_close_their_mouths_in_long_pauses(monkeypatch):
    from emo_jax.synthetic.people import world as people
    from emo_jax.synthetic.people.visemes import articulate, sample_frames

    def openings(share, count=6):
        monkeypatch.setattr(people, "draw_pause", lambda rng, sound: pauses.draw_pause(rng, sound, share))
        for seed in range(count):
            voice = people.make_voice(np.random.default_rng([seed, 21]), SECONDS)
            assert len(voice.sound) == SECONDS * SAMPLE_RATE and all(p.start < SECONDS for p in voice.phones)
            energy = people.loudness(voice.sound, SECONDS)
            yield sample_frames(articulate(voice.phones, SECONDS, energy), FPS, round(SECONDS * FPS))[:, 0]

    plain, paused = list(openings(0.0)), list(openings(1.0))
    assert np.mean([longest_pause(opening) for opening in plain]) < 1.0
    assert min(longest_pause(opening) for opening in paused) >= 1.2
    assert np.mean(np.concatenate(plain) > 0.2) > 0.4 and 0.2 < np.mean(np.concatenate(paused) > 0.2) < 0.6

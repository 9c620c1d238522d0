"""Whether the sound of a record belongs to its face: offset, off-screen speech, music and overlapping voices."""

import csv
import json

import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.data.records import open_records
from emo_jax.faces.mesh import INNER_LIPS, NOSE_BRIDGE, POINTS, UNDER_NOSE
from emo_jax.media.audio import decode_audio
from emo_jax.preparation import gates, sound_content, train_sound_content
from emo_jax.preparation.gates import SoundMeasures, measure_sound, off_screen_share, sound_flags
from emo_jax.preparation.prepare import prepare_videos
from emo_jax.synthetic.voices import Speaker, synthesise
from tests.faces import heads
from tests.faces.test_faces import MEDIA
from tests.preparation.conftest import SMALL

FPS = 25
SPEECH = (
    "en_speech_hallo_1.wav", "en_hdtf_sadtalker_RD_Radio31.wav", "zh_poem_echomimic.wav", "de_sadtalker_deyu.wav",
)  # fmt: skip
needs_media = pytest.mark.skipif(not MEDIA.exists(), reason="no shared media")


def speech(frames, seed=0):
    """Noise at 16 kHz, int16, whose loudness follows an opening (frames,), and the opening."""
    rng = np.random.default_rng(seed)
    opening = np.clip(np.convolve(rng.uniform(-1, 1.6, frames + 8), np.hanning(9), "valid") / 3, 0, 1)
    level = np.interp(np.arange(frames * 640) / 640 - 0.5, np.arange(frames), opening)
    return np.round((0.02 + level) * rng.standard_normal(frames * 640) * 3000).astype(np.int16), opening


def landmarks(opening):
    """Landmarks (N, 478, 2) of a face whose lips open by (N,), in lengths of the nose."""
    points = np.zeros((len(opening), POINTS, 2), np.float32)
    points[:, NOSE_BRIDGE], points[:, UNDER_NOSE] = (50, 20), (50, 60)
    points[:, INNER_LIPS[0]], points[:, INNER_LIPS[1]] = (50, 70), (50, 70)
    points[:, INNER_LIPS[1], 1] += 40 * opening
    return points


@pytest.mark.parametrize("late, flags", [(0, []), (12, ["off-sync"])])
def test_sound_that_is_late_is_flagged(late, flags):
    sound, opening = speech(200)
    measures = measure_sound(np.roll(sound, late * 640), landmarks(opening), FPS)
    assert abs(measures.sync_offset - late) <= 1 and measures.sync_confidence > gates.MIN_CONFIDENCE
    assert [flag for flag in sound_flags(measures, 5) if "sync" in flag] == flags
    assert "off-sync" not in sound_flags(measures, 15)


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_lips_that_do_not_follow_the_sound_are_flagged(seed):
    """In records of ten seconds; in shorter ones, chance reaches the thresholds now and then."""
    measures = measure_sound(speech(250, seed)[0], landmarks(speech(250, seed + 1)[1]), FPS)
    assert "weak-sync" in sound_flags(measures, 20) and "off-sync" not in sound_flags(measures, 0)


def test_a_voice_beside_still_lips_is_off_screen():
    sound, opening = speech(200)
    jitter = np.random.default_rng(2).normal(0, 0.01, 200)
    still = np.where(np.arange(200) < 100, opening, 0.1) + jitter
    voice = sound / np.float32(32768)
    assert off_screen_share(opening + jitter, voice, FPS) < 0.05
    assert off_screen_share(still, voice, FPS) == pytest.approx(0.5, abs=0.15)
    assert off_screen_share(0.1 + jitter, voice, FPS) == 1
    assert off_screen_share(still, 0 * voice, FPS) is None and off_screen_share(still[:20], voice, FPS) is None
    assert "off-screen" in sound_flags(measure_sound(sound, landmarks(0.1 + jitter), FPS), 5)


def test_records_without_sound_or_landmarks_have_no_measure():
    assert measure_sound(np.zeros(0, np.int16), landmarks(np.zeros(10)), FPS) == SoundMeasures()
    sound, _ = speech(100)
    measures = measure_sound(sound, np.zeros((100, 0, 2), np.float32), FPS)
    assert measures.sync_offset is measures.off_screen is None and measures.music is not None
    assert sound_flags(SoundMeasures(), 0) == []


def test_both_implementations_of_the_network_agree():
    weights, rng = sound_content.load_weights(), np.random.default_rng(0)
    features = rng.normal(-2, 1, (2, 40, sound_content.BANDS)).astype(np.float32)
    found = np.asarray(train_sound_content.apply(weights, features))
    assert found.shape == (2, 40 - 2 * sound_content.REACH, 2)
    np.testing.assert_allclose(found, [sound_content.forward(weights, row) for row in features], atol=1e-3)


def test_labels_of_mixtures_follow_what_is_heard():
    rng = np.random.default_rng(0)
    tone = np.sin(np.arange(5 * 16000) * 0.05).astype(np.float32)
    music = [train_sound_content.make_music(rng, 3.0)]
    mixtures = train_sound_content.Mixtures([tone, tone], ["a", "b"], music, 0)
    features, labels = mixtures.batch(12)
    assert features.shape == (12, train_sound_content.FRAMES + 2 * sound_content.REACH, sound_content.BANDS)
    assert 0.1 < labels[..., 0].mean() < 0.9 and 0.1 < labels[..., 1].mean() < 0.9
    silent = train_sound_content.Mixtures([tone, 0 * tone], ["a", "b"], music, 0)
    assert not silent.batch(12)[1][..., 1].any()  # one voice is never two


def test_silence_contains_nothing():
    assert sound_content.sound_content(np.zeros(16000)) == sound_content.SoundContent(0.0, 0.0)
    assert sound_content.sound_content(np.zeros(0)) == sound_content.SoundContent(0.0, 0.0)


def real_voice(name):
    sound = decode_audio(MEDIA / "audio" / name)[0][: 7 * 16000]
    return sound / np.sqrt(np.mean(sound**2)) * 0.05


@needs_media
def test_recorded_voices_alone_with_music_and_with_each_other():
    rng = np.random.default_rng(0)
    voices = [real_voice(name) for name in SPEECH]
    alone = [sound_content.sound_content(voice) for voice in voices]
    assert max(found.music for found in alone) < gates.MUSIC and max(found.overlap for found in alone) < gates.OVERLAP
    for first, second in ((0, 1), (1, 3)):
        count = min(len(voices[first]), len(voices[second]))
        both = sound_content.sound_content(voices[first][:count] + voices[second][:count])
        assert both.overlap >= gates.OVERLAP
    for voice in voices[:2]:
        music = 0.05 * train_sound_content.make_music(rng, 7.0)[: len(voice)]
        assert sound_content.sound_content(voice + 0.5 * music).music >= gates.MUSIC


def test_records_with_unwanted_flags_are_dropped_and_counted(videos, tmp_path):
    heads.write(tmp_path / "silent.mp4", heads.heads(30))
    inputs = [str(videos / "0.mp4"), str(tmp_path / "silent.mp4")]
    report = prepare_videos(inputs, str(tmp_path / "out"), **SMALL, faces="haar", drop=["no-sound"])
    assert report["records"] == 1 and report["seconds_dropped"]["flag no-sound"] == 1.2
    [line] = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert line["source"].endswith("silent.mp4") and "no-sound" in line["reason"]
    [row] = csv.DictReader((tmp_path / "out" / "records.csv").read_text().splitlines())
    record = open_records(tmp_path / "out", "train")[0]
    assert row["id"] == record["id"] and row["flags"] == record["flags"]
    assert float(row["music"]) >= 0 and row["sync_offset"] == ""
    arguments = ["prepare", "videos", "--input", *inputs, "-o", str(tmp_path / "none"), "--size", "64"]
    options = ["--min-face", "40", "--min-seconds", "1", "--faces", "haar", "--workers", "1"]
    assert cli.main([*arguments, *options, "--drop", "roll-only", "off-sync"]) == 2


@pytest.mark.parametrize("options, word", [
    (dict(max_offset=-1), "--max-offset"), (dict(drop=["late"]), "--drop.*late"),
])  # fmt: skip
def test_options_out_of_range_are_named(videos, tmp_path, options, word):
    with pytest.raises(ValueError, match=word):
        prepare_videos([str(videos)], str(tmp_path / "out"), **SMALL, **options)


@pytest.mark.slow
def test_training_finds_music_among_voices(tmp_path):
    """A few steps suffice to tell music from synthetic voices that speak alone."""
    rng = np.random.default_rng(0)
    voices = [synthesise(rng, 4.0, "open", Speaker.sample(rng)) for _ in range(6)]
    music = [train_sound_content.make_music(rng, 4.0) for _ in range(6)]
    weights = train_sound_content.train(
        train_sound_content.Mixtures(voices, [str(k) for k in range(6)], music, 0), steps=60, batch=8
    )
    features, labels = train_sound_content.Mixtures(voices, [str(k) for k in range(6)], music, 1).batch(24)
    found = np.asarray(train_sound_content.apply(weights, features))[..., 0]
    assert found[labels[..., 0] > 0].mean() > found[labels[..., 0] == 0].mean() + 1

"""The network that says at which shift lips and a voice fit, and its training."""

import numpy as np
import pytest

from emo_jax.evaluation import lip_voice, train_lip_voice
from emo_jax.evaluation.face_track import FaceMeter
from emo_jax.evaluation.lip_voice import lip_voice_sync
from emo_jax.media.audio import decode_audio
from emo_jax.media.loudness import normalise
from emo_jax.media.video import read_video
from emo_jax.synthetic.voices import LANGUAGES, Speaker, mouth_track, synthesise
from tests.faces.test_faces import MEDIA


def speech(seed, seconds=6.0):
    """A voice of the drawn world, whose lips follow another law than those of the training data, and its mouth."""
    rng = np.random.default_rng(seed)
    sound = normalise(synthesise(rng, seconds, next(iter(LANGUAGES)), Speaker.sample(rng, False)))
    return sound, mouth_track(sound, 25.0, round(25 * seconds))


def shifted(sound, late):
    return np.concatenate([np.zeros(late * 640, sound.dtype), sound]) if late > 0 else sound[-late * 640 :]


@pytest.mark.parametrize("late", [0, -7, 15])
def test_offset_is_that_by_which_the_sound_was_shifted(late):
    for seed in (1, 4):
        sound, mouth = speech(seed)
        sync = lip_voice_sync(*mouth.T, shifted(sound, late))
        assert abs(sync.offset - late) <= 1 and sync.confidence > 0.2


def test_unit_of_measures_and_frames_without_a_face_do_not_matter():
    sound, mouth = speech(2)
    gap, width = mouth.T.copy()
    sync = lip_voice_sync(gap, width, sound)
    scaled = lip_voice_sync(30 * gap + 4, 0.1 * width, sound)
    assert scaled.offset == sync.offset and scaled.correlation == pytest.approx(sync.correlation, abs=1e-3)
    lost = np.arange(len(gap)) % 7 == 0
    gap[lost] = width[lost] = np.nan
    assert abs(lip_voice_sync(gap, width, sound).offset) <= 1


def test_lips_without_movement_or_sound_give_no_offset():
    sound, mouth = speech(3, 4.0)
    assert lip_voice_sync(np.ones(100), np.ones(100), sound) is None
    assert lip_voice_sync(*mouth.T, np.zeros(64_000)) is None
    assert lip_voice_sync(*mouth[:60].T, sound) is None


@pytest.mark.slow
def test_weights_are_kept_in_half_precision(tmp_path):
    params, path = lip_voice.init(3), tmp_path / "weights.safetensors"
    lip_voice.save_weights(path, params)
    sound, mouth = speech(0, 4.0)
    kept = lip_voice_sync(*mouth.T, sound, lip_voice.load_weights(path))
    assert kept.correlation == pytest.approx(lip_voice_sync(*mouth.T, sound, params).correlation, abs=0.01)
    path.write_bytes(path.read_bytes()[:100])
    for damaged, words in ((path, "is damaged"), (tmp_path / "none", "does not exist")):
        lip_voice.load_weights.cache_clear()
        with pytest.raises(ValueError, match=words):
            lip_voice.load_weights(damaged)
    del params["lips"]
    lip_voice.save_weights(path, params)
    lip_voice.load_weights.cache_clear()
    with pytest.raises(ValueError, match="other weights"):
        lip_voice.load_weights(path)


@pytest.mark.slow
def test_training_learns_the_shift_and_writes_weights(tmp_path, capsys):
    voices = [speech(seed, 3.0) for seed in range(6)]
    sounds = np.stack([np.round(sound[:48_000] * 32767) for sound, _ in voices]).astype(np.int16)
    mouths = np.stack([mouth for _, mouth in voices])
    np.savez(tmp_path / "lips.npz", sound=sounds, mouth=mouths, validation=np.arange(6) < 2)
    arguments = ["--data", str(tmp_path / "lips.npz"), "-o", str(tmp_path / "made"), "--steps", "40", "--batch", "8"]
    train_lip_voice.main(arguments)
    assert "of 2 held-out voices" in capsys.readouterr().out
    trained = lip_voice.load_weights(tmp_path / "made")
    confidence = [
        np.mean([lip_voice_sync(*mouth.T, sound / np.float32(32768), params).confidence
                 for sound, mouth in zip(sounds, mouths, strict=True)])
        for params in (lip_voice.init(0), trained)
    ]  # fmt: skip
    assert train_lip_voice.accuracy(trained, sounds, mouths) >= 0.8 and confidence[1] > 3 * confidence[0]


def test_changes_keep_what_the_voice_explains():
    sound, mouth = speech(5)
    rng = np.random.default_rng(0)
    gaps = [train_lip_voice.change_lips(mouth, rng)[:, 0] for _ in range(20)]
    assert 0.4 < np.median([np.corrcoef(gap, mouth[:, 0])[0, 1] for gap in gaps]) < 0.99
    heard = [train_lip_voice.change_sound(sound, rng) for _ in range(20)]
    assert all(len(changed) == len(sound) and np.isfinite(changed).all() for changed in heard)
    assert 0 < sum(np.array_equal(changed, sound) for changed in heard) < 20


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.exists(), reason="no shared media")
def test_offsets_of_real_videos(face_models):
    offsets = []
    for path in sorted((MEDIA / "video").glob("*.mp4")):
        meter, sound = FaceMeter(), decode_audio(path, align_to_video=True)[0]
        for image, _ in read_video(path, lip_voice.FPS):
            meter.add(image)
        track = meter.track()
        own = lip_voice_sync(track.lip_gap, track.mouth_width, sound).offset
        offsets.append(own)
        for late in (5, 10, 15):
            found = lip_voice_sync(track.lip_gap, track.mouth_width, shifted(sound, late)).offset
            assert abs(found - own - late) <= 1, path.name
    assert sum(abs(offset) <= 3 for offset in offsets) >= 0.75 * len(offsets)

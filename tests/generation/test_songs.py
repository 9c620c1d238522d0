"""Songs: separated vocals, another sound track, pauses, stereo."""

import sys
import types
import wave

import av
import numpy as np
import pytest

from emo_jax.generation.songs import load_song
from emo_jax.media.activity import mute_pauses, voice_activity
from emo_jax.media.audio import write_wav
from emo_jax.media.soundtrack import file_track
from emo_jax.media.video_writer import VideoWriter
from tests.generation.media import BOX, random_portrait

RATE = 16000


def sung(seconds=4.0, seed=0):
    """Noise of 80 ms syllables from 1 s to 2.5 s; elsewhere silence."""
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(times))
    syllables = (np.sin(2 * np.pi * 6 * times) > 0) & (times > 1) & (times < 2.5)
    return (0.2 * syllables * noise).astype(np.float32).clip(-1, 1)


def music(seconds=4.0):
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)


def write_stereo(path, left, right):
    samples = np.round(np.stack([left, right], 1).clip(-1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


@pytest.fixture
def files(tmp_path):
    write_wav(tmp_path / "voice.wav", sung())
    write_stereo(tmp_path / "song.wav", sung() + music(), sung() - music())
    write_wav(tmp_path / "short.wav", sung(3.0))
    return tmp_path


def test_pauses_with_remains_of_music_become_silence():
    voice = sung()
    remains = 0.002 * music()
    muted = mute_pauses(voice + remains)
    active = voice_activity(voice + remains)
    assert not active[:35].any() and active[55:120].all() and not active[145:].any()
    assert not muted[: round(0.7 * RATE)].any() and not muted[round(2.9 * RATE) :].any()
    inside = slice(round(1.1 * RATE), round(2.4 * RATE))
    assert np.array_equal(muted[inside], (voice + remains)[inside])  # short gaps between syllables stay
    assert not mute_pauses(np.zeros(9000, np.float32)).any() and len(mute_pauses(np.zeros(0, np.float32))) == 0


@pytest.mark.parametrize(("pause", "silent"), [(0.4, 0.0), (0.48, 0.0), (0.54, 0.3), (0.9, 0.66), (2.0, 1.76)])
def test_pauses_from_half_a_second_on_are_muted(pause, silent):
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    remains = 0.002 * music()
    first = RATE + 160  # not on the grid of the decision
    noise[first : first + round(pause * RATE)] = 0
    muted = mute_pauses(noise + remains)
    assert (muted == 0).sum() / RATE == pytest.approx(silent, abs=0.03)


def test_vocals_are_heard_and_the_song_is_played(files):
    heard = load_song(files / "song.wav", vocals=files / "voice.wav")
    assert np.corrcoef(heard.samples, sung())[0, 1] > 0.999 and not heard.samples[:8000].any()
    played = heard.track.read()
    assert played.shape == (4 * RATE, 2) and np.corrcoef(played[:, 0], sung() + music())[0, 1] > 0.999
    other = load_song(files / "voice.wav", soundtrack=files / "song.wav")
    assert np.abs(other.samples - sung()).max() < 1e-4 and other.track.channels == 2


def test_lengths_are_checked(files):
    for options in (dict(vocals=files / "short.wav"), dict(soundtrack=files / "short.wav")):
        with pytest.raises(ValueError, match="short.wav lasts 3.00 s"):
            load_song(files / "song.wav", **options)


def test_auto_without_the_extra_is_one_note(files, monkeypatch, capsys):
    monkeypatch.setattr("emo_jax.generation.songs.can_separate", lambda: False)
    heard = load_song(files / "voice.wav", vocals="auto")
    assert np.abs(heard.samples - sung()).max() < 1e-4
    (line,) = capsys.readouterr().err.splitlines()
    assert "[vocals]" in line


def test_auto_hears_what_the_extra_separates(files, monkeypatch):
    """The stand-in knows that the voice is what both channels share."""

    class Separator:
        samplerate = 32000

        def __init__(self, progress):
            assert progress

        def separate_tensor(self, stereo, rate):
            assert stereo.shape == (2, 4 * RATE) and rate == RATE
            return stereo, {"vocals": np.repeat(stereo.mean(0, keepdims=True).repeat(2, 0), 2, axis=1)}

    monkeypatch.setattr("emo_jax.generation.songs.can_separate", lambda: True)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(from_numpy=lambda array: array))
    monkeypatch.setitem(sys.modules, "demucs", types.ModuleType("demucs"))
    monkeypatch.setitem(sys.modules, "demucs.api", types.SimpleNamespace(Separator=Separator))
    heard = load_song(files / "song.wav", vocals="auto")
    assert len(heard.samples) == 4 * RATE and not heard.samples[:8000].any()
    loudness = [np.abs(np.add.reduceat(np.abs(a), np.arange(0, 4 * RATE, 640))) for a in (heard.samples, sung())]
    assert np.corrcoef(*loudness)[0, 1] > 0.95
    monkeypatch.setattr(Separator, "separate_tensor", lambda *a: 1 / 0)
    with pytest.raises(ValueError, match="--vocals FILE"):
        load_song(files / "song.wav", vocals="auto")


def test_both_channels_of_a_song_come_back_in_time(files):
    with VideoWriter(files / "a.mp4", (32, 32), 25, file_track(files / "song.wav")) as writer:
        writer.write(np.zeros((100, 32, 32, 3), np.uint8))
    with av.open(str(files / "a.mp4")) as container:
        played = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    for channel, given in zip(played, (sung() + music(), sung() - music()), strict=True):
        window = slice(16000, 40000)
        lags = {lag: np.corrcoef(np.roll(channel, lag)[window], given[window])[0, 1] for lag in range(-2, 3)}
        assert max(lags, key=lags.get) == 0 and lags[0] > 0.99


def test_pipeline_takes_a_song(pipeline, files):
    song = load_song(files / "song.wav", vocals=files / "voice.wav")
    video = pipeline(random_portrait(), song, face_box=BOX, framing="crop")
    alone = pipeline(random_portrait(), song.samples, face_box=BOX, framing="crop")
    assert video.audio.shape == (4 * RATE, 2) and np.array_equal(video.frames, alone.frames)

"""Decoding audio of any container, codec and channel count."""

import io
import os
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from emo_jax.media.audio import ONE_CHANNEL, OTHER_TRACK, decode_audio, load_audio

MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
SECONDS = {
    "en_speech_hallo_1.wav": 7.5,
    "en_hdtf_sadtalker_RD_Radio31.wav": 8.0,
    "zh_poem_echomimic.wav": 4.917,
    "de_sadtalker_deyu.wav": 9.343,
    "sing_sadtalker_itosinger1.wav": 10.416,
    "sing_wan22.mp3": 18.756,
}


def tone(rate, seconds, hertz=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write(path, samples, rate, codec, layout="mono"):
    """Encodes samples (channels, n) of the dtype that the codec takes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        fmt = stream.codec_context.format.name
        # Written as packed samples: PyAV 18 cannot fill a planar frame of eight channels.
        packed = samples.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=fmt.rstrip("p"), layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        container.mux([p for f in av.AudioResampler(fmt).resample(frame) for p in stream.encode(f)])
        container.mux(stream.encode(None))
    return path


def write_wav(path, samples, rate, width):
    data = {1: lambda: (samples * 127 + 128).astype(np.uint8).tobytes(), 2: lambda: pcm(samples, 15, "<i2")}
    data[3] = lambda: b"".join(int(v).to_bytes(3, "little", signed=True) for v in samples * (2**23 - 1))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data[width]())
    return path


def pcm(samples, bits, dtype):
    return (samples * (2**bits - 1)).astype(dtype).tobytes()


def error_of(path, **options):
    with pytest.raises(ValueError) as caught:
        load_audio(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 44099, 48000])
@pytest.mark.parametrize("seconds", [0.05, 1.2345])
def test_every_rate_has_exact_length_and_no_delay(tmp_path, rate, seconds):
    path = write_wav(tmp_path / "a.wav", tone(rate, seconds), rate, 2)
    audio = load_audio(path)
    assert audio.dtype == np.float32
    assert len(audio) == round(Fraction(round(rate * seconds) * 16000, rate))
    expected = tone(16000, seconds)[: len(audio)]
    inner = slice(100, len(expected) - 100)
    np.testing.assert_allclose(audio[: len(expected)][inner], expected[inner], atol=2e-3)


@pytest.mark.parametrize(("width", "error"), [(1, 0.02), (2, 1e-4), (3, 1e-6)])
def test_bit_depths(tmp_path, width, error):
    samples = tone(16000, 0.1)
    audio = load_audio(write_wav(tmp_path / "a.wav", samples, 16000, width))
    np.testing.assert_allclose(audio, samples, atol=error)


def test_channels_are_averaged_and_overshoot_is_clipped(tmp_path):
    left, right = tone(16000, 0.1, 440, 0.8), tone(16000, 0.1, 440, 0.4)
    stereo = np.stack([left, right]).astype(np.float32)
    audio = load_audio(write(tmp_path / "a.wav", stereo, 16000, "pcm_f32le", "stereo"))
    np.testing.assert_allclose(audio, (left + right) / 2, atol=1e-6)
    audio = load_audio(write(tmp_path / "b.wav", 2 * stereo[:1], 16000, "pcm_f32le"))
    assert audio.max() == 1.0 and audio.min() == -1.0


@pytest.mark.parametrize(("codec", "suffix"), [("pcm_s16le", "wav"), ("aac", "m4a")])
def test_eight_channels(tmp_path, codec, suffix):
    """PyAV 18's `to_ndarray` crashes on planar audio of eight channels."""
    channels = np.stack([tone(48000, 0.2, amplitude=0.1 * (k + 1)) for k in range(8)]).astype(np.float32)
    if codec == "pcm_s16le":
        channels = (channels * 32767).astype(np.int16)
    audio = load_audio(write(tmp_path / f"a.{suffix}", channels, 48000, codec, "7.1"))
    assert np.abs(audio[1200:2000]).max() == pytest.approx(0.45, abs=0.06)  # AAC filters the fourth channel (LFE)


def test_resampling_does_not_alias(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(48000, 0.5, 9000), 48000, 2)
    assert np.abs(load_audio(path)[200:-200]).max() < 1e-3


def test_output_rate(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 0.5), 16000, 2)
    assert len(load_audio(path, rate=44100)) == 22050


def write_tracks(path, tracks, rate=16000):
    """Writes int16 audio tracks (samples,) into one file."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=rate, layout="mono") for _ in tracks]
        for samples, stream in zip(tracks, streams, strict=True):
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, 0
            container.mux(stream.encode(frame))
    return path


def test_first_of_two_audible_tracks_is_read(tmp_path):
    samples, flags = decode_audio(write_tracks(tmp_path / "a.mkv", [np.full(1600, 8000), np.full(1600, -3000)]))
    np.testing.assert_allclose(samples, np.full(1600, 8000 / 32768), atol=1e-6)
    assert flags == ()


def test_silent_first_track_is_skipped(tmp_path):
    voice, rng = tone(16000, 1.0) * 32767, np.random.default_rng(0)
    hum = 60 * np.sin(2 * np.pi * 50 * np.arange(16000) / 16000)  # -58 dBFS
    for silent in (np.zeros(16000), rng.integers(-3, 4, 16000), hum, np.full(16000, 500)):
        samples, flags = decode_audio(write_tracks(tmp_path / "a.mkv", [silent, silent, voice]))
        np.testing.assert_allclose(samples, tone(16000, 1.0), atol=1e-4)
        assert flags == (OTHER_TRACK,)
    samples, flags = decode_audio(write_tracks(tmp_path / "c.mkv", [0.01 * voice, 0.03 * voice]))
    np.testing.assert_allclose(samples, tone(16000, 1.0, amplitude=0.005), atol=1e-4)  # quiet, but not much quieter
    samples, flags = decode_audio(write_tracks(tmp_path / "b.mkv", [np.zeros(1600), np.zeros(1600)]))
    assert len(samples) == 1600 and not samples.any() and flags == ()


def test_channels_of_opposite_sign_do_not_cancel(tmp_path):
    left = tone(16000, 1.0, amplitude=0.4)
    for right in (-left, -0.5 * left, -0.99 * left + 0.001):
        path = write(tmp_path / "a.wav", np.stack([left, right]).astype(np.float32), 16000, "pcm_f32le", "stereo")
        samples, flags = decode_audio(path)
        np.testing.assert_allclose(samples, left, atol=1e-6)
        assert flags == (ONE_CHANNEL,)


def test_the_loudest_of_cancelling_channels_is_used(tmp_path):
    right = tone(16000, 1.0, amplitude=0.5)
    path = write(tmp_path / "a.wav", np.stack([-0.7 * right, right]).astype(np.float32), 16000, "pcm_f32le", "stereo")
    np.testing.assert_allclose(load_audio(path), right, atol=1e-6)


def test_independent_channels_are_averaged(tmp_path):
    channels = np.random.default_rng(0).normal(0, 0.1, (2, 16000)).astype(np.float32)
    for stereo in (channels, channels * [[1], [0]]):
        path = write(tmp_path / "a.wav", stereo.astype(np.float32), 16000, "pcm_f32le", "stereo")
        samples, flags = decode_audio(path)
        np.testing.assert_allclose(samples, stereo.mean(0), atol=1e-6)
        assert flags == ()


@pytest.mark.parametrize("rate", [1, 100, 1_000_003, 2**31 - 1])
def test_sample_rates_out_of_range_raise(tmp_path, rate):
    header = write_wav(tmp_path / "full.wav", tone(16000, 0.1), 16000, 2).read_bytes()
    changed = header[:24] + rate.to_bytes(4, "little") + (2 * rate % 2**32).to_bytes(4, "little") + header[32:]
    (tmp_path / "a.wav").write_bytes(changed)
    assert str(rate) in error_of(tmp_path / "a.wav")


def test_length_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("emo_jax.media.audio.MAX_SECONDS", 1)
    path = write_wav(tmp_path / "a.wav", tone(16000, 1.5), 16000, 2)
    assert "longer" in error_of(path)


def test_unreadable_files_raise_one_line(tmp_path):
    assert "does not exist" in error_of(tmp_path / "none.wav")
    assert "is a directory" in error_of(tmp_path)
    (tmp_path / "empty.wav").write_bytes(b"")
    assert "0 bytes" in error_of(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("not a sound\n" * 20)
    error_of(tmp_path / "text.wav")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    error_of(tmp_path / "noise.mp4")
    header = write_wav(tmp_path / "full.wav", tone(16000, 0.1), 16000, 2).read_bytes()[:44]
    (tmp_path / "header.wav").write_bytes(header)
    error_of(tmp_path / "header.wav")
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (32, 32)).save(picture, "PNG")
    (tmp_path / "picture.png").write_bytes(picture.getvalue())
    assert "picture" in error_of(tmp_path / "picture.png")


def test_truncated_file_is_decoded_to_its_end(tmp_path):
    data = write_wav(tmp_path / "a.wav", tone(16000, 1.0), 16000, 2).read_bytes()
    (tmp_path / "b.wav").write_bytes(data[: 44 + 2 * 5000])
    assert len(load_audio(tmp_path / "b.wav")) == 5000


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "NaN"), (20000.0, "expected [-1, 1]")])
def test_samples_out_of_range_raise(tmp_path, value, word):
    samples = np.zeros((1, 800), np.float32)
    samples[0, 300] = value
    assert word in error_of(write(tmp_path / "a.wav", samples, 16000, "pcm_f32le"))


def test_names_with_colons_and_percent_signs(tmp_path):
    path = write_wav(tmp_path / "http:%03d ü.wav", tone(16000, 0.1), 16000, 2)
    assert len(load_audio(path)) == 1600


@pytest.mark.parametrize("name", SECONDS)
def test_real_recordings(name):
    if not (MEDIA / "audio" / name).exists():
        pytest.skip("no shared media")
    audio = load_audio(MEDIA / "audio" / name)
    assert abs(len(audio) / 16000 - SECONDS[name]) < 1e-3
    assert 0.3 < np.abs(audio).max() <= 1.0


def test_align_to_video_trims_audio_before_the_first_frame():
    path = MEDIA / "video" / "real_moore_3.mp4"
    if not path.exists():
        pytest.skip("no shared media")
    assert abs(len(load_audio(path, align_to_video=True)) / 16000 - 4.66) < 0.01

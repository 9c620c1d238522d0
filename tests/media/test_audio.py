import io
import os
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from emo_jax.media import resampling
from emo_jax.media.audio import load_audio
from emo_jax.media.resampling import _resampled
from emo_jax.media.timing import cut, exact_fps, frame_count, require_frames, window_bounds

MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
SECONDS = {
    "en_speech_hallo_1.wav": 7.5,
    "en_hdtf_sadtalker_RD_Radio31.wav": 8.0,
    "zh_poem_echomimic.wav": 4.917,
    "de_sadtalker_deyu.wav": 9.343,
    "sing_sadtalker_itosinger1.wav": 10.416,
    "sing_wan22.mp3": 18.756,
}


def tone(rate, seconds, hertz=440.0, height=0.5):
    return height * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write(path, samples, rate, codec, layout="mono"):
    """samples (channels, n), floats or integers as the codec takes them."""
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
def test_any_rate_gives_the_exact_length_and_no_delay(tmp_path, rate, seconds):
    path = write_wav(tmp_path / "a.wav", tone(rate, seconds), rate, 2)
    got = load_audio(path)
    assert got.dtype == np.float32
    assert len(got) == round(Fraction(round(rate * seconds) * 16000, rate))
    want = tone(16000, seconds)[: len(got)]
    inner = slice(100, len(want) - 100)
    np.testing.assert_allclose(got[: len(want)][inner], want[inner], atol=2e-3)


@pytest.mark.parametrize(("width", "error"), [(1, 0.02), (2, 1e-4), (3, 1e-6)])
def test_bit_depths(tmp_path, width, error):
    samples = tone(16000, 0.1)
    got = load_audio(write_wav(tmp_path / "a.wav", samples, 16000, width))
    np.testing.assert_allclose(got, samples, atol=error)


def test_channels_are_averaged_and_overshoot_is_clipped(tmp_path):
    left, right = tone(16000, 0.1, 440, 0.8), tone(16000, 0.1, 440, 0.4)
    stereo = np.stack([left, right]).astype(np.float32)
    got = load_audio(write(tmp_path / "a.wav", stereo, 16000, "pcm_f32le", "stereo"))
    np.testing.assert_allclose(got, (left + right) / 2, atol=1e-6)
    got = load_audio(write(tmp_path / "b.wav", 2 * stereo[:1], 16000, "pcm_f32le"))
    assert got.max() == 1.0 and got.min() == -1.0


@pytest.mark.parametrize(("codec", "suffix"), [("pcm_s16le", "wav"), ("aac", "m4a")])
def test_eight_channels(tmp_path, codec, suffix):
    """Planar sound of eight channels crashes PyAV 18's own `to_ndarray`."""
    channels = np.stack([tone(48000, 0.2, height=0.1 * (k + 1)) for k in range(8)]).astype(np.float32)
    if codec == "pcm_s16le":
        channels = (channels * 32767).astype(np.int16)
    got = load_audio(write(tmp_path / f"a.{suffix}", channels, 48000, codec, "7.1"))
    assert np.abs(got[1200:2000]).max() == pytest.approx(0.45, abs=0.06)  # AAC filters the fourth channel (LFE)


def test_resampling_removes_what_would_alias(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(48000, 0.5, 9000), 48000, 2)
    assert np.abs(load_audio(path)[200:-200]).max() < 1e-3


def test_blocks_are_seamless(monkeypatch):
    signal = np.random.default_rng(0).standard_normal(30011).astype(np.float32)

    def run(pieces):
        return np.concatenate(list(_resampled(((44100, p) for p in pieces), 16000)))

    whole = run([signal])
    monkeypatch.setattr(resampling, "BLOCK", 1000)
    assert len(whole) == round(30011 * 16000 / 44100)
    np.testing.assert_allclose(run(np.array_split(signal, 17)), whole, atol=1e-6)


def test_other_rate_on_request(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 0.5), 16000, 2)
    assert len(load_audio(path, rate=44100)) == 22050


def test_sound_of_a_video_and_a_first_of_two_tracks(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
        for height, stream in zip((8000, -3000), streams, strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1600), height, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(stream.encode(frame))
    np.testing.assert_allclose(load_audio(path), np.full(1600, 8000 / 32768), atol=1e-6)


def test_bad_files(tmp_path):
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
    assert "no sound track" in error_of(tmp_path / "picture.png")


def test_cut_off_file_gives_what_is_there(tmp_path):
    data = write_wav(tmp_path / "a.wav", tone(16000, 1.0), 16000, 2).read_bytes()
    (tmp_path / "b.wav").write_bytes(data[: 44 + 2 * 5000])
    assert len(load_audio(tmp_path / "b.wav")) == 5000


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "NaN"), (20000.0, "expected [-1, 1]")])
def test_bad_samples(tmp_path, value, word):
    samples = np.zeros((1, 800), np.float32)
    samples[0, 300] = value
    assert word in error_of(write(tmp_path / "a.wav", samples, 16000, "pcm_f32le"))


def test_names_with_colons_and_percent_signs(tmp_path):
    path = write_wav(tmp_path / "http:%03d ü.wav", tone(16000, 0.1), 16000, 2)
    assert len(load_audio(path)) == 1600


def test_frame_count_is_exact():
    assert frame_count(640, 25) == 1 and frame_count(641, 25) == 2
    assert frame_count(16000 * 3600 * 100, 25.0) == 25 * 3600 * 100
    assert frame_count(16016 * 10, Fraction(30000, 1001)) == 300
    assert frame_count(16016 * 10, 30000 / 1001) == 300
    assert frame_count(16016 * 10 + 1, 30000 / 1001) == 301
    assert exact_fps(np.float32(29.97)) == Fraction(2997, 100)
    assert exact_fps(np.int64(25)) == 25
    for bad in (0, -1, float("nan"), "25", None):
        with pytest.raises(ValueError, match="fps"):
            exact_fps(bad)


def test_window_bounds():
    assert window_bounds(0, 8, 25) == (-256, 8 * 640 + 512)
    assert window_bounds(-2, 12, 25.0) == (-1280 - 256, 12 * 640 + 512)
    assert window_bounds(3, 2, 30) == (1600 - 256, 1067 + 512)


def test_cut_pads_with_zeros():
    audio = np.arange(1, 6, dtype=np.int16)
    np.testing.assert_array_equal(cut(audio, -2, 4), [0, 0, 1, 2])
    np.testing.assert_array_equal(cut(audio, 3, 4), [4, 5, 0, 0])
    assert cut(audio, 1, 2).dtype == np.int16
    assert not cut(audio, 50, 3).any() and not cut(audio, -9, 3).any()


def test_shorter_than_a_frame():
    assert require_frames(np.zeros(640, np.float32), 25) == 1
    with pytest.raises(ValueError, match=r"voice.wav lasts 39.9 ms; expected at least one video frame \(40.0 ms"):
        require_frames(np.zeros(639, np.float32), 25, "voice.wav")


@pytest.mark.parametrize("name", SECONDS)
def test_real_recordings(name):
    if not (MEDIA / "audio" / name).exists():
        pytest.skip("no shared media")
    got = load_audio(MEDIA / "audio" / name)
    assert abs(len(got) / 16000 - SECONDS[name]) < 1e-3
    assert 0.3 < np.abs(got).max() <= 1.0


def test_sound_is_aligned_to_a_video_that_starts_late():
    path = MEDIA / "video" / "real_moore_3.mp4"
    if not path.exists():
        pytest.skip("no shared media")
    assert abs(len(load_audio(path, align_to_video=True)) / 16000 - 4.66) < 0.01

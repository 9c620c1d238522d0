"""Files for `emo generate`, and a small model in place of the bundled one."""

import wave

import numpy as np
import pytest
from PIL import Image

from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.mp4 import encode_video


def write_wav(path, samples, rate=16000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())


def write_nan_wav(path):
    """32-bit float WAV, whose samples are NaN."""
    data = np.full(9000, np.nan, "<f4").tobytes()
    header = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    fields = ((3, 2), (1, 2), (16000, 4), (64000, 4), (4, 2), (32, 2))
    header += b"".join(value.to_bytes(size, "little") for value, size in fields)
    path.write_bytes(header + b"data" + len(data).to_bytes(4, "little") + data)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder of good and of bad inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (200, 180, 3), np.uint8))
    image.save(folder / "good.png")
    image.save(folder / "intact.jpg")
    intact = (folder / "intact.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(intact[: len(intact) // 2])
    (folder / "text.png").write_text("no picture\n")
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    write_wav(folder / "good.wav", 0.1 * rng.standard_normal(9000).clip(-1, 1))
    write_wav(folder / "short.wav", 0.1 * rng.standard_normal(639).clip(-1, 1))
    (folder / "zero.wav").write_bytes(b"")
    write_nan_wav(folder / "nan.wav")
    (folder / "silent.mp4").write_bytes(encode_video(np.zeros((5, 32, 32, 3), np.uint8), 25))
    return folder


@pytest.fixture
def loaded(monkeypatch, pipeline):
    """The command line loads the small model of the tests, whatever the preset."""
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)

"""Frame-rate conversion and the strip of frames."""

import io
import math
import os
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from emo_jax.generation.commands import generate_file
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.generation.writing import FilmStrip, convert_frame_rate, print_result
from emo_jax.media.audio import write_wav
from tests.generation.media import BOX, random_portrait, random_voice


@pytest.mark.parametrize("out_fps", [25.0, 50.0, 30.0, 12.5, 24.0, 29.97, 60.0])
@pytest.mark.parametrize("sizes", [(8, 8, 3), (1,), (8, 1)])
def test_converted_frames_are_those_shown_at_the_middle_of_their_time(out_fps, sizes):
    count, out = sum(sizes), Fraction(out_fps).limit_denominator(1001)
    total = math.ceil(count * out / 25)
    numbered = np.arange(count)[:, None]
    segments = np.split(numbered, np.cumsum(sizes)[:-1])
    converted = np.concatenate(list(convert_frame_rate(iter(segments), 25.0, out_fps, total)))[:, 0]
    assert converted.tolist() == [min(int((j + Fraction(1, 2)) / out * 25), count - 1) for j in range(total)]


def test_strip_joins_frames_at_equal_distances(tmp_path):
    frames = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((2, 3, 3), np.uint8)
    strip = FilmStrip(100, count=4)
    for part in np.split(frames, [7, 50]):
        strip.add(part)
    strip.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        values = np.asarray(image)
    assert values.shape == (2, 12, 3) and values[0, ::3, 0].tolist() == [20, 40, 59, 79]


def test_result_line_escapes_what_stdout_cannot_encode(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", written)
    print_result(os.fsdecode(b"caf\xc3\xa9 \xe9.mp4"))
    written.flush()
    assert written.buffer.getvalue() == b"caf\\xe9 \\udce9.mp4\n"


def test_command_shows_each_step(pipeline, monkeypatch, tmp_path, capsys):
    Image.fromarray(random_portrait()).save(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", random_voice(9000))
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    generate_file(f"{tmp_path}/a.png", f"{tmp_path}/a.wav", f"{tmp_path}/a.mp4", face_box=BOX)
    loading, generating, *progress = capsys.readouterr().err.splitlines()
    assert "loading weights" in loading and "15 frames" in generating
    assert all("compiling" not in line for line in progress[1:]) and "15/15 frames" in progress[-1]


@pytest.mark.parametrize("name", ["a.webm", "a.gif", "frames/"])
def test_command_writes_the_format_of_the_name_with_its_provenance(pipeline, monkeypatch, tmp_path, name):
    Image.fromarray(random_portrait()).save(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", random_voice(2500))
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    out = f"{tmp_path}/{name}"
    generate_file(f"{tmp_path}/a.png", f"{tmp_path}/a.wav", out, face_box=BOX, seed=5, notice="AI")
    first = f"{out}000001.png" if name.endswith("/") else out
    if name == "a.webm":
        with av.open(first) as container:
            comment = container.metadata["COMMENT"]
    else:
        with Image.open(first) as image:
            text = image.info.get("comment") or image.text["Comment"]
            comment = text.decode() if isinstance(text, bytes) else text
            corner = np.asarray(image.convert("RGB"))[-10:, :10]
        assert corner.std() > 20  # letters of the notice
    assert "AI-generated" in comment and "emo_jax" in comment and comment.endswith("seed 5")

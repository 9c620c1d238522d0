"""Errors and exit statuses of the `emo` command, and the verbs generate and demo."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.generation.video import FrameStream
from emo_jax.media.audio import load_audio
from emo_jax.media.timing import frame_count
from emo_jax.media.video import probe
from emo_jax.synthetic.assets import ASSETS, make_portrait, make_voice
from emo_jax.synthetic.people.assets import has_heads
from emo_jax.synthetic.people.renderer import has_renderer
from emo_jax.synthetic.people.voices import engines
from tests.cli.calls import check_one_line_error, generate


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(portrait="none.png"), "none.png does not exist"),
        (dict(portrait="."), "is a directory"),
        (dict(portrait="text.png"), "text.png is not an image"),
        (dict(portrait="cut.jpg"), "cut.jpg is damaged"),
        (dict(portrait="huge.png"), "20000x20000"),
        (dict(audio="none.wav"), "none.wav does not exist"),
        (dict(audio="."), "is a directory"),
        (dict(audio="zero.wav"), "zero.wav is empty"),
        (dict(audio="text.png"), "text.png cannot be read"),
        (dict(audio="silent.mp4"), "silent.mp4 has no sound track"),
        (dict(audio="short.wav"), "short.wav lasts 39.9 ms"),
        (dict(audio="nan.wav"), "nan.wav has NaN"),
        (dict(box="60,50,181,150"), "outside the image"),
        (dict(box="60,50,50,150"), "'60,50,50,150'"),
        (dict(box="face"), "'face'"),
    ],
)
def test_bad_input_is_reported_on_one_line(inputs, loaded, tmp_path, capsys, change, text):
    check_one_line_error(generate(inputs, tmp_path / "out.mp4", **change), capsys, text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--preset", "huge"], "'huge'"),
        (["--checkpoint", "/nowhere"], "'/nowhere'"),
        (["--stepz", "3"], "'--stepz'"),
        (["--steps", "many"], "'many'"),
        (["--steps", "0"], "steps is 0"),
        (["--solver", "euler"], "'euler'"),
        (["--seed", "-1"], "seed is -1"),
        (["--speed", "nan"], "speed is nan"),
        (["--reference-scale", "-2"], "reference_scale is -2"),
        (["--audio-scale", "inf"], "audio_scale is inf"),
        (["--fps", "0"], "fps"),
        (["--fps", "1000"], "fps is 1000"),
        (["--preset", "small", "--checkpoint", "x"], "not allowed with"),
        (["--sampling.steps=0"], "steps is 0"),
        (["--sampling.steps=1.5"], "steps is 1.5"),
        (["--sampling.solver=euler"], "'euler'"),
        (["--sampling.clips=0"], "clips is 0"),
        (["--steps=2", "--sampling.steps=3"], "--sampling.steps"),
        (["--sampling.steps"], "'--sampling.steps'"),
    ],
)
def test_bad_option_is_reported_on_one_line(inputs, monkeypatch, pipeline, tmp_path, capsys, more, text):
    if not {"/nowhere", "huge"} & set(more):
        monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    check_one_line_error(generate(inputs, tmp_path / "out.mp4", *more), capsys, text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out.avi", "does not end in .mp4"),
        ("none/out.avi", "does not end in .mp4"),
        ("none/out.mp4", "none.png does not exist"),
        ("file/none/out.mp4", "there is no folder"),
        ("file/out.mp4", "file"),
        ("folder.mp4", "is a directory"),
        ("/proc/out.mp4", "cannot be written"),  # root may write to any other folder
    ],
)
def test_output_is_checked_before_the_inputs_are_read(tmp_path, capsys, name, text):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    check_one_line_error(generate(tmp_path, tmp_path / name, portrait="none.png"), capsys, text)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["new/deep/out.mp4", "new/frames/"])
def test_missing_folders_of_the_output_are_created(inputs, loaded, tmp_path, name):
    output = f"{tmp_path}/{name}"
    assert generate(inputs, output) == 0
    assert pathlib.Path(output).exists()
    shutil.rmtree(tmp_path / "new")
    assert generate(inputs, output, portrait="none.png") == 2 and not (tmp_path / "new").exists()


def test_input_is_not_overwritten(inputs, loaded, tmp_path, capsys):
    shutil.copy(inputs / "good.wav", tmp_path / "in.mp4")
    before = (tmp_path / "in.mp4").read_bytes()
    check_one_line_error(
        generate(inputs, tmp_path / "in.mp4", audio=tmp_path / "in.mp4"), capsys, "would replace the input"
    )
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_weights_of_another_config_are_reported_on_one_line(inputs, weights_dir, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(weights_dir, other)
    config = json.loads((other / "config.json").read_text())
    changes = {"another config": ("channels", [16, 48]), "heads": ("heads", None)}
    for text, (field, value) in changes.items():
        changed = json.loads(json.dumps(config))
        changed["model"]["unet"][field] = value
        if value is None:
            del changed["model"]["unet"][field]
        (other / "config.json").write_text(json.dumps(changed))
        check_one_line_error(generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, text)
    (other / "config.json").write_text("{")
    check_one_line_error(
        generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, "config.json is not a JSON file"
    )
    (other / "model.safetensors").write_bytes(b"12")
    check_one_line_error(generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, "is damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_preset_without_weights_is_reported_on_one_line(inputs, monkeypatch, tmp_path, capsys):
    from emo_jax.weights import store

    monkeypatch.setitem(store.BUNDLED, "small", tmp_path / "absent")
    check_one_line_error(generate(inputs, tmp_path / "out.mp4"), capsys, "preset 'small' has no weights")


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (ValueError("broken\nhere"), 2, "broken here"),
        (OSError("disk full"), 1, "disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
    ],
)
def test_no_file_is_left_after_a_failure(inputs, loaded, monkeypatch, tmp_path, capsys, failure, status, message):
    def broken(self, *inputs, **options):
        yield np.zeros((8, 64, 64, 3), np.uint8)
        assert len(list(tmp_path.iterdir())) == 1  # the partial file
        if isinstance(failure, signal.Signals):
            signal.raise_signal(failure)
        raise failure

    monkeypatch.setattr(EmoPipeline, "stream", lambda *a, **o: FrameStream(broken(*a, **o), (64, 64), 15))
    assert generate(inputs, tmp_path / "out.mp4") == status
    assert capsys.readouterr().err.splitlines()[-1] == f"emo generate: {message}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fps", "count"), [(None, 15), ("30", 17), ("50", 29), ("12.5", 8)])
def test_generate_writes_a_video_as_long_as_the_voice(inputs, loaded, pipeline, tmp_path, capsys, fps, count):
    out = tmp_path / "out.mp4"
    assert generate(inputs, out, *(["--fps", fps] if fps else [])) == 0
    info = probe(out)
    rate = float(fps or 25)
    assert (info["frames"], info["fps"], info["audio_rate"]) == (count, rate, 16000)
    assert info["seconds"] == pytest.approx(count / rate, abs=1e-3)
    assert info["audio_seconds"] == pytest.approx(count / rate, abs=1e-3)
    captured = capsys.readouterr()
    assert captured.out == f"{out}: {count} frames, {count / rate:.2f} s\n"
    assert f"generate: {count}/{count} frames" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_equal_seeds_give_equal_files(inputs, loaded, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert generate(inputs, tmp_path / f"{name}.mp4", "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_undetected_face_is_one_warning(inputs, loaded, tmp_path, capsys):
    assert generate(inputs, tmp_path / "out.mp4", box=None) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: no face found in the portrait; assuming") for line in lines].count(True) == 1


@pytest.mark.slow
def test_demo_writes_a_video_and_a_strip(loaded, tmp_path, capsys):
    out = tmp_path / "new" / "demo.mp4"
    assert cli.main(["demo", "--out", str(out)]) == 0
    info = probe(out)
    frames = frame_count(len(load_audio(ASSETS / "voice.wav")), 25)
    assert info["frames"] == frames and info["audio_seconds"] == pytest.approx(frames / 25, abs=1e-3)
    with Image.open(out.with_suffix(".png")) as strip:
        assert strip.size == (8 * 512, 512)
    assert "no face" not in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["demo.mp4", "demo.png"]
    (tmp_path / "file").write_text("")
    status = cli.main(["demo", "--out", str(tmp_path / "file" / "a.mp4")])
    check_one_line_error(status, capsys, "cannot be written", "emo demo")


@pytest.mark.skipif(not (has_heads() and has_renderer()), reason="no head data, or no OpenGL")
def test_portrait_of_the_demo_is_reproducible():
    kept = np.asarray(Image.open(ASSETS / "portrait.png")).astype(int)
    assert np.abs(make_portrait() - kept).max() <= 2


@pytest.mark.skipif("espeak" not in engines(), reason="espeakng_loader is missing")
def test_voice_of_the_demo_is_reproducible():
    assert np.abs(make_voice() - load_audio(ASSETS / "voice.wav")).max() <= 1e-4


@pytest.mark.parametrize(
    "verb",
    [
        ["generate", "--portrait", "good.png", "--audio", "good.wav", "--out", "out.mp4"],
        ["demo"],
        ["evaluate", "--output", "out"],
        ["prepare", "latents", "records", "--output", "out"],
    ],
)
def test_missing_device_is_reported_before_weights_are_read(inputs, monkeypatch, tmp_path, capsys, verb):
    import jax

    def none():
        raise AssertionError  # raised by JAX where its CUDA plugin is missing

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.chdir(tmp_path)
    for name in ("good.png", "good.wav"):
        shutil.copy(inputs / name, tmp_path)
    status = cli.main([*verb, "--checkpoint", "nowhere"])
    check_one_line_error(status, capsys, "JAX finds no devices", f"emo {verb[0]}: ")


def test_out_of_device_memory_is_reported_on_one_line(inputs, loaded, monkeypatch, tmp_path, capsys):
    def stream(self, *inputs, **options):
        yield np.zeros((8, 64, 64, 3), np.uint8)
        jax.numpy.zeros(2**50, np.uint8).block_until_ready()

    import jax

    monkeypatch.setattr(EmoPipeline, "stream", lambda *a, **o: FrameStream(stream(*a, **o), (64, 64), 15))
    assert generate(inputs, tmp_path / "out.mp4") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("emo generate: ") and "RESOURCE_EXHAUSTED" in message and "--clips" in message
    assert list(tmp_path.iterdir()) == []


def test_unexpected_error_keeps_its_traceback(inputs, loaded, monkeypatch, tmp_path):
    def stream(self, *inputs, **options):
        raise RuntimeError("INTERNAL: bug")

    monkeypatch.setattr(EmoPipeline, "stream", stream)
    with pytest.raises(RuntimeError, match="INTERNAL: bug"):
        generate(inputs, tmp_path / "out.mp4")


def test_bad_input_is_reported_before_jax_is_imported(tmp_path):
    code = "import sys; from emo_jax.cli.main import main; sys.exit(main(sys.argv[1:]) + 7 * ('jax' in sys.modules))"
    arguments = ["generate", "--portrait", "none.png", "--audio", "none.wav", "--out", str(tmp_path / "out.mp4")]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)

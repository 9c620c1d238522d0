"""The `emo` command: what it answers to bad input, and the verbs generate, demo and export."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import wave

import numpy as np
import pytest
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.mp4 import encode_video
from emo_jax.media.video import probe
from emo_jax.synthetic.assets import ASSETS, make_assets

BOX = "60,50,130,150"


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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of good and of bad inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (200, 180, 3), np.uint8))
    image.save(folder / "good.png")
    image.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture\n")
    Image.new("1", (20000, 20000)).save(folder / "huge.png")
    write_wav(folder / "good.wav", 0.1 * rng.standard_normal(9000).clip(-1, 1))
    write_wav(folder / "short.wav", 0.1 * rng.standard_normal(639))
    (folder / "zero.wav").write_bytes(b"")
    write_nan_wav(folder / "nan.wav")
    (folder / "silent.mp4").write_bytes(encode_video(np.zeros((5, 32, 32, 3), np.uint8), 25))
    return folder


@pytest.fixture
def loaded(monkeypatch, pipeline):
    """The command line loads the small model of the tests, whatever the preset."""
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)


def generate(folder, out, *more, portrait="good.png", audio="good.wav", box=BOX):
    arguments = ["generate", "--portrait", str(folder / portrait), "--audio", str(folder / audio), "--out", str(out)]
    return cli.main([*arguments, *(["--face-box", box] if box else []), *more])


def check_refused(status, capsys, told, prefix="emo generate: "):
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.startswith(prefix) and captured.err.count("\n") == 1 and captured.err.endswith("\n")
    assert told in captured.err


@pytest.mark.parametrize(
    ("change", "told"),
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
def test_bad_inputs(inputs, loaded, tmp_path, capsys, change, told):
    check_refused(generate(inputs, tmp_path / "out.mp4", **change), capsys, told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--preset", "huge"], "preset is 'huge'"),
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
        (["--preset", "tiny", "--checkpoint", "x"], "not allowed with"),
    ],
)
def test_bad_flags(inputs, monkeypatch, pipeline, tmp_path, capsys, more, told):
    if "/nowhere" not in more:
        monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    check_refused(generate(inputs, tmp_path / "out.mp4", *more), capsys, told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("out.avi", "does not end in .mp4"),
        ("none/out.mp4", "there is no folder"),
        ("file/out.mp4", "file"),
        ("folder.mp4", "is a directory"),
        ("/proc/out.mp4", "cannot be written"),  # root may write to any folder but such
    ],
)
def test_bad_outputs_are_told_before_the_inputs_are_read(tmp_path, capsys, name, told):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    check_refused(generate(tmp_path, tmp_path / name, portrait="none.png"), capsys, told)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.mp4"]


def test_an_input_is_not_replaced(inputs, loaded, tmp_path, capsys):
    shutil.copy(inputs / "good.wav", tmp_path / "in.mp4")
    before = (tmp_path / "in.mp4").read_bytes()
    check_refused(generate(inputs, tmp_path / "in.mp4", audio=tmp_path / "in.mp4"), capsys, "would replace the input")
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_weights_of_another_config(inputs, weights_dir, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(weights_dir, other)
    config = json.loads((other / "config.json").read_text())
    changes = {"another config": ("channels", [16, 48]), "not one of this version": ("heads", None)}
    for told, (field, value) in changes.items():
        changed = json.loads(json.dumps(config))
        changed["model"]["unet"][field] = value
        if value is None:
            del changed["model"]["unet"][field]
        (other / "config.json").write_text(json.dumps(changed))
        check_refused(generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, told)
    (other / "config.json").write_text("{")
    check_refused(generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, "config.json is damaged")
    (other / "model.safetensors").write_bytes(b"12")
    check_refused(generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, "is damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_preset_without_weights_says_so(inputs, monkeypatch, tmp_path, capsys):
    from emo_jax.weights import store

    monkeypatch.setitem(store.BUNDLED, "tiny", tmp_path / "absent")
    check_refused(generate(inputs, tmp_path / "out.mp4"), capsys, "preset 'tiny' has no weights")


@pytest.mark.parametrize(
    ("failure", "status", "told"),
    [
        (ValueError("broken\nhere"), 2, "broken here"),
        (OSError("disk full"), 1, "disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
    ],
)
def test_nothing_is_left_after_a_failure(inputs, loaded, monkeypatch, tmp_path, capsys, failure, status, told):
    def broken(self, *inputs, **options):
        yield np.zeros((8, 64, 64, 3), np.uint8)
        assert len(list(tmp_path.iterdir())) == 1  # the file that grows
        if isinstance(failure, signal.Signals):
            signal.raise_signal(failure)
        raise failure

    monkeypatch.setattr(EmoPipeline, "stream", broken)
    assert generate(inputs, tmp_path / "out.mp4") == status
    assert capsys.readouterr().err.splitlines()[-1] == f"emo generate: {told}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fps", "count"), [(None, 15), ("30", 17), ("50", 29), ("12.5", 8)])
def test_generate(inputs, loaded, pipeline, tmp_path, capsys, fps, count):
    out = tmp_path / "out.mp4"
    assert generate(inputs, out, *(["--fps", fps] if fps else [])) == 0
    found = probe(out)
    rate = float(fps or 25)
    assert (found["frames"], found["fps"], found["audio_rate"]) == (count, rate, 16000)
    assert found["seconds"] == pytest.approx(count / rate, abs=1e-3)
    assert found["audio_seconds"] == pytest.approx(count / rate, abs=1e-3)
    captured = capsys.readouterr()
    assert captured.out == f"{out}: {count} frames, {count / rate:.2f} s\n"
    assert f"generate: {count}/{count} frames" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_seeds_decide_the_bytes(inputs, loaded, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert generate(inputs, tmp_path / f"{name}.mp4", "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_no_face_is_one_warning(inputs, loaded, tmp_path, capsys):
    assert generate(inputs, tmp_path / "out.mp4", box=None) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: no face found in the portrait; assuming") for line in lines].count(True) == 1


def test_demo(loaded, tmp_path, capsys):
    out = tmp_path / "new" / "demo.mp4"
    assert cli.main(["demo", "--out", str(out)]) == 0
    found = probe(out)
    assert found["frames"] == 150 and found["audio_seconds"] == pytest.approx(6.0, abs=1e-3)
    with Image.open(out.with_suffix(".png")) as strip:
        assert strip.size == (8 * 64, 64)
    assert "no face" not in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["demo.mp4", "demo.png"]
    (tmp_path / "file").write_text("")
    status = cli.main(["demo", "--out", str(tmp_path / "file" / "a.mp4")])
    check_refused(status, capsys, "cannot be written", "emo demo")


def test_demo_assets_are_what_the_script_makes(tmp_path):
    make_assets(tmp_path)
    made, kept = (np.asarray(Image.open(folder / "portrait.png")).astype(int) for folder in (tmp_path, ASSETS))
    assert np.abs(made - kept).max() <= 2
    sounds = [np.frombuffer((f / "voice.wav").read_bytes()[44:], "<i2") for f in (tmp_path, ASSETS)]
    assert np.abs(sounds[0].astype(int) - sounds[1]).max() <= 2


@pytest.mark.parametrize("arguments", [[], ["sing"], ["--loud"], ["generate"], ["export", "--dtype", "int8"]])
def test_bad_command_lines_are_one_line(arguments, capsys):
    check_refused(cli.main(arguments), capsys, "--help tells more", "emo")


@pytest.mark.parametrize("verb", [["sweep", "x.py"], ["evaluate"], ["convert"]])
def test_a_bucket_is_no_folder_for_results(capsys, verb):
    status = cli.main([*verb, "--output", "gs://bucket/x"])
    check_refused(status, capsys, "--output gs://bucket/x is no path of this machine", "emo ")


@pytest.mark.parametrize(
    "verb",
    [
        ["generate", "--portrait", "good.png", "--audio", "good.wav", "--out", "out.mp4"],
        ["demo"],
        ["evaluate", "--output", "out"],
        ["prepare", "latents", "records", "--output", "out"],
    ],
)
def test_absent_devices_are_told_before_weights_are_read(inputs, monkeypatch, tmp_path, capsys, verb):
    import jax

    def none():
        raise AssertionError  # what JAX says without its part for CUDA

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.chdir(tmp_path)
    for name in ("good.png", "good.wav"):
        shutil.copy(inputs / name, tmp_path)
    status = cli.main([*verb, "--checkpoint", "nowhere"])
    check_refused(status, capsys, "JAX finds no devices", f"emo {verb[0]}: ")


def test_a_device_without_enough_memory_is_one_line(inputs, loaded, monkeypatch, tmp_path, capsys):
    def stream(self, *inputs, **options):
        yield np.zeros((8, 64, 64, 3), np.uint8)
        jax.numpy.zeros(2**50, np.uint8).block_until_ready()

    import jax

    monkeypatch.setattr(EmoPipeline, "stream", stream)
    assert generate(inputs, tmp_path / "out.mp4") == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("emo generate: the device's memory is not enough (RESOURCE_EXHAUSTED: Out of memory")
    assert "--clips" in told and list(tmp_path.iterdir()) == []


def test_other_errors_of_the_program_keep_their_traceback(inputs, loaded, monkeypatch, tmp_path):
    def stream(self, *inputs, **options):
        raise RuntimeError("INTERNAL: odd")

    monkeypatch.setattr(EmoPipeline, "stream", stream)
    with pytest.raises(RuntimeError, match="INTERNAL: odd"):
        generate(inputs, tmp_path / "out.mp4")


def test_help_names_every_verb_and_each_has_its_own(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and all(verb in text for verb in cli.VERBS)
    for verb in ("generate", "demo", "export", "prepare"):
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0 and f"usage: emo {verb}" in capsys.readouterr().out


def test_bad_input_is_told_before_jax_is_loaded(tmp_path):
    code = "import sys; from emo_jax.cli.main import main; sys.exit(main(sys.argv[1:]) + 7 * ('jax' in sys.modules))"
    arguments = ["generate", "--portrait", "none.png", "--audio", "none.wav", "--out", str(tmp_path / "out.mp4")]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)

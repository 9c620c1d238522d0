"""The `emo` command: grammar, errors and exit statuses, and the verbs generate and demo."""

import contextlib
import io
import json
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import wave
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import emo_jax
from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.generation import commands, writing
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
    write_wav(folder / "short.wav", 0.1 * rng.standard_normal(639).clip(-1, 1))
    (folder / "zero.wav").write_bytes(b"")
    write_nan_wav(folder / "nan.wav")
    (folder / "silent.mp4").write_bytes(encode_video(np.zeros((5, 32, 32, 3), np.uint8), 25))
    return folder


@pytest.fixture
def loaded(monkeypatch, pipeline):
    """The command line loads the small model of the tests, whatever the preset."""
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)


def generate(folder, out, *more, portrait="good.png", audio="good.wav", box=BOX):
    arguments = ["generate", "--portrait", str(folder / portrait), "--audio", str(folder / audio), "-o", str(out)]
    return cli.main([*arguments, *(["--face-box", box] if box else []), *more])


def check_one_line_error(status, capsys, text, prefix="emo generate: "):
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    error = captured.err.removeprefix("generate: loading weights\n")
    assert error.startswith(prefix) and error.count("\n") == 1 and error.endswith("\n")
    assert text in captured.err


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
def test_bad_input_is_one_line(inputs, loaded, tmp_path, capsys, change, text):
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
        (["--preset", "tiny", "--checkpoint", "x"], "not allowed with"),
        (["--sampling.steps=0"], "steps is 0"),
        (["--sampling.steps=1.5"], "steps is 1.5"),
        (["--sampling.solver=euler"], "'euler'"),
        (["--sampling.clips=0"], "clips is 0"),
        (["--steps=2", "--sampling.steps=3"], "--sampling.steps"),
        (["--sampling.steps"], "'--sampling.steps'"),
    ],
)
def test_bad_option_is_one_line(inputs, monkeypatch, pipeline, tmp_path, capsys, more, text):
    if not {"/nowhere", "huge"} & set(more):
        monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    check_one_line_error(generate(inputs, tmp_path / "out.mp4", *more), capsys, text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out.avi", "does not end in .mp4"),
        ("none/out.mp4", "there is no folder"),
        ("file/out.mp4", "file"),
        ("folder.mp4", "is a directory"),
        ("/proc/out.mp4", "cannot be written"),  # root may write to any folder but such
    ],
)
def test_output_is_checked_before_the_inputs_are_read(tmp_path, capsys, name, text):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    check_one_line_error(generate(tmp_path, tmp_path / name, portrait="none.png"), capsys, text)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.mp4"]


def test_input_is_not_overwritten(inputs, loaded, tmp_path, capsys):
    shutil.copy(inputs / "good.wav", tmp_path / "in.mp4")
    before = (tmp_path / "in.mp4").read_bytes()
    check_one_line_error(
        generate(inputs, tmp_path / "in.mp4", audio=tmp_path / "in.mp4"), capsys, "would replace the input"
    )
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_weights_of_another_config(inputs, weights_dir, tmp_path, capsys):
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
        generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, "config.json is damaged"
    )
    (other / "model.safetensors").write_bytes(b"12")
    check_one_line_error(generate(inputs, tmp_path / "out.mp4", "--checkpoint", str(other)), capsys, "is damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_preset_without_weights(inputs, monkeypatch, tmp_path, capsys):
    from emo_jax.weights import store

    monkeypatch.setitem(store.BUNDLED, "tiny", tmp_path / "absent")
    check_one_line_error(generate(inputs, tmp_path / "out.mp4"), capsys, "preset 'tiny' has no weights")


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
        assert len(list(tmp_path.iterdir())) == 1  # the file that grows
        if isinstance(failure, signal.Signals):
            signal.raise_signal(failure)
        raise failure

    monkeypatch.setattr(EmoPipeline, "stream", broken)
    assert generate(inputs, tmp_path / "out.mp4") == status
    assert capsys.readouterr().err.splitlines()[-1] == f"emo generate: {message}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fps", "count"), [(None, 15), ("30", 17), ("50", 29), ("12.5", 8)])
def test_generate(inputs, loaded, pipeline, tmp_path, capsys, fps, count):
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


def test_demo(loaded, tmp_path, capsys):
    out = tmp_path / "new" / "demo.mp4"
    assert cli.main(["demo", "--out", str(out)]) == 0
    info = probe(out)
    assert info["frames"] == 150 and info["audio_seconds"] == pytest.approx(6.0, abs=1e-3)
    with Image.open(out.with_suffix(".png")) as strip:
        assert strip.size == (8 * 64, 64)
    assert "no face" not in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["demo.mp4", "demo.png"]
    (tmp_path / "file").write_text("")
    status = cli.main(["demo", "--out", str(tmp_path / "file" / "a.mp4")])
    check_one_line_error(status, capsys, "cannot be written", "emo demo")


def test_demo_assets_are_reproducible(tmp_path):
    make_assets(tmp_path)
    made, kept = (np.asarray(Image.open(folder / "portrait.png")).astype(int) for folder in (tmp_path, ASSETS))
    assert np.abs(made - kept).max() <= 2
    sounds = [np.frombuffer((f / "voice.wav").read_bytes()[44:], "<i2") for f in (tmp_path, ASSETS)]
    assert np.abs(sounds[0].astype(int) - sounds[1]).max() <= 2


@pytest.mark.parametrize("arguments", [[], ["sing"], ["--loud"], ["generate"], ["export", "--dtype", "int8"]])
def test_bad_command_line_is_one_line(arguments, capsys):
    check_one_line_error(cli.main(arguments), capsys, "--help", "emo")


@pytest.mark.parametrize("verb", [["sweep", "x.py"], ["evaluate"], ["convert"]])
def test_output_in_a_bucket_raises(capsys, verb):
    status = cli.main([*verb, "--output", "gs://bucket/x"])
    check_one_line_error(status, capsys, "--output is gs://bucket/x", "emo ")


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
        raise AssertionError  # what JAX says without its part for CUDA

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.chdir(tmp_path)
    for name in ("good.png", "good.wav"):
        shutil.copy(inputs / name, tmp_path)
    status = cli.main([*verb, "--checkpoint", "nowhere"])
    check_one_line_error(status, capsys, "JAX finds no devices", f"emo {verb[0]}: ")


def test_out_of_device_memory_is_one_line(inputs, loaded, monkeypatch, tmp_path, capsys):
    def stream(self, *inputs, **options):
        yield np.zeros((8, 64, 64, 3), np.uint8)
        jax.numpy.zeros(2**50, np.uint8).block_until_ready()

    import jax

    monkeypatch.setattr(EmoPipeline, "stream", stream)
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


WITHOUT_SUBCOMMANDS = [verb for verb in cli.VERBS if verb not in ("prepare", "bench")]


def help_of(*verb):
    """The output of `emo VERB --help`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        cli.main([*verb, "--help"])
    assert stop.value.code == 0
    return out.getvalue()


def examples(text):
    """The commands of a help text, as lists of arguments after `emo`."""
    lines = text.replace("\\\n", "").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  emo ")]


def test_help_groups_the_verbs():
    text = help_of()
    assert all(f"{group}:" in text for group in cli.GROUPS)
    assert all(f"  {verb} " in text for verb in cli.VERBS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.split() == ["emo_jax", emo_jax.__version__]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
@pytest.mark.parametrize("verb", WITHOUT_SUBCOMMANDS)
def test_help_has_an_example_that_parses(verb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # configs are found by name, in any folder
    ((name, *arguments),) = examples(help_of(verb))
    args, rest = cli.make_parser(verb).parse_known_args([verb, *arguments])
    assert name == verb and callable(args.main) and (not rest or args.takes_more)
    if any(text.startswith("--config=") or text == "--config" for text in rest):
        assert config_lib.parse(rest).clip.frames > 1


@pytest.mark.parametrize("verb", WITHOUT_SUBCOMMANDS)
@pytest.mark.parametrize("option", ["-o", "--output", "--out"])
def test_every_verb_has_an_output(verb, option):
    if (verb, option) == ("train", "--out"):
        pytest.skip("emo train never had --out")
    required = dict(
        generate=["--portrait=a", "--audio=b"], export=["--workdir=a"], plan=["--topology=cpu:1"], sweep=["a.py"]
    )
    args, rest = cli.make_parser(verb).parse_known_args([verb, *required.get(verb, []), option, "x"])
    assert "x" in (getattr(args, "output", None), getattr(args, "workdir", None)) and not rest


@pytest.mark.parametrize("source", ["synthetic", "videos", "images", "inspect", "stats", "latents"])
def test_every_source_of_prepare_has_an_output(source):
    required = dict(
        videos=["--input=a"], images=["--input=a"], inspect=["a"], stats=["a"], latents=["a", "--checkpoint=b"]
    )
    args, rest = cli.make_parser("prepare").parse_known_args(["prepare", source, *required.get(source, []), "-o", "x"])
    assert args.output == "x" and not rest


@pytest.mark.parametrize(
    "more", [["--portrait=a", "--portrait=b"], ["-o=a", "--out=b"], ["--sampling.steps=1", "--sampling.steps=2"]]
)
def test_repeated_option_is_an_error(inputs, tmp_path, capsys, more):
    check_one_line_error(generate(inputs, tmp_path / "out.mp4", *more), capsys, "twice")


def test_repeated_config_is_an_error(capsys):
    status = cli.main(["plan", "--topology=cpu:1", "--config=tiny:video", "--config", "base:video"])
    check_one_line_error(status, capsys, "--config is given 2 times", "emo plan: ")


def test_old_flags_set_sampling_fields(inputs, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(writing, "write_video", lambda *args, **options: calls.append(options))
    monkeypatch.setattr(commands, "load_pipeline", lambda weights, size, sampling: SimpleNamespace(fps=25, **sampling))
    short = ["--steps=3", "--solver=ddim", "--reference-scale=1.5", "--audio-scale=2", "--speed=0.5"]
    full = [f"--sampling.{text[2:].replace('-', '_')}" for text in short]
    for options in (short, full):
        assert generate(inputs, tmp_path / "out.mp4", *options) == 0
    assert calls[0] == calls[1]
    assert {name: calls[0][name] for name in ("steps", "solver", "reference_scale", "audio_scale", "speed")} == dict(
        steps=3, solver="ddim", reference_scale=1.5, audio_scale=2, speed=0.5
    )


def test_bad_input_is_reported_before_jax_is_imported(tmp_path):
    code = "import sys; from emo_jax.cli.main import main; sys.exit(main(sys.argv[1:]) + 7 * ('jax' in sys.modules))"
    arguments = ["generate", "--portrait", "none.png", "--audio", "none.wav", "--out", str(tmp_path / "out.mp4")]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)

"""The grammar of the `emo` command: verbs, help texts with examples, outputs, repeated and old options."""

import contextlib
import io
import shlex
from types import SimpleNamespace

import pytest

import emo_jax
from emo_jax import config as config_lib
from emo_jax.cli import main as cli
from emo_jax.generation import commands, writing
from tests.cli.calls import check_one_line_error, generate


@pytest.mark.parametrize("arguments", [[], ["sing"], ["--loud"], ["generate"], ["export", "--dtype", "int8"]])
def test_bad_command_line_is_reported_on_one_line(arguments, capsys):
    check_one_line_error(cli.main(arguments), capsys, "--help", "emo")


@pytest.mark.parametrize("verb", [["sweep", "x.py"], ["evaluate"], ["convert"]])
def test_output_in_a_bucket_raises(capsys, verb):
    status = cli.main([*verb, "--output", "gs://bucket/x"])
    check_one_line_error(status, capsys, "--output is gs://bucket/x", "emo ")


WITHOUT_SUBCOMMANDS = [verb for verb in cli.VERBS if verb not in ("prepare", "bench", "models")]


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


def test_version_is_printed(capsys):
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
    if (verb, option) == ("train", "--out") or verb == "app":
        pytest.skip("emo train never had --out, emo app writes no file of the user")
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

"""The commands of the documentation: all parse, and those that take under a minute run.

A block of shell commands below `<!-- run -->` is run by `make test`, one below `<!-- run: slow -->` by `make slow`, and
one below `<!-- run: steps -->` by `make slow` with two steps of training on a few short records.
"""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from emo_jax.configs import base
from PIL import Image

from emo_jax import config
from emo_jax.cli import main as cli
from emo_jax.media.audio import load_audio
from emo_jax.synthetic.assets import ASSETS
from tests.docs.pages import PAGES, ROOT, blocks, commands
from tests.runs import FLAGS  # these halve the time to compile

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections

FEW = {
    r"--records 1600": "--records 4 --held-out 2 --seconds 3",
    r"(--config \S+)": r"\1 --config.train.steps=2 --config.train.batch_size=2 --config.train.sample_every=0",
}
"""What `run: steps` replaces in a block."""


def with_marks(mark):
    return [page for page in PAGES if blocks(page, mark)]


def check(words):
    """Parses a command as `emo` would, without running it; raises ValueError if it is wrong."""
    args, rest = cli.make_parser(words[0]).parse_known_args(words)
    for prefix in ("sampling", "against"):
        fields = [word for word in rest if word.startswith(f"--{prefix}.")]
        config.parse_fields(fields, prefix)
        rest = [word for word in rest if word not in fields]
    assert not rest or getattr(args, "takes_more", False) or getattr(args, "takes_config", False), rest
    if rest:
        config.parse(rest, default=base.get_config())


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        check(words)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_has_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = capsys.readouterr().out.split("Example")[1].split("\n\n")[0]
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    examples = [shlex.split(line, comments=True) for line in lines if line.startswith("  emo ")]
    assert examples
    for words in examples:
        check(words[1:])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that the pages name: a portrait, half a second of voice."""
    from emo_jax.media.audio import write_wav

    folder = tmp_path_factory.mktemp("docs")
    with Image.open(ASSETS / "portrait.png") as portrait:
        portrait.convert("RGB").save(folder / "me.jpg")
    write_wav(folder / "song.mp3", load_audio(ASSETS / "voice.wav")[:8000])
    return folder


def run(block, folder, seconds):
    path = [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", with_marks("run"))
def test_quick_commands_run(page, workplace):
    for block in blocks(page, "run"):
        run(block, workplace, 300)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_marks("run: slow"))
def test_slow_commands_run(page, workplace):
    for block in blocks(page, "run: slow"):
        run(block, workplace, 1200)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_marks("run: steps"))
def test_training_commands_run_with_two_steps(page, workplace):
    for block in blocks(page, "run: steps"):
        for text, replacement in FEW.items():
            block, count = re.subn(text, replacement, block)
            assert count
        run(block, workplace, 2400)


@pytest.mark.slow
def test_python_example_of_the_readme_runs(pipeline, workplace, monkeypatch, capsys):
    from emo_jax import EmoPipeline

    (example,) = blocks("README.md", language="python")
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    exec(compile(example, "README.md", "exec"), {})
    assert (workplace / "me.mp4").is_file() and "256, 256, 3)" in capsys.readouterr().out


def test_python_example_of_the_faces_page_runs(monkeypatch):
    (example,) = blocks("docs/faces.md", language="python")
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(example, "faces.md", "exec"), names)
    assert names["picture"].shape == names["image"].shape and names["masks"]["lip"][0].max() == 1

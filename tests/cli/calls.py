"""Calls of `emo generate` and the check of its one-line errors."""

from emo_jax.cli import main as cli

BOX = "60,50,130,150"


def generate(folder, out, *more, portrait="good.png", audio="good.wav", box=BOX):
    arguments = ["generate", "--portrait", str(folder / portrait), "--audio", str(folder / audio), "-o", str(out)]
    return cli.main([*arguments, *(["--face-box", box] if box else []), *more])


def check_one_line_error(status, capsys, text, prefix="emo generate: "):
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    error = captured.err.removeprefix("generate: loading weights\n")
    assert error.startswith(prefix) and error.count("\n") == 1 and error.endswith("\n")
    assert text in captured.err

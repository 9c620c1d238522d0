"""launch/photographs.py, on a wheel that the test makes."""

import hashlib
import importlib.util
import pathlib
import sys
import zipfile

import cv2
import numpy as np
import pytest

from emo_jax.data.records import open_records
from emo_jax.media.mp4 import decode_video

SCRIPT = pathlib.Path(__file__).parent.parent / "launch" / "photographs.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, with one photograph of 300 x 560 pixels in a wheel of tmp_path."""
    spec = importlib.util.spec_from_file_location("photographs", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "photographs", module)
    spec.loader.exec_module(module)
    row, column = np.mgrid[0:300, 0:560]
    picture = np.stack([row * 255 / 300, column * 255 / 560, 0 * row + 90], -1).astype(np.uint8)
    content = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    with zipfile.ZipFile(tmp_path / "nature-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nature/ramp.png", content)
    photograph = module.Photograph("nature", "nature/ramp.png", hashlib.sha256(content).hexdigest()[:16], "CC0")
    monkeypatch.setattr(module, "PHOTOGRAPHS", (photograph,))
    return module


def run(script, monkeypatch, wheels, output):
    monkeypatch.setattr(sys, "argv", ["photographs.py", "--wheels", str(wheels), "--output", str(output)])
    return script.main()


def test_squares_of_a_photograph_become_records(script, monkeypatch, tmp_path):
    assert run(script, monkeypatch, tmp_path, tmp_path / "records") == 0
    source = open_records(tmp_path / "records", "train")
    frames = [decode_video(source[k]["video"], 0, 1)[0] for k in range(len(source))]
    assert {frame.shape for frame in frames} == {(256, 256, 3)} and len(frames) >= 6
    assert {source[k]["licence"] for k in range(len(source))} == {"CC0"}
    greens = [float(frame[..., 1].mean()) for frame in frames]
    assert min(greens) < 75 and max(greens) > 180  # both ends of the picture are covered, in RGB order
    assert all(abs(float(frame[..., 2].mean()) - 90) < 6 for frame in frames)


@pytest.mark.parametrize("damage", ["hash", "file", "wheel"])
def test_another_package_is_an_error_on_one_line(script, monkeypatch, tmp_path, capsys, damage):
    (photograph,) = script.PHOTOGRAPHS
    wanted = {"hash": dict(sha256="0" * 16), "file": dict(path="nature/sky.png"), "wheel": dict(package="sky")}[damage]
    monkeypatch.setattr(script, "PHOTOGRAPHS", (script.dataclasses.replace(photograph, **wanted),))
    assert run(script, monkeypatch, tmp_path, tmp_path / "records") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "records").exists()

"""The miniature models as tensors and as files."""

import re

import numpy as np
import pytest

from tests.parity import cases
from tests.weights.miniature import write


@pytest.fixture(scope="session")
def tensors():
    """{kind: {diffusers name: float16 array}}."""
    with np.load(cases.REFERENCE) as stored:
        weights = {n: a for n, a in stored.items() if re.match(r"(video|vae)/weights/", n)}
    video = {n.removeprefix("video/weights/"): a for n, a in weights.items() if n.startswith("video")}
    motion = {n: a for n, a in video.items() if "motion_modules" in n}
    return {
        "unet": {n: a for n, a in video.items() if n not in motion},
        "motion": motion,
        "vae": {n.removeprefix("vae/weights/"): a for n, a in weights.items() if n.startswith("vae")},
    }


@pytest.fixture
def files(tensors, tmp_path):
    """A folder with the miniature in diffusers' layout, and a config file of its sizes."""
    write(tmp_path / "sd/unet", tensors["unet"])
    write(tmp_path / "sd/vae", tensors["vae"], scaling_factor=0.5)
    write(tmp_path / "motion", tensors["motion"])
    with np.load(cases.REFERENCE) as stored:
        weights = {n: a for n, a in stored.items() if n.startswith("wav2vec2_base/weights/")}
    tensors = {n.removeprefix("wav2vec2_base/weights/"): a.astype(np.float32) for n, a in weights.items()}
    write(tmp_path / "voice", tensors, "model.safetensors", **cases.WAV2VEC2["base"])
    for name in ("miniature", "hearing"):
        text = f"from tests.weights.miniature import {name} as get_config\n"
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path

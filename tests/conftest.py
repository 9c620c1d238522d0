"""Fixtures that several folders share: records, weights and a pipeline."""

import functools
import os
import shutil
import tempfile
import time

import numpy as np
import pytest
from jaxtyping import install_import_hook

from emo_jax import cache
from emo_jax.data import records
from emo_jax.faces.models import has_models
from emo_jax.media import mp4
from tests import checking

CHECKED = [f"emo_jax.{folder}" for folder in ("models", "ops", "diffusion", "training", "generation")]
"""Packages whose type annotations, array shapes included, are checked at run time in the tests' own process."""

# Installed at import, before any test module imports these packages.
install_import_hook(CHECKED, f"{checking.__name__}.typechecked")

SILENT = (1, 4)

FACE_MODELS = os.environ.get("EMO_FACE_MODELS") or cache.folder() / "models"
"""Where tests.fetch_models puts the model files."""


def pytest_addoption(parser):
    """Adds --deadline, which keeps .ci/run within its time on slow machines."""
    text = "slow tests do not begin after this time, in seconds since 1970; each day they start with another file"
    parser.addoption("--deadline", type=float, help=text)


def pytest_collection_modifyitems(config, items):
    """With a deadline, begins each day with another file, so that no test is always left out."""
    if config.getoption("--deadline") and items:
        files = list(dict.fromkeys(item.path for item in items))
        first = int(time.time() // 86400) * 7 % len(files)
        order = {path: number for number, path in enumerate(files[first:] + files[:first])}
        items.sort(key=lambda item: order[item.path])


def pytest_runtest_setup(item):
    """Skips slow tests after the deadline."""
    deadline = item.config.getoption("--deadline")
    if deadline and time.time() > deadline and item.get_closest_marker("slow"):
        pytest.skip("the time for slow tests is over; make slow runs all of them")


def pytest_configure(config):
    """Sets what holds for all tests and their processes, before JAX is imported.

    They share compiled programs. Faces are found without model files, whether this machine has them or not, except in
    tests that take `face_models`.
    """
    os.environ["EMO_FACE_MODELS"] = os.devnull
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="emo-tests-")
        config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))


@pytest.fixture
def face_models(monkeypatch):
    """The folder of the model files, which are used in this test."""
    if not has_models("yunet", "face_landmarker", "sface", folder=FACE_MODELS):
        pytest.skip("no model files; python -m tests.fetch_models gets them")
    monkeypatch.setenv("EMO_FACE_MODELS", str(FACE_MODELS))
    return str(FACE_MODELS)


@functools.cache  # x264 does not always write the same bytes, so a record is made once
def coded_record(k: int, fps: float) -> records.Record:
    """Record k of 40 + 4k frames: left third 40k bright, rest 40 + 3 * frame; a ramp of sound; speed 100k + frame."""
    count = 40 + 4 * k
    frames = np.full((count, 48, 64, 3), 40 * k, np.uint8)
    frames[:, :, 24:] = 40 + 3 * np.arange(count)[:, None, None, None]
    samples = round(count * 16000 / fps)
    sound = (np.arange(samples) - 20000).astype(np.int16)
    move = np.arange(count)[:, None]
    return records.Record(
        id=f"head-{k}",
        source="tests",
        licence="CC0-1.0",
        video=mp4.encode_video(frames, fps),
        audio=np.zeros(0, np.int16) if k in SILENT else sound,
        fps=fps,
        boxes=np.array([[12.0, 8.0, 30.0, 28.0]]) + 0.25 * move,
        rotation=np.zeros((count, 3)),
        speed=100 * k + np.arange(count),
    )


def _write(directory, fps):
    made = [coded_record(k, fps) for k in range(6)]
    records.write_records(directory, {"train": lambda: made, "test": lambda: made[:1]}, shards=2, progress=False)
    return directory


@pytest.fixture(scope="session")
def record_dir(tmp_path_factory):
    """Six coded records at 25 fps (two without sound) in the split train, one in test."""
    return _write(tmp_path_factory.mktemp("records") / "fps25", 25.0)


@pytest.fixture(scope="session")
def record_dir_30(tmp_path_factory):
    """The same at 30 fps."""
    return _write(tmp_path_factory.mktemp("records") / "fps30", 30.0)


@pytest.fixture(scope="session")
def make_record():
    """Record k of `record_dir`."""
    return lambda k: coded_record(k, 25.0)


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory):
    """Weights of a small EMO, random in every part, that makes 8 frames of 64x64 pixels a segment in two steps."""
    import jax
    from flax.traverse_util import flatten_dict

    from emo_jax.models.emo import build
    from emo_jax.weights.store import save_weights
    from tests.small import small_config

    config = small_config()
    config.sampling.update(steps=2, clips=2, reference_scale=1.5, audio_scale=2.0)
    flat = flatten_dict(build(config).init(jax.random.key(0)), sep="/")
    rng = np.random.default_rng(1)  # parameters that start at zero must take effect too
    flat = {path: a + rng.normal(0, 0.1, np.shape(a)).astype(np.float32) for path, a in flat.items()}
    directory = tmp_path_factory.mktemp("weights") / "small"
    save_weights(directory, config, flat)
    return directory


@pytest.fixture(scope="session")
def pipeline(weights_dir):
    """The pipeline of `weights_dir`: one for all tests, so that its one program is compiled once."""
    from emo_jax.generation.pipeline import EmoPipeline

    return EmoPipeline.from_pretrained(weights_dir)


@pytest.fixture(scope="session")
def talking_records(tmp_path_factory):
    """Five drawn people who talk for 1.2 s, at 80 x 80 pixels and 25 fps."""
    from tests.small import draw_people

    return draw_people(tmp_path_factory.mktemp("talking") / "records", 5, 1.2)

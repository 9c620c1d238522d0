"""Programs and shapes of networks that later processes load from the cache without tracing."""

import importlib.metadata
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax import cache
from emo_jax.diffusion.sampler import Hold
from emo_jax.generation.programs import KeptProgram
from emo_jax.generation.sampler import VideoSampler
from emo_jax.models.conditions import Conditions
from emo_jax.models.emo import EMO, build
from emo_jax.weights import store
from tests.small import small_config

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def program(traces, key="a"):
    """Returns a program that counts its traces; it takes and returns structures of the package, and a random key."""

    def function(conditions, key, scale):
        traces.append(key)
        noise = jax.random.normal(key, conditions.audio.shape)
        return Conditions(audio=conditions.audio * scale), Hold(noise, noise.sum()), None

    return KeptProgram(function, key)


def call(kept, x=X, seed=0):
    return kept(Conditions(audio=x), jax.random.key(seed), np.float32(2))


def test_a_kept_program_is_not_traced_again():
    traces = []
    first = call(program(traces))
    for _ in range(2):
        again = program(traces)
        conditions, hold, none = call(again)
        assert isinstance(conditions, Conditions) and isinstance(hold, Hold) and none is None
        np.testing.assert_array_equal(conditions.audio, 2 * X)
        np.testing.assert_array_equal(hold.mask, first[1].mask)
        np.testing.assert_array_equal(call(again, seed=1)[1].mask, jax.random.normal(jax.random.key(1), X.shape))
        assert again._cache_size() == 1
    assert len(traces) == 1


def test_other_shapes_and_keys_are_other_programs():
    traces = []
    call(program(traces))
    call(program(traces), np.zeros((4, 3), np.float32))
    call(program(traces, "b"))
    assert len(traces) == 3


@pytest.mark.parametrize("package", ["jax", "flax", "numpy"])
def test_another_version_of_a_package_is_another_program(monkeypatch, package):
    traces, version = [], importlib.metadata.version
    call(program(traces))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == package else version(name))
    _forget_sources()
    call(program(traces))
    monkeypatch.undo()
    _forget_sources()
    call(program(traces))
    assert len(traces) == 2


def test_keys_follow_from_the_code_not_from_its_place(tmp_path, monkeypatch):
    """A reinstalled package finds its programs; a changed one does not."""
    entries = []
    for place, changed in (("a", False), ("elsewhere/b", False), ("c", True)):
        copy = tmp_path / place
        shutil.copytree(pathlib.Path(cache.__file__).parent, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        if changed:
            (copy / "models" / "unet.py").write_text("raise SystemExit\n")
        monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
        _forget_sources()
        entries.append(cache.entry("key"))
    monkeypatch.undo()
    _forget_sources()
    assert entries[0] == entries[1] == cache.entry("key") != entries[2]


def _forget_sources():
    cache._sources.cache_clear()


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        (dict(reference_scale=2.0), True),  # an argument of the program
        (dict(audio_scale=4.0, speed=3.0), True),
        (dict(steps=3), False),
        (dict(guidance_rescale=0.5), False),
        (dict(reference_scale=1.0, audio_scale=1.0), False),  # another guidance mode
    ],
)
def test_programs_of_a_sampler_depend_on_what_they_are_compiled_from(changed, is_same):
    config = small_config()
    sampling = {**config.sampling, "reference_scale": 3.0, "audio_scale": 5.0}
    keys = [VideoSampler(build(config), {}, ConfigDict({**sampling, **more}), keep=True)._key for more in ({}, changed)]
    assert (keys[0] == keys[1]) is is_same


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x80\x04N."])
def test_a_damaged_entry_is_compiled_again(folder, damage):
    traces = []
    call(program(traces))
    [path] = folder.glob("emo-*-cache")
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(call(program(traces))[0].audio, 2 * X)
    call(program(traces))
    assert len(traces) == 2


def test_entries_have_the_time_of_use_by_which_jax_evicts_them(folder):
    call(program([]))
    [path] = folder.glob("emo-*-cache")
    used = folder / path.name.replace("-cache", "-atime")
    before = int.from_bytes(used.read_bytes(), "little")
    call(program([]))
    assert int.from_bytes(used.read_bytes(), "little") > before


def test_without_a_cache_nothing_is_kept(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    traces = []
    np.testing.assert_array_equal(call(program(traces))[0].audio, 2 * jnp.asarray(X))
    call(program(traces))
    assert len(traces) == 2 and cache.entry("a") is None and not list(folder.iterdir())


def test_shapes_of_networks_are_not_traced_again(monkeypatch):
    emo = build(small_config())
    shapes = store._shapes(emo)
    assert shapes["vae/scaling_factor"] == () and len(shapes) > 100
    monkeypatch.setattr(EMO, "abstract_params", lambda self: pytest.fail("traced"))
    assert store._shapes(build(small_config())) == shapes
    with pytest.raises(pytest.fail.Exception):
        store._shapes(build(small_config(audio_attention=False)))

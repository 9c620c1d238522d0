"""Weights whose large kernels have 8 bits."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from emo_jax.cli import main as cli
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.models import int8
from emo_jax.models.emo import build
from emo_jax.models.placement import part_variables
from emo_jax.weights.export import export
from emo_jax.weights.store import load_model, nest, read_flat, save_weights
from tests.small import small_config
from tests.steps import FAST, random_params


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same weights in float32 and with kernels in 8 bits."""
    folder = tmp_path_factory.mktemp("int8")
    config = small_config("speed")
    flat = flatten_dict(random_params(build(config)), sep="/")
    save_weights(folder / "floats", config, flat, np.float32)
    arguments = ["--checkpoint", str(folder / "floats"), "-o", str(folder / "int8"), "--dtype", "int8"]
    assert cli.main(["export", *arguments]) == 0
    return folder / "floats", folder / "int8"


def test_values_are_the_nearest_of_255_and_columns_of_zeros_stay_zeros():
    kernel = np.random.default_rng(0).normal(0, [0.01, 1, 30, 0], (3, 3, 40, 4)).astype(np.float32)
    parts = int8.quantise(kernel)
    again = np.asarray(int8.dequantise(parts["int8"], parts["scale"], np.float32))
    assert (np.abs(again - kernel) <= 0.5001 * parts["scale"]).all()
    assert np.abs(parts["int8"]).max((0, 1, 2)).tolist() == [127, 127, 127, 0]


def test_export_has_8_bits_for_kernels_but_not_in_the_autoencoder(folders):
    floats, small = folders
    stored, exact = load_file(small / "model.safetensors"), read_flat(floats)[1]
    kernels = [path.removesuffix("/int8") for path in stored if path.endswith("/int8")]
    assert len(kernels) > 20 and not any(path.startswith("vae/") for path in kernels)
    assert all(stored[f"{path}/int8"].dtype == np.int8 for path in kernels)
    assert all(stored[f"{path}/scale"].dtype == np.float32 for path in kernels)
    assert {a.dtype for path, a in stored.items() if path in exact} == {np.dtype("float16")}
    read = read_flat(small)[1]
    assert read.keys() == exact.keys()
    for path, array in read.items():
        peak = np.abs(np.asarray(exact[path])).max(initial=0)
        assert array.shape == exact[path].shape
        np.testing.assert_allclose(array, exact[path], atol=(0.51 / 127 if path in kernels else 1e-3) * peak + 1e-7)


def test_networks_keep_8_bits_in_memory_and_compute_with_floats(folders):
    emo, params = load_model(folders[1])
    floats = nest(emo, read_flat(folders[1])[1], "floats")
    parts = flatten_dict(params["backbone"], sep="/")
    assert sum(a.dtype == np.int8 for a in parts.values()) > 20
    assert {a.dtype for path, a in parts.items() if not path.endswith("/int8")} == {np.dtype("float32")}
    mine, expected = (part_variables(tree["backbone"], "float32")["params"] for tree in (params, floats))
    for path, array in flatten_dict(mine, sep="/").items():
        np.testing.assert_allclose(array, flatten_dict(expected, sep="/")[path], rtol=1e-6, atol=1e-8, err_msg=path)
    mask = np.ones((1, 64, 64, 1), np.float32)
    locate = functools.partial(jax.jit, compiler_options=FAST)(emo.location)
    np.testing.assert_allclose(locate(params, mask), locate(floats, mask), rtol=1e-4, atol=1e-6)


def test_pipeline_writes_floats(folders, tmp_path):
    EmoPipeline.from_pretrained(str(folders[1])).save_pretrained(tmp_path / "again")
    again, first = read_flat(tmp_path / "again")[1], read_flat(folders[1])[1]
    assert again.keys() == first.keys()
    assert all(np.allclose(again[path], first[path], rtol=1e-6) for path in first)


def test_kernel_without_scale_and_other_formats_are_refused(folders, tmp_path):
    stored = load_file(folders[1] / "model.safetensors")
    path = next(path for path in stored if path.endswith("/int8")).removesuffix("/int8")
    del stored[f"{path}/scale"]
    (tmp_path / "config.json").write_text((folders[1] / "config.json").read_text())
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{path} is missing"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="--dtype int8 has no format 'diffusers'"):
        export(folders[0], tmp_path / "other", "int8", "diffusers")

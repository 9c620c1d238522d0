"""Export to diffusers' layout: components, configs, and loading the export again."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from emo_jax.configs import base
from safetensors.numpy import load_file

from emo_jax.cli import main as cli
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.models.emo import build
from emo_jax.weights import diffusers_folder
from emo_jax.weights.export import export
from emo_jax.weights.store import load_model, load_weights, read_config, save_weights
from tests.runs import python_path
from tests.small import WAV2VEC2, small_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers


@pytest.fixture(scope="module")
def exported(weights_dir, tmp_path_factory):
    """The weights of `weights_dir` in diffusers' layout."""
    folder = tmp_path_factory.mktemp("diffusers") / "model"
    export(weights_dir, folder, "float32", "diffusers")
    return folder


def test_each_component_has_a_folder_and_a_config(exported):
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == "EmoPipeline"
    components = {name: value for name, value in index.items() if isinstance(value, list)}
    assert components["vae"][1] == "VAE" and components["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert set(components) == {path.name for path in exported.iterdir() if path.is_dir()}
    for name in set(components) - {"scheduler"}:
        config = json.loads((exported / name / "config.json").read_text())
        assert config["_class_name"] == components[name][1]
    tensors = load_file(exported / "unet" / "diffusion_pytorch_model.safetensors")
    assert tensors["conv_in.weight"].shape == (16, 4, 3, 3)  # torch's layout: out, in, height, width


def test_standard_vae_is_an_autoencoder_kl(tmp_path):
    config = small_config()
    config.model.vae = base.get_config().model.vae
    config.model.vae.channels = config.model.vae.decoder_channels = (8, 16, 16, 16)
    config.model.vae.groups = 4
    diffusers_folder.save(tmp_path, config, {"vae/scaling_factor": np.float32(0.18215)})
    fields = json.loads((tmp_path / "vae/config.json").read_text())
    assert fields["_class_name"] == "AutoencoderKL" and fields["block_out_channels"] == [8, 16, 16, 16]
    assert np.float32(fields["scaling_factor"]) == np.float32(0.18215)


def test_params_and_config_are_equal_after_loading(weights_dir, exported):
    (config, before), (other, after) = load_weights(weights_dir), load_weights(exported)
    assert other.to_dict() == config.to_dict() == read_config(exported).to_dict()
    assert before.keys() == after.keys()
    for path, array in before.items():
        np.testing.assert_array_equal(array, after[path], err_msg=path)


@pytest.mark.slow
def test_frames_are_equal_after_loading(pipeline, exported):
    rng = np.random.default_rng(0)
    portrait = rng.integers(0, 256, (80, 80, 3), np.uint8)
    inputs = portrait, 0.1 * rng.standard_normal(4000).astype(np.float32)
    options = dict(face_box=(20, 20, 60, 60), seed=1)
    frames = [pipe(*inputs, **options).frames for pipe in (pipeline, EmoPipeline.from_pretrained(exported))]
    np.testing.assert_array_equal(*frames)


def test_audio_encoder_is_a_transformers_folder(tmp_path):
    config = small_config(audio=WAV2VEC2)
    save_weights(tmp_path / "emo", config, random_params(config), np.float32)
    assert (
        cli.main(["export", "--workdir", f"{tmp_path}/emo", "--to=diffusers", "--dtype=float32", "-o", f"{tmp_path}/d"])
        == 0
    )
    folder = tmp_path / "d/audio_encoder"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "wav2vec2"
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    assert extractor["do_normalize"] is True and extractor["sampling_rate"] == 16000
    before, after = load_weights(tmp_path / "emo")[1], load_weights(tmp_path / "d")[1]
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)
    load_model(tmp_path / "d")


def random_params(config):
    """Random params {path: array} of a config."""
    from flax.traverse_util import flatten_dict

    rng = np.random.default_rng(0)
    shapes = flatten_dict(build(config).abstract_params(), sep="/")
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return params | {"vae/scaling_factor": np.float32(0.2)}


def test_only_earlier_exports_are_replaced(exported, weights_dir, tmp_path):
    for format in ("diffusers", "emo", "diffusers"):
        export(weights_dir, tmp_path / "out", "float16", format)
    (tmp_path / "out/unet/mine").write_text("")
    (tmp_path / "out/mine").write_text("")
    with pytest.raises(ValueError, match="mine"):
        export(weights_dir, tmp_path / "out")


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_damaged_file_is_named(exported, tmp_path, name):
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text("{")
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        load_weights(tmp_path / "copy")


@pytest.mark.slow
def test_diffusers_and_transformers_are_imported_only_for_export():
    code = (
        "import sys, emo_jax; from emo_jax import EmoPipeline; EmoPipeline.from_pretrained('small');"
        "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers', 'huggingface_hub')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": python_path(), "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0

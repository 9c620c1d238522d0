"""Outputs of the relatives' own code for small random weights, in the folder shared/reference beside the checkout."""

import functools
import pathlib
import re

import jax
import numpy as np
import pytest
from emo_jax.configs import echomimic, hallo
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from emo_jax.weights.assemble import assemble
from emo_jax.weights.names import to_path

FOLDER = next(
    (p / "shared/reference" for p in pathlib.Path(__file__).parents if (p / "shared/reference").is_dir()), None
)
needs_reference = pytest.mark.skipif(FOLDER is None, reason="there is no shared/reference beside the checkout")


def hallo_config():
    """Returns configs/hallo.py with the sizes of the small networks of the reference."""
    config = hallo.get_config()
    config.model.update(dtype="float32", locator_channels=(16, 32, 64, 128))
    config.model.unet.update(channels=(16, 24, 32, 32), heads=4, groups=8, remat="none")
    config.model.face_embedding.update(size=12, features=20)
    config.model.audio.update(layers=(1, 2, 3), tokens=6, features=28, hidden=16)
    config.model.audio.wav2vec2.update(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    config.model.audio.wav2vec2.update(num_conv_pos_embedding_groups=4, conv_dim=(8,) * 7)
    config.model.vae.update(channels=(8,) * 4, decoder_channels=(8,) * 4, layers=1, groups=4)
    config.clip.update(frames=3, image_size=(128, 128))
    return config


def echomimic_config():
    """Returns configs/echomimic.py with the sizes of the small networks of the reference."""
    config = echomimic.get_config()
    config.model.update(dtype="float32", locator_channels=(4, 8, 12, 16))
    config.model.unet.update(channels=(16, 24, 32, 32), heads=4, groups=8, remat="none")
    config.model.audio.update(steps=2)
    config.model.audio.whisper.update(d_model=12)
    config.model.vae.update(channels=(8,) * 4, decoder_channels=(8,) * 4, layers=1, groups=4)
    config.clip.update(frames=4, image_size=(128, 128))
    return config


def echomimic_params(emo):
    """Returns the params of the small networks from the reference's tensors, and the report."""
    tensors = {name.replace("/", "."): a for name, a in load("echomimic_small_net").items()}
    flat, report = assemble(emo, {"echomimic": ("echomimic", tensors)}, jax.random.key(0))
    return unflatten_dict({path: np.asarray(a, np.float32) for path, a in flat.items()}, sep="/"), report


@functools.cache
def load(name):
    """Returns a file of the reference as float32 arrays."""
    return {key: np.asarray(a, np.float32) for key, a in load_file(FOLDER / f"{name}.safetensors").items()}


def hallo_params(emo):
    """Returns the params of the small networks from the reference's tensors, and the report."""
    sources = {kind: (kind, load(f"hallo_small_{file}")) for kind, file in (("hallo", "net"), ("vae", "vae"))}
    flat, report = assemble(emo, sources, jax.random.key(0))
    return unflatten_dict({path: np.asarray(a, np.float32) for path, a in flat.items()}, sep="/"), report


def video(a):
    """Converts (b, c, f, h, w) to (b, f, h, w, c)."""
    return np.moveaxis(a, 1, -1)


def relative_error(found, expected):
    """Returns the largest error relative to the largest value."""
    found = np.asarray(found, np.float32)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return np.abs(found - expected).max() / np.abs(expected).max()


def regions(truth):
    """Returns the regions of the audio branches at the four levels."""
    levels = [[truth[f"in.mask.{name}.{level}"] for name in ("full", "face", "lip")] for level in range(4)]
    return [np.stack(masks, axis=-1).reshape(1, 16 >> i, 16 >> i, 3) for i, masks in enumerate(levels)]


def layer_of(path):
    """Returns our name of their `down_blocks.0.attentions.1`: down_blocks_0.1."""
    level, layer = path.split(".attentions.")
    return f"{re.sub(r'_blocks.', '_blocks_', level)}.{layer}"


def layer_of_name(name):
    """Returns our name of the layer `down_blocks.0.1` of `record_hallo`'s modules: down_blocks_0.1."""
    return re.sub(r"_blocks\.", "_blocks_", name)


def path_of_module(name, array):
    """Returns our path of a tensor of `record_hallo`'s modules, and the array in our layout."""
    part, rest = name.split(".", 1)
    if rest.startswith("added."):  # ModuleDict names hold slashes
        rest = rest.removeprefix("added.").replace("/", ".")
    rest = rest.removeprefix("unet.").replace("image_embeds.", "proj.")
    path, value = to_path(rest, array)
    return f"{part}/{path}", value


def banks(truth, prefix):
    """Returns the items {module: features} of the arrays whose names begin with a prefix."""
    found = {k.removeprefix(prefix): truth[k] for k in truth if k.startswith(prefix)}
    assert found
    return found.items()

"""A miniature of hallo's files in the layout of the released ones: net.pth, the autoencoder and wav2vec 2.0."""

import json

import numpy as np
from emo_jax.configs import hallo
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from emo_jax.generation.inputs import ASSETS
from emo_jax.models.emo import build
from emo_jax.weights import names
from emo_jax.weights.hallo import BRANCHES, to_name
from emo_jax.weights.wav2vec2 import to_transformers

PORTRAIT = ASSETS / "portrait.png"
WAV2VEC2 = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip


def config(stage="video"):
    """Returns configs/hallo.py with all levels and layers of the released networks, in small."""
    found = hallo.get_config(stage)
    found.model.update(dtype="float32", locator_channels=(4, 4, 8, 8))
    found.model.unet.update(channels=(4, 8, 16, 16), heads=2, groups=4, remat="none")
    found.model.vae.update(channels=(8,) * 4, decoder_channels=(8,) * 4, layers=1, groups=4)
    found.model.face_embedding.update(size=12, features=8)
    found.model.audio.update(layers=(1, 2), tokens=2, features=8, hidden=8)
    found.model.audio.wav2vec2.update(WAV2VEC2)
    found.model.speed.features = 8
    found.clip.update(frames=4, image_size=(64, 64), audio_context=0.2)
    found.sampling.update(steps=2)
    return with_one_step(found)


def with_one_step(config):
    """Gives a config a training of one step; returns it."""
    config.data.num_workers = 0
    # Without warm-up and averaging, one step changes the weights that are read.
    config.train.update(steps=1, batch_size=2, save_every=1, log_every=1, sample_every=0, ema=0.0)
    config.train.optimizer.update(warmup=0, learning_rate=1e-3)
    return config


def draw(rng, path, shape):
    """Draws a parameter in float16: norms close to 1, kernels that keep the scale."""
    if path.endswith("scale") and shape:
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float16)
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 100
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float16)


def tensors():
    """Returns {branch of ours: {path: float16 array}} of random weights."""
    rng = np.random.default_rng(0)
    shapes = flatten_dict(build(config()).abstract_params(), sep="/")
    branches = {}
    for path, leaf in shapes.items():
        branches.setdefault(path.split("/")[0], {})[path] = draw(rng, path, leaf.shape)
    return branches


def net(branches, config):
    """Returns the 2,656 tensors of net.pth by the params of a config: those that we use, and the 192 others."""
    found = dict(to_name(path, a) for branch in BRANCHES.values() for path, a in branches[branch].items())
    everywhere = config.copy_and_resolve_references()
    everywhere.model.temporal_levels = "all"
    for path, leaf in flatten_dict(build(everywhere).abstract_params()["backbone"], sep="/").items():
        if "motion_modules" in path:
            name, array = to_name(f"backbone/{path}", np.broadcast_to(np.float16(0), leaf.shape))
            found.setdefault(name, array)
            if name.endswith("to_q.weight"):
                table = np.broadcast_to(np.float32(0), (1, 32, array.shape[0]))
                found[name.replace("to_q.weight", "pos_encoder.pe")] = table
    last = "reference_unet.up_blocks.3.attentions."
    return found | {n.replace(f"{last}1.", f"{last}2."): a for n, a in found.items() if n.startswith(f"{last}1.")}


def write(folder):
    """Writes the files without net.pth; returns its tensors."""
    branches = tensors()
    (folder / "vae").mkdir(parents=True)
    vae = dict(names.from_path(p.removeprefix("vae/"), a) for p, a in branches["vae"].items() if a.ndim)
    save_file({n: np.ascontiguousarray(a) for n, a in vae.items()}, folder / "vae/diffusion_pytorch_model.safetensors")
    (folder / "vae/config.json").write_text(json.dumps(dict(scaling_factor=0.18215)))
    (folder / "voice").mkdir()
    voice = {p.removeprefix("audio_encoder/"): a for p, a in branches["audio_encoder"].items()}
    save_file(to_transformers(voice), folder / "voice/model.safetensors")
    (folder / "voice/config.json").write_text(json.dumps(WAV2VEC2))
    (folder / "miniature.py").write_text("from tests.weights.hallo_files import config as get_config\n")
    return net(branches, config())

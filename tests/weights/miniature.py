"""A miniature Stable Diffusion and AnimateDiff: configs, files, and `emo convert` of them."""

import json

import numpy as np
from safetensors.numpy import save_file

from emo_jax.cli import main as cli
from tests.parity import cases
from tests.small import small_config


def miniature(stage="image"):
    """The config of the recorded models' sizes."""
    config = small_config(stage)
    config.model.unet.update(channels=cases.CHANNELS, attention=cases.ATTENTION, layers=cases.LAYERS)
    config.model.unet.update(heads=cases.HEADS, groups=cases.GROUPS)
    config.model.vae.update(channels=cases.VAE_CHANNELS, decoder_channels=cases.VAE_CHANNELS, layers=cases.LAYERS)
    config.model.vae.update(groups=cases.VAE_GROUPS, latent_channels=cases.LATENT_CHANNELS, patch=1, shortcut=False)
    config.model.locator_channels = (4, 8)
    config.model.init.reference = "self"  # uses all tensors of the file that fit, so that the way back is exact
    return config


def hearing(stage="image"):
    """The same with the recorded wav2vec 2.0."""
    config = miniature(stage)
    config.model.audio.update(encoder="wav2vec2", layers=(1, 2))
    config.model.audio.wav2vec2.update(cases.WAV2VEC2["base"])
    config.train.update(steps=1, batch_size=2, save_every=1, log_every=1, sample_every=0)
    config.sampling.update(steps=2)
    return config


def write(folder, tensors, file="diffusion_pytorch_model.safetensors", **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / file)
    (folder / "config.json").write_text(json.dumps(config))


def convert(files, *more, sd="sd", config="miniature"):
    config = f"--config={files}/{config}.py"
    return cli.main(["convert", config, "--sd", f"{files}/{sd}", "--output", f"{files}/out", *more])

"""A miniature of EchoMimic's release: the four files, Whisper's file and the autoencoder, in its folders."""

import json

import numpy as np
from emo_jax.configs import echomimic
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from emo_jax.models.emo import build
from emo_jax.weights import names, whisper
from emo_jax.weights.echomimic import VAE, WHISPER, to_name
from tests.weights import torch_files
from tests.weights.hallo_files import draw, with_one_step

SIZES = dict(
    d_model=8, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8, max_source_positions=25
)


def config(stage="video"):
    """Returns configs/echomimic.py with all levels and layers of the released networks, in small."""
    found = echomimic.get_config(stage)
    found.model.update(dtype="float32", locator_channels=(4, 4, 8, 8))
    found.model.unet.update(channels=(4, 8, 16, 16), heads=2, groups=4, remat="none")
    found.model.vae.update(channels=(8,) * 4, decoder_channels=(8,) * 4, layers=1, groups=4)
    found.model.audio.update(layers=(0, 1, 2), steps=4)
    found.model.audio.whisper.update(SIZES)
    found.model.speed.features = 8
    found.clip.update(frames=4, image_size=(64, 64), audio_context=0.1)
    found.sampling.update(steps=2, overlap=1)
    return with_one_step(found)


def openai_names(tensors):
    """Returns the tensors of transformers' encoder by OpenAI's names in float16, with one of the decoder."""
    renamed = {
        "embed_positions.weight": "positional_embedding", "layers.": "blocks.", "self_attn_layer_norm": "attn_ln",
        "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key", "self_attn.v_proj": "attn.value",
        "self_attn.out_proj": "attn.out", "final_layer_norm": "mlp_ln", "fc1": "mlp.0", "fc2": "mlp.2",
        "encoder.layer_norm": "encoder.ln_post",
    }  # fmt: skip
    found = {}
    for name, array in tensors.items():
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        found[name] = array.astype(np.float16)
    return found | {"decoder.positional_embedding": np.zeros((4, 4), np.float16)}


def files():
    """Returns {file: its tensors} of the four files, and {path: array} of the other parts.

    The temporal modules of motion_module.pth have other values than those of denoising_unet.pth, which count.
    """
    rng, branches = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(build(config()).abstract_params(), sep="/").items():
        branches.setdefault(path.split("/")[0], {})[path] = draw(rng, path, leaf.shape)
    parts = layout(branches)
    parts["motion_module"] = {n: a + a.dtype.type(1) for n, a in parts["motion_module"].items()}
    return parts, branches


def layout(branches):
    """Returns {file: its tensors} of the four files by the params: 1,274 + 588 + 570 + 16."""
    parts = {name: {} for name in ("denoising_unet", "motion_module", "reference_unet", "face_locator")}
    for branch in ("backbone", "reference_net", "face_locator"):
        for path, array in branches[branch].items():
            name, value = to_name(path, array)
            file, _, name = name.partition(".")
            parts[file][name] = value
    denoising, reference = parts["denoising_unet"], parts["reference_unet"]
    for name, array in list(denoising.items()):
        if name.endswith("to_q.weight") and "motion_modules" in name:
            table = np.broadcast_to(np.float32(0), (1, 32, array.shape[0]))
            denoising[name.replace("to_q.weight", "pos_encoder.pe")] = table
    parts["motion_module"] = {n: a for n, a in denoising.items() if "motion_modules" in n}
    last = "up_blocks.3.attentions."
    behind = ("proj_out", "attn1", "norm3", ".ff.")
    reference |= {
        n.replace(f"{last}1.", f"{last}2."): a
        for n, a in reference.items()
        if n.startswith(f"{last}1.") and any(part in n for part in behind)
    }
    return parts


def write(folder):
    """Writes a release in float16; returns the tensors of its four files."""
    parts, branches = files()
    for name, tensors in parts.items():
        torch_files.save(folder / f"{name}.pth", tensors)
    (folder / VAE).mkdir()
    vae = dict(names.from_path(p.removeprefix("vae/"), a) for p, a in branches["vae"].items() if a.ndim)
    vae = {name: np.ascontiguousarray(array) for name, array in vae.items()}
    save_file(vae, folder / VAE / "diffusion_pytorch_model.safetensors")
    (folder / VAE / "config.json").write_text(json.dumps(dict(scaling_factor=0.18215)))
    (folder / WHISPER).parent.mkdir()
    encoder = {p.removeprefix("audio_encoder/"): a for p, a in branches["audio_encoder"].items()}
    torch_files.save(folder / WHISPER, openai_names(whisper.to_transformers(encoder)), entry="model_state_dict")
    (folder / "miniature.py").write_text("from tests.weights.echomimic_files import config as get_config\n")
    return parts

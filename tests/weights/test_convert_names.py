"""Tensor names of the original releases of Stable Diffusion and AnimateDiff, and of older files."""

import functools
import re

import jax
import numpy as np
import pytest

from emo_jax.models.emo import build
from emo_jax.weights import names
from emo_jax.weights.assemble import assemble
from emo_jax.weights.store import read_flat
from tests.parity import cases
from tests.weights.miniature import convert, miniature, write

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections

REAL_NAMES = {  # of v1-5-pruned.safetensors and diffusers' copy of it
    "input_blocks.0.0.weight": "conv_in.weight",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.2.1.transformer_blocks.0.norm1.bias": "down_blocks.0.attentions.1.transformer_blocks.0.norm1.bias",
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.11.0.emb_layers.1.weight": "down_blocks.3.resnets.1.time_emb_proj.weight",
    "middle_block.0.out_layers.3.weight": "mid_block.resnets.0.conv2.weight",
    "middle_block.1.proj_in.weight": "mid_block.attentions.0.proj_in.weight",
    "middle_block.2.out_layers.0.bias": "mid_block.resnets.1.norm2.bias",
    "output_blocks.0.0.in_layers.2.weight": "up_blocks.0.resnets.0.conv1.weight",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.5.1.norm.weight": "up_blocks.1.attentions.2.norm.weight",
    "output_blocks.5.2.conv.bias": "up_blocks.1.upsamplers.0.conv.bias",
    "output_blocks.11.1.proj_out.bias": "up_blocks.3.attentions.2.proj_out.bias",
    "out.0.weight": "conv_norm_out.weight",
    "out.2.bias": "conv_out.bias",
}
REAL_VAE_NAMES = {
    "encoder.down.0.block.1.norm1.weight": "encoder.down_blocks.0.resnets.1.norm1.weight",
    "encoder.down.1.block.0.nin_shortcut.bias": "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
    "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
    "encoder.mid.block_1.conv1.weight": "encoder.mid_block.resnets.0.conv1.weight",
    "encoder.mid.attn_1.norm.weight": "encoder.mid_block.attentions.0.group_norm.weight",
    "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.mid.block_2.norm2.bias": "decoder.mid_block.resnets.1.norm2.bias",
    "decoder.up.3.block.0.conv1.weight": "decoder.up_blocks.0.resnets.0.conv1.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    "quant_conv.weight": "quant_conv.weight",
}


def test_names_of_the_original_release_become_those_of_diffusers():
    assert {n: names.ldm_unet(n, 2) for n in REAL_NAMES} == REAL_NAMES
    assert {n: names.ldm_vae(n, 4) for n in REAL_VAE_NAMES} == REAL_VAE_NAMES


def original(kind, tensors):
    """The tensors by the names of the original release: every name that leads to one of diffusers' is tried."""
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    ends = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_norm_out": "out.0",
            "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2"}  # fmt: skip
    if kind == "vae":
        return {f"first_stage_model.{_original_vae(n)}": a[..., None, None] if _is_attention(n, a) else a
                for n, a in tensors.items()}  # fmt: skip
    found = {}
    for name, array in tensors.items():
        module, leaf = name.rsplit(".", 1)
        if module in ends:
            new = ends[module]
        elif match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", module):
            side, block, what, layer, rest = match.groups()
            number = int(block) * (cases.LAYERS + 1) + int(layer) + (side == "down")
            rest = resnet[rest] if what == "resnets" else rest
            new = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(what == 'attentions')}.{rest}"
        elif match := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv", module):
            new = f"input_blocks.{(int(match[1]) + 1) * (cases.LAYERS + 1)}.0.op"
        elif match := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv", module):
            attends = cases.ATTENTION[::-1][int(match[1])]
            new = f"output_blocks.{(int(match[1]) + 1) * (cases.LAYERS + 1) - 1}.{1 + attends}.conv"
        else:
            what, number, rest = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", module).groups()
            new = f"middle_block.1.{rest}" if what == "attentions" else f"middle_block.{2 * int(number)}.{resnet[rest]}"
        found[f"model.diffusion_model.{new}.{leaf}"] = array
    return found


def _is_attention(name, array):
    return array.ndim == 2 and "attentions" in name


def _original_vae(name):
    last = len(cases.VAE_CHANNELS) - 1
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", name)
    name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


@pytest.mark.slow
def test_single_file_of_the_original_release_gives_equal_parameters(files, tensors, capsys):
    single = original("unet", tensors["unet"]) | original("vae", tensors["vae"])
    single["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(3)
    single["model_ema.decay"], single["betas"] = np.float32([1]), np.zeros(3, np.float32)
    write(files, single, "single.safetensors")
    assert convert(files, sd="single.safetensors") == 0
    output = capsys.readouterr().out
    assert all(reason in output for reason in ("text encoder", "averaged copy", "noise schedule"))
    _, flat = read_flat(files / "out")
    wanted, _ = assemble(build(miniature()), {k: (k, tensors[k]) for k in ("unet", "vae")}, jax.random.key(0))
    assert set(flat) == set(wanted)
    for path in flat:
        np.testing.assert_array_equal(flat[path], wanted[path], err_msg=path)


@pytest.mark.slow
def test_older_names_of_vae_and_motion_modules_give_equal_parameters(files, tensors):
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rename = functools.partial(re.sub, r"(attentions\.0\.)(to_\w+(?:\.0)?)", lambda m: m[1] + older[m[2]])
    vae = {rename(name): array for name, array in tensors["vae"].items()}
    assert "encoder.mid_block.attentions.0.query.weight" in vae
    write(files / "other", vae, scaling_factor=0.25)
    motion = {}
    for name, array in tensors["motion"].items():
        name = name.replace(".motion_modules.0.", ".motion_modules.0.temporal_transformer.")
        name = name.replace(".motion_modules.1.", ".motion_modules.1.temporal_transformer.")
        name = re.sub(r"attn([12])", lambda m: f"attention_blocks.{int(m[1]) - 1}", name)
        name = re.sub(r"\.norm([123])\.", lambda m: ".ff_norm." if m[1] == "3" else f".norms.{int(m[1]) - 1}.", name)
        motion[name] = array
    motion["mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"] = (
        np.zeros((1, 24, 16), np.float16)
    )
    write(files, motion, "mm.safetensors")
    assert convert(files, "--vae", f"{files}/other", "--motion", f"{files}/mm.safetensors") == 0
    _, flat = read_flat(files / "out")
    wanted, _ = assemble(build(miniature()), {k: (k, a) for k, a in tensors.items()}, jax.random.key(0), 0.25)
    for path in wanted:
        np.testing.assert_array_equal(flat[path], wanted[path], err_msg=path)

"""Names and array layouts of released weights, for models of any size.

The dotted names of diffusers are the common form. `ldm_unet`, `ldm_vae`, `old_vae` and `animatediff` convert other
names to it; `to_path` and `from_path` convert between it and our params {path: array}, without changing any value.
"""

import re

import numpy as np

TEXT_ATTENTION = r"(?<!motion_modules\.\d\.)transformer_blocks\.0\.(attn2|norm2)\."
"""Stable Diffusion's attention to the prompt. In a temporal module attn2 is the second attention over frames."""

POSITIONS = r"\.?pos_embed\.pe$"
"""AnimateDiff's table of frame positions, which emo_jax computes."""

_NUMBERED = re.compile(
    r"^(down_blocks|up_blocks|attentions|resnets|downsamplers|upsamplers|motion_modules|audio_modules|transformer_blocks|to_out|net|blocks)_(\d+)$"
)


def to_path(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts a diffusers tensor to our path and layout: channels-last kernels, 1x1 convolutions as dense layers."""
    *module, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    # diffusers' VAE attention holds norm and projections side by side; ours wraps the projections.
    if len(module) > 1 and module[-2] == "attentions_0" and module[-1].startswith("to_"):
        module.insert(-1, "attn")
        if array.ndim == 4:
            array = array[:, :, 0, 0]
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
    if array.ndim == 4:  # (out, in, h, w) -> (h, w, in, out)
        array = array.transpose(2, 3, 1, 0)
        if _is_dense(module):
            array = array[0, 0]
    elif array.ndim == 2:
        array = array.T
    return "/".join([*module, leaf]), array


def _is_dense(module: list[str]) -> bool:
    """Returns whether a layer is a 1x1 convolution there and dense here: those in and around a transformer."""
    return module[-1] in ("proj_in", "proj_out") or module[-1].startswith("zero_conv_")


def from_path(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts one of our parameters to the name and layout of diffusers: the inverse of `to_path`."""
    *module, leaf = path.split("/")
    if leaf == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if _is_dense(module) and not any(part.startswith("motion_modules_") for part in module):
            array = array[:, :, None, None]
    module = [_NUMBERED.sub(r"\1.\2", part) for part in module if part != "attn"]
    return ".".join([*module, "bias" if leaf == "bias" else "weight"]), array


# ---- other names to those of diffusers

_LDM_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_LDM_ENDS = {
    "input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip


def ldm_unet(name: str, layers: int) -> str:
    """Returns the diffusers name of a tensor of the original UNet.

    Args:
        name: its name without `model.diffusion_model.`.
        layers: number of layers of each level.
    """
    for old, new in _LDM_ENDS.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    if match := re.match(r"middle_block\.([012])\.(.*)", name):
        part, rest = int(match[1]), match[2]
        return f"mid_block.attentions.0.{rest}" if part == 1 else f"mid_block.resnets.{part // 2}.{_ldm_resnet(rest)}"
    if match := re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", name):
        side, number, part, rest = match[1], int(match[2]), int(match[3]), match[4]
        block, layer = divmod(number - (side == "input"), layers + 1)
        level = f"{'down' if side == 'input' else 'up'}_blocks.{block}"
        if rest.startswith("op."):
            return f"{level}.downsamplers.0.conv{rest.removeprefix('op')}"
        if part and rest.startswith("conv."):
            return f"{level}.upsamplers.0.{rest}"
        return f"{level}.attentions.{layer}.{rest}" if part else f"{level}.resnets.{layer}.{_ldm_resnet(rest)}"
    return name


def _ldm_resnet(rest: str) -> str:
    head, tail = rest.rsplit(".", 1)
    return f"{_LDM_RESNET.get(head, head)}.{tail}"


def ldm_vae(name: str, levels: int) -> str:
    """Returns the diffusers name of a tensor of the original autoencoder.

    Args:
        name: its name without `first_stage_model.`.
        levels: number of levels.
    """
    name = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    name = name.replace(".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm.")
    name = re.sub(r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1.", name)
    name = name.replace(".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0.")
    name = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", name)
    name = re.sub(r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets.", name)
    name = re.sub(r"\.up\.(\d+)\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", name)
    return name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")


_OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def old_vae(name: str) -> str:
    """Returns the current diffusers name of a VAE tensor; older files name attention layers differently."""
    return re.sub(r"(attentions\.0)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_OLD_VAE[m[2]]}.", name)


def animatediff(name: str) -> str:
    """Returns the diffusers name of a tensor of AnimateDiff's files (mm_sd_v15*.ckpt)."""
    name = name.removeprefix("module.").replace(".temporal_transformer.", ".")
    name = re.sub(r"attention_blocks\.([01])\.", lambda m: f"attn{int(m[1]) + 1}.", name)
    name = re.sub(r"\.norms\.([01])\.", lambda m: f".norm{int(m[1]) + 1}.", name)
    return name.replace(".ff_norm.", ".norm3.").replace("pos_encoder.pe", "pos_embed.pe")


_TEMPORAL = ((r"attn([12])\.", lambda m: f"attention_blocks.{int(m[1]) - 1}."),
             (r"norm([12])\.", lambda m: f"norms.{int(m[1]) - 1}."), (r"norm3\.", lambda _: "ff_norm."))  # fmt: skip


def to_animatediff(name: str) -> str:
    """Returns the name in AnimateDiff's files of a diffusers tensor: the inverse of `animatediff`."""
    if ".motion_modules." in name:
        name = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name)
        for pattern, replacement in _TEMPORAL:
            name = re.sub(pattern, replacement, name)
    return name

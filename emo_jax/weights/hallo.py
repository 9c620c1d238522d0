"""hallo's net.pth: names of its tensors, and those that are not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emo_jax.weights import names
from emo_jax.weights.files import read_tensors
from emo_jax.weights.hub import download_file, is_hub_id

BRANCHES = {
    "denoising_unet": "backbone",
    "reference_unet": "reference_net",
    "face_locator": "face_locator",
    "imageproj": "face_projector",
    "audioproj": "audio_projector",
}
"""{first part of a tensor's name: branch of the params tree}."""
FILLS = rf"({'|'.join(BRANCHES.values())})/(?!.*/(speed_attn|norm_speed)/)"
"""Pattern of the parameters that net.pth must fill."""
UNUSED = {
    r"pos_encoder\.pe$": "positions of frames, which are computed",
    r"denoising_unet\.(down_blocks\.3|up_blocks\.0)\.motion_modules\.": "temporal modules that hallo never runs",
    r"reference_unet\.up_blocks\.3\.attentions\.2\.(proj_out|transformer_blocks\.0\.(attn|norm[23]|ff))": (
        "layers behind the last feature that is used"
    ),
}
"""{pattern of names: why these tensors are not used}."""
_FILES = ("net.pth", "hallo/net.pth", "hallo.safetensors")


def read_net(source: str) -> tuple[str, dict[str, np.ndarray]]:
    """Reads hallo's weights.

    Args:
        source: net.pth, a folder with it, or a hub id, of which hallo/net.pth is downloaded.

    Returns:
        The file, and {name: array}.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} has no net.pth; give hallo's net.pth or the folder that holds it")
        path = found[0]
    elif not path.exists():
        if not is_hub_id(source):
            raise ValueError(f"{source} does not exist; give hallo's net.pth, its folder, or fudan-generative-ai/hallo")
        path = download_file(source, "hallo/net.pth")
    return str(path), read_tensors(path)


def to_path(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts a tensor of net.pth to our path and layout; the path of an unknown tensor has no branch."""
    branch, _, rest = name.partition(".")
    path, value = names.to_path(names.animatediff(rest) if ".motion_modules." in name else rest, array)
    return f"{BRANCHES.get(branch, branch)}/{path}", value


def to_name(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts one of our parameters to the name and layout of net.pth: the inverse of `to_path`."""
    branch, rest = path.split("/", 1)
    name, value = names.from_path(rest, array)
    return f"{({ours: theirs for theirs, ours in BRANCHES.items()})[branch]}.{names.to_animatediff(name)}", value

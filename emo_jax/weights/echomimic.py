"""EchoMimic v1's files: names of their tensors, and those that are not used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from emo_jax.weights import names
from emo_jax.weights.files import read_tensors
from emo_jax.weights.hub import download_file, is_hub_id

BRANCHES = {"denoising_unet": "backbone", "reference_unet": "reference_net", "face_locator": "face_locator"}
"""{first part of a tensor's name, after its file: branch of the params tree}."""
FILLS = rf"({'|'.join(BRANCHES.values())})/(?!.*/(speed_attn|norm_speed)/)"
"""Pattern of the parameters that the files must fill."""
UNUSED = {
    r"pos_encoder\.pe$": "positions of frames, which are computed",
    r"reference_unet\.up_blocks\.3\.attentions\.2\.(proj_out|transformer_blocks\.0\.(attn1|norm3|ff))\.": (
        "layers behind the last feature that is used"
    ),
}
"""{pattern of names: why these tensors are not used}."""
EXTRA = {r"denoising_unet\.": "no part of the networks; EchoMimic's own code skips such tensors, too"}
"""{pattern of names: why unknown tensors are not used}; others raise."""
_FILES = "denoising_unet", "motion_module", "reference_unet", "face_locator"
_ACCELERATED = ("denoising_unet", "motion_module")
"""The files that the accelerated weights replace; their names end in _acc."""
_CONVERTED = "echomimic.safetensors"
"""The file that `emo convert --to safetensors` writes."""
WHISPER, VAE = "audio_processor/whisper_tiny.pt", "sd-vae-ft-mse"
"""Where the release has Whisper's encoder and the autoencoder."""


def read_set(source: str, accelerated: bool = False) -> tuple[str, dict[str, np.ndarray]]:
    """Reads EchoMimic's weights.

    The denoising network's file may hold the temporal modules as well; it then has priority, as in EchoMimic's code.

    Args:
        source: the folder of the four files, or a hub id, of which they are downloaded.
        accelerated: whether to read the weights for six steps without guidance.

    Returns:
        The source, and {FILE.NAME: array}.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if (Path(source) / _CONVERTED).is_file():
        return source, read_tensors(Path(source) / _CONVERTED)
    tensors: dict[str, np.ndarray] = {}
    motion: dict[str, np.ndarray] = {}
    for stem in _FILES:
        name = f"{stem}_acc.pth" if accelerated and stem in _ACCELERATED else f"{stem}.pth"
        found = read_tensors(locate_file(source, name))
        if stem == "motion_module":
            motion = {f"denoising_unet.{name.removeprefix('module.')}": array for name, array in found.items()}
        else:
            tensors |= {f"{stem}.{name}": array for name, array in found.items()}
    return source, motion | tensors


def locate_file(source: str, name: str) -> Path:
    """Returns a file of a release: in a folder, or downloaded from the hub.

    Raises:
        ValueError: there is no such file, or no such folder.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give the folder of EchoMimic's files")
        return folder / name
    if folder.exists() or not is_hub_id(source):
        raise ValueError(f"{source} is no folder; give the folder of EchoMimic's files, or BadToBest/EchoMimic")
    return download_file(source, name)


def find_vae(source: str) -> str | None:
    """Returns the autoencoder in the folder of a release, or None."""
    path = Path(source) / VAE
    return str(path) if path.is_dir() else None


def find_encoder(source: str) -> str | None:
    """Returns Whisper's file in the folder or at the hub id of a release; None in a folder without it."""
    path = Path(source) / WHISPER
    if path.is_file():
        return str(path)
    return None if Path(source).exists() or not is_hub_id(source) else str(download_file(source, WHISPER))


_VOICE = ((r"\.attn2\.", ".audio_attn."), (r"\.norm2\.", ".norm_audio."))


def to_path(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts a tensor to our path and layout; the path of an unknown tensor has no branch."""
    branch, _, rest = name.partition(".")
    if ".motion_modules." in name:
        rest = names.animatediff(rest)
    elif ".attentions." in name:
        for theirs, ours in _VOICE:
            rest = re.sub(theirs, ours, rest)
    path, value = names.to_path(rest, array)
    return f"{BRANCHES.get(branch, branch)}/{path}", value


def to_name(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts one of our parameters to its file, name and layout: the inverse of `to_path`."""
    branch, rest = path.split("/", 1)
    name, value = names.from_path(rest, array)
    name = name.replace(".audio_attn.", ".attn2.").replace(".norm_audio.", ".norm2.")
    return f"{({ours: theirs for theirs, ours in BRANCHES.items()})[branch]}.{names.to_animatediff(name)}", value

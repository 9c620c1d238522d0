"""Sources of weights: folders in diffusers' layout, single files of the original releases, and the hub."""

import pathlib
import re

import numpy as np

from emo_jax.weights import names
from emo_jax.weights.files import find_weights, read_scaling_factor, read_tensors
from emo_jax.weights.hub import locate

Source = tuple[str, dict[str, np.ndarray]]
"""Where tensors come from, and the tensors by diffusers names."""

_SINGLE = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
_UNUSED = {
    r"^cond_stage_model\.": "text encoder; EMO has no prompt",
    r"^model_ema\.": "second, averaged copy of the UNet",
    r"": "noise schedule, which is computed",
}


def stable_diffusion(source: str, layers: int, levels: int) -> tuple[dict[str, Source], float | None, dict[str, str]]:
    """Reads Stable Diffusion 1.5: a folder in diffusers' layout, a hub id, or a single file of the original release.

    Args:
        source: the folder, hub id or file.
        layers: number of layers of each level of the UNet, on which the names of a single file depend.
        levels: number of levels of the VAE, likewise.

    Returns:
        {"unet": source, "vae": source}, the scaling factor of the VAE or None, and {name: reason} of the tensors in a
        single file that EMO does not use.

    Raises:
        ValueError: the path does not exist or holds something else.
    """
    path = locate(source, ["unet", "vae"])
    if path.is_dir():
        found = {"unet": _folder(path / "unet")}
        if (path / "vae").is_dir():
            found["vae"] = _folder(path / "vae")
        return found, read_scaling_factor(path / "vae"), {}
    tensors = read_tensors(path)
    parts = {kind: {n.removeprefix(p): a for n, a in tensors.items() if n.startswith(p)} for kind, p in _SINGLE.items()}
    if not parts["unet"]:
        raise ValueError(f"{path} holds no {_SINGLE['unet']}*; expected a checkpoint of Stable Diffusion 1.5")
    rest = [n for n in tensors if not n.startswith(tuple(_SINGLE.values()))]
    unused = {n: next(why for pattern, why in _UNUSED.items() if re.match(pattern, n)) for n in rest}
    found = {"unet": (str(path), {names.ldm_unet(n, layers): a for n, a in parts["unet"].items()})}
    if parts["vae"]:
        found["vae"] = (str(path), {names.ldm_vae(n, levels): a for n, a in parts["vae"].items()})
    return found, None, unused


def autoencoder(source: str, levels: int) -> tuple[Source, float | None]:
    """Reads an autoencoder: its source, and its scaling factor or None.

    Raises:
        ValueError: the path does not exist or holds something else.
    """
    path = locate(source, [""])
    origin, tensors = _folder(path) if path.is_dir() else (str(path), read_tensors(path))
    scale = read_scaling_factor(path) if path.is_dir() else None
    return (origin, {names.ldm_vae(names.old_vae(n), levels): a for n, a in tensors.items()}), scale


def motion_module(source: str) -> Source:
    """Reads a motion module of AnimateDiff.

    Raises:
        ValueError: the path does not exist or holds something else.
    """
    path = locate(source, [""])
    origin, tensors = _folder(path) if path.is_dir() else (str(path), read_tensors(path))
    return origin, {names.animatediff(n): a for n, a in tensors.items()}


def _folder(folder: pathlib.Path) -> Source:
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; expected a folder in diffusers' layout")
    file = find_weights(folder)
    return str(file), {names.old_vae(n): a for n, a in read_tensors(file).items()}

"""Where weights come from: folders of diffusers, single files of the original releases, or the hub."""

import re

from emo_jax.weights import names
from emo_jax.weights.files import find_weights, read_config, read_tensors
from emo_jax.weights.hub import locate

_SINGLE = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
_NOT_OURS = {
    r"^cond_stage_model\.": "the text encoder; EMO has no prompt",
    r"^model_ema\.": "a second, averaged copy of the UNet",
    r"": "the noise schedule, which is computed",
}


def stable_diffusion(path, layers, levels):
    """Reads Stable Diffusion 1.5: a folder in diffusers' layout, a hub id, or a single file of the original release.

    Args:
        path: the folder, hub id or file.
        layers: number of layers of each level of the UNet, on which the names of a single file depend.
        levels: number of levels of the VAE, likewise.

    Returns:
        ({"unet": (origin, tensors), "vae": ...} by diffusers' names, the VAE's scaling factor or None,
        {name: reason} of the tensors of a single file that EMO has no use for).

    Raises:
        ValueError: nothing there, or not such a file.
    """
    path = locate(path, ["unet", "vae"])
    if path.is_dir():
        found = {"unet": _folder(path / "unet")}
        if (path / "vae").is_dir():
            found["vae"] = _folder(path / "vae")
        return found, read_config(path / "vae").get("scaling_factor"), {}
    tensors = read_tensors(path)
    parts = {kind: {n.removeprefix(p): a for n, a in tensors.items() if n.startswith(p)} for kind, p in _SINGLE.items()}
    if not parts["unet"]:
        raise ValueError(f"{path} holds no {_SINGLE['unet']}*; expected a checkpoint of Stable Diffusion 1.5")
    rest = [n for n in tensors if not n.startswith(tuple(_SINGLE.values()))]
    unused = {n: next(why for pattern, why in _NOT_OURS.items() if re.match(pattern, n)) for n in rest}
    found = {"unet": (str(path), {names.ldm_unet(n, layers): a for n, a in parts["unet"].items()})}
    if parts["vae"]:
        found["vae"] = (str(path), {names.ldm_vae(n, levels): a for n, a in parts["vae"].items()})
    return found, None, unused


def autoencoder(path, levels):
    """The VAE alone: (origin, tensors) by diffusers' names and its scaling factor, or None. Raises ValueError."""
    path = locate(path, [""])
    origin, tensors = _folder(path) if path.is_dir() else (str(path), read_tensors(path))
    scale = read_config(path).get("scaling_factor") if path.is_dir() else None
    return (origin, {names.ldm_vae(names.old_vae(n), levels): a for n, a in tensors.items()}), scale


def motion_module(path):
    """AnimateDiff's motion module: (origin, tensors) by diffusers' names. Raises ValueError."""
    path = locate(path, [""])
    origin, tensors = _folder(path) if path.is_dir() else (str(path), read_tensors(path))
    return origin, {names.animatediff(n): a for n, a in tensors.items()}


def _folder(folder):
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; expected a folder in diffusers' layout")
    file = find_weights(folder)
    return str(file), {names.old_vae(n): a for n, a in read_tensors(file).items()}

"""Files on the Hugging Face hub. Downloads are cached by huggingface_hub, which also works offline from its cache."""

from __future__ import annotations

import pathlib
import re

from emo_jax.weights.files import STEMS, SUFFIXES


def is_hub_id(text: str) -> bool:
    """Returns whether a text has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def download_model(hub_id: str) -> pathlib.Path:
    """Downloads a model that `emo export` wrote, and returns its folder.

    Raises:
        ValueError: there is no such model, or the hub cannot be reached.
    """
    return _download(hub_id, ["*.json", "*.safetensors"])


def download_file(hub_id: str, name: str) -> pathlib.Path:
    """Downloads one file of a hub id, and returns its path.

    Raises:
        ValueError: there is no such file, or the hub cannot be reached.
    """
    path = _download(hub_id, [name]) / name
    if not path.is_file():
        raise ValueError(f"{hub_id} has no {name} on the hub; give another id, or the file")
    return path


def locate(path: str, folders: list[str]) -> pathlib.Path:
    """Returns a local path, or the local copy of a hub id.

    Args:
        path: a file, a folder, or a hub id.
        folders: the folders of a hub id to download: their configs, and of the weight files the one that
            `find_weights` takes.

    Raises:
        ValueError: neither a path nor a hub id, or the hub cannot be reached.
    """
    local = pathlib.Path(path)
    if local.exists():
        return local
    if not is_hub_id(path):
        raise ValueError(f"{path} does not exist; give a file, a folder or a hub id such as owner/name")
    for folder in folders:
        local = _download_component(path, folder)
    return local


def _download_component(hub_id: str, folder: str) -> pathlib.Path:
    configs = [pathlib.PurePosixPath(folder, name) for name in ("config.json", "preprocessor_config.json")]
    local = pathlib.Path()
    for suffix in SUFFIXES:
        files = [pathlib.PurePosixPath(folder, stem + suffix) for stem in STEMS]
        local = _download(hub_id, [str(file) for file in configs + files])
        if any((local / file).is_file() for file in files):
            break
    return local


def _download(hub_id: str, patterns: list[str]) -> pathlib.Path:
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # of httpx, of huggingface_hub, or OSError
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{hub_id} is no local path, and the hub does not provide it ({type(error).__name__}: {reason}); check the "
            "name and the network, or download the files and give their folder"
        ) from error

"""Released weights to a checkpoint that training starts from, and back."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from emo_jax import config as config_lib
from emo_jax.files import atomic_folder, atomic_write
from emo_jax.tables import format_table

if TYPE_CHECKING:
    from emo_jax.models.emo import EMO
    from emo_jax.weights.assemble import Report


def to_checkpoint(
    output: str,
    config: ConfigDict | None,
    *,
    sd: str | None = None,
    vae: str | None = None,
    motion: str | None = None,
    audio: str | None = None,
    hallo: str | None = None,
    echomimic: str | None = None,
    accelerated: bool = False,
    seed: int = 0,
) -> None:
    """Writes files of weights as a checkpoint, and prints which tensors are not used and which parameters are new.

    Args:
        output: the folder to write. It must not exist, or be empty.
        config: the config of the networks; None: that of `hallo` or `echomimic`.
        sd: Stable Diffusion 1.5: a diffusers folder, a hub id, or a single file.
        vae: an autoencoder in place of that of `sd`.
        motion: AnimateDiff's motion module.
        audio: wav2vec 2.0 or Whisper: a transformers folder or a hub id, or Whisper's tiny.pt.
        hallo: net.pth of hallo, the folder that holds it, or a hub id.
        echomimic: the folder of EchoMimic's files, or a hub id.
        accelerated: whether to read EchoMimic's weights for six steps without guidance.
        seed: seed of the parameters that no file holds.

    Raises:
        ValueError: files that do not fit the config, or an output that exists.
        OSError: the checkpoint cannot be written; nothing of it is left.
    """
    import jax

    from emo_jax.models.emo import build
    from emo_jax.weights.assemble import assemble

    if hallo or echomimic:
        config = config or config_lib.parse([f"--config={relative_config(hallo, accelerated)}"])
        vae, audio = _relative_sources(config, hallo, echomimic, dict(sd=sd, motion=motion, vae=vae, audio=audio))
    if config is None:
        raise ValueError("no config given; add --config, for example --config base")
    folder = pathlib.Path(output).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists; give a new folder")
    if os.path.ismount(folder):
        raise ValueError(f"{folder} is a mount point, which cannot be replaced; give a new folder in it")
    if not (sd or vae or motion or audio or hallo or echomimic):
        raise ValueError("nothing to convert; give --sd, --vae, --motion, --audio, --hallo or --echomimic")
    if accelerated and not echomimic:
        raise ValueError("--accelerated is given without --echomimic, whose weights it chooses; leave it out")
    sources, scaling_factor, unused = _read_sources(config, sd, vae, motion)
    if hallo or echomimic:
        sources |= _read_relative(hallo, echomimic, accelerated)
    emo, key = build(config), jax.random.key(seed)
    flat, report = assemble(emo, sources, key, scaling_factor or 0.18215, _read_audio_encoder(audio, emo))
    if "unet" in report.unused:
        report.unused["unet"] |= unused
    print(format_report(report))
    _write_run(folder, config, flat)
    size = sum(np.asarray(array).nbytes for array in flat.values())
    print(f"{output}: {len(flat)} parameters, {size / 1e9:.2f} GB")


def relative_config(hallo: str | None, accelerated: bool) -> str:
    """Returns the name of the config of released weights: hallo's, or one of EchoMimic's."""
    return "hallo" if hallo else "echomimic_acc" if accelerated else "echomimic"


def _relative_sources(
    config: ConfigDict, hallo: str | None, echomimic: str | None, others: dict[str, str | None]
) -> tuple[str | None, str | None]:
    """Returns the sources of the autoencoder and the audio encoder that go with hallo's or EchoMimic's weights.

    The folder of EchoMimic's release may hold both.

    Raises:
        ValueError: the other sources or the config do not go with these weights.
    """
    from emo_jax.weights.echomimic import find_encoder, find_vae

    if hallo and echomimic:
        raise ValueError("--hallo and --echomimic are given; convert one of them")
    option = "--hallo" if hallo else "--echomimic"
    for name in ("sd", "motion"):
        if others[name]:
            raise ValueError(f"--{name} is given with {option}, which holds these weights; leave it out")
    vae = others["vae"] or (find_vae(echomimic) if echomimic else None)
    audio = others["audio"] or (find_encoder(echomimic) if echomimic else None)
    for name, value, example in (
        ("vae", vae, "stabilityai/sd-vae-ft-mse"),
        ("audio", audio, "openai/whisper-tiny" if echomimic else "facebook/wav2vec2-base-960h"),
    ):
        if not value:
            raise ValueError(f"--{name} is missing; {option} needs it, for example --{name} {example}")
    if hallo and not config.model.audio_branches:
        raise ValueError("model.audio_branches is False in the config; expected that of configs/hallo.py with --hallo")
    if echomimic and config.model.audio.encoder != "whisper":
        raise ValueError(
            f"model.audio.encoder is {config.model.audio.encoder!r} in the config; expected that of "
            "configs/echomimic.py with --echomimic"
        )
    return vae, audio


def _write_run(folder: pathlib.Path, config: ConfigDict, flat: dict[str, Any]) -> None:
    from emo_jax.weights.runs import save_weights_as_run

    try:
        with atomic_folder(folder) as partial:
            save_weights_as_run(partial, config, flat)
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore reports a full disk as a ValueError
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{folder} cannot be written ({reason}); make room, or choose another folder") from error


def _read_sources(
    config: ConfigDict, sd: str | None, vae: str | None, motion: str | None
) -> tuple[dict[str, Any], float | None, dict[str, str]]:
    """Returns the sources of `assemble`, the VAE's scaling factor, and the unused tensors of a single file."""
    from emo_jax.weights import sources

    for path in filter(None, (sd, vae, motion)):
        print(f"reading {path}", file=sys.stderr, flush=True)
    tensors, scaling_factor, unused = {}, None, {}
    levels = len(config.model.vae.channels)
    if sd:
        tensors, scaling_factor, unused = sources.stable_diffusion(sd, config.model.unet.layers, levels)
    if vae:
        tensors["vae"], scaling_factor = sources.autoencoder(vae, levels)
    if motion:
        tensors["motion"] = sources.motion_module(motion)
    return tensors, scaling_factor, unused


def _read_relative(hallo: str | None, echomimic: str | None, accelerated: bool) -> dict[str, Any]:
    """Returns the source of `assemble` with hallo's or EchoMimic's weights."""
    from emo_jax.weights.echomimic import read_set
    from emo_jax.weights.hallo import read_net

    print(f"reading {hallo or echomimic}", file=sys.stderr, flush=True)
    return {"hallo": read_net(hallo)} if hallo else {"echomimic": read_set(str(echomimic), accelerated)}


def _read_audio_encoder(path: str | None, emo: EMO) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Returns the flat params of an audio encoder and its unused tensors {name: reason}; None without a path.

    Raises:
        ValueError: the config has no audio encoder, or one of other sizes.
    """
    from emo_jax.models.whisper import WhisperEncoder
    from emo_jax.weights.hub import locate
    from emo_jax.weights.wav2vec2 import load_wav2vec2
    from emo_jax.weights.whisper import load_whisper

    if path is None:
        return None
    if emo.audio_encoder is None:
        raise ValueError("--audio is given, but the config has no audio encoder; set model.audio.encoder=wav2vec2")
    if isinstance(emo.audio_encoder, WhisperEncoder):
        return load_whisper(locate(path, [""]), emo.audio_encoder.config)
    loaded, flat, unused = load_wav2vec2(locate(path, [""]))
    for field in dataclasses.fields(loaded):
        value, expected = (getattr(config, field.name) for config in (loaded, emo.audio_encoder.config))
        if field.name != "dtype" and value != expected:
            raise ValueError(f"{path} has {field.name} {value}; set model.audio.wav2vec2.{field.name}, now {expected}")
    return flat, unused


def format_report(report: Report) -> str:
    """Formats what happened to every tensor and parameter; equal cases share a line."""
    lines = []
    for kind, count in report.used.items():
        unused = report.unused[kind]
        lines.append(f"{kind}: {count} tensors used, {len(unused)} not used")
        for reason, number in Counter(unused.values()).items():
            example = next(name for name, why in unused.items() if why == reason)
            lines.append(f"  not used: {number} ({example}, ...): {reason}")
    groups = {}
    for path, start in report.new.items():
        groups.setdefault((path.split("/")[0], start.split(" of ")[0]), []).append(path)
    for (branch, start), paths in groups.items():
        lines.append(
            f"  new in {branch}: {len(paths)} start as {start} ({paths[0]}{', ...' if len(paths) > 1 else ''})"
        )
    return "\n".join(lines)


def to_safetensors(checkpoint: str, output: str) -> None:
    """Writes a checkpoint as OUTPUT/{unet,vae,motion,audio}.safetensors, with the names of diffusers and transformers.

    The numbers are not changed. ReferenceNet, which no such file holds, is left out.

    Args:
        checkpoint: a run of `emo train`, or a folder of `emo convert` or `emo export`.
        output: the folder to write to.

    Raises:
        ValueError: no such checkpoint.
    """
    from emo_jax.weights.assemble import KINDS
    from emo_jax.weights.files import save_tensors
    from emo_jax.weights.store import read_flat

    config, flat = read_flat(checkpoint)
    relative = _relative_kind(config)
    kinds = (*KINDS, "audio") if relative is None else (relative, "vae", "audio")
    if relative is None:
        flat = {path: array for path, array in flat.items() if not path.startswith("reference_net/")}
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:  # One at a time: memory holds a kind twice while it is written.
        tensors = file_tensors(flat, kind, config.model.audio.encoder)
        if tensors:
            with atomic_write(folder / f"{kind}.safetensors") as partial:
                save_tensors(partial, tensors)
            print(f"{folder / kind}.safetensors: {len(tensors)} tensors", flush=True)


def _relative_kind(config: ConfigDict) -> str | None:
    """Returns the kind of file that holds a released relative's networks; None for EMO's."""
    if config.model.get("audio_branches", False):
        return "hallo"
    is_echomimic = config.model.reference_attention == "shared" and not config.model.audio.get("projected", True)
    return "echomimic" if is_echomimic else None


def file_tensors(flat: dict[str, Any], kind: str, encoder: str = "wav2vec2") -> dict[str, np.ndarray]:
    """Returns the tensors {name: array} of one kind of file; empty if the params have none.

    Args:
        flat: the params {path: array}.
        kind: a kind of `assemble`, or "audio".
        encoder: the config's `model.audio.encoder`.
    """
    from emo_jax.weights import wav2vec2, whisper
    from emo_jax.weights.assemble import disassemble

    if kind != "audio":
        return disassemble(flat, kind)
    params = {p.removeprefix("audio_encoder/"): a for p, a in flat.items() if p.startswith("audio_encoder/")}
    return whisper.to_transformers(params) if encoder == "whisper" else wav2vec2.to_transformers(params)


def describe(checkpoint: str | None, config: ConfigDict | None) -> str:
    """Formats a table of a model's parts: tensors, parameters, types, megabytes and the stages that train each.

    Args:
        checkpoint: a run or folder of weights to describe; None: describe the config.
        config: the config to describe without a checkpoint.

    Raises:
        ValueError: neither is given, or no such checkpoint.
    """
    from emo_jax.models.emo import build
    from emo_jax.weights.assemble import parts
    from emo_jax.weights.store import read_flat

    flat = {}
    if checkpoint:
        config, flat = read_flat(checkpoint)
    elif config is None:
        raise ValueError("nothing to describe; give --checkpoint or --config")
    rows = parts(build(config), flat)
    cells = [(part, str(n), f"{size:,}", dtype, f"{mb:.1f}", stages) for part, n, size, dtype, mb, stages in rows]
    _, tensors, size, _, mb, _ = zip(*rows, strict=True)
    cells.append(("total", str(sum(tensors)), f"{sum(size):,}", "", f"{sum(mb):.1f}", ""))
    return format_table(cells, ("part", "tensors", "parameters", "dtype", "MB", "trained in"), "<>><>")

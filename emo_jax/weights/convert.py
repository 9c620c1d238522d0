"""`emo convert`: the weights that people have -> a checkpoint that training starts from, and back.

emo convert --config configs/base.py --sd stable-diffusion-v1-5 --motion mm_sd_v15_v2.ckpt \
    --audio facebook/wav2vec2-base-960h --output runs/sd15
emo train   --config configs/base.py:image --workdir runs/image --config.train.init_from=runs/sd15
emo convert --to safetensors --checkpoint runs/sd15 --output files
emo convert --describe --config configs/base.py
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections import Counter

import numpy as np

from emo_jax.files import whole_folder


def to_checkpoint(args, config) -> None:
    """Files -> checkpoint, with a report of every tensor that is not used and every parameter that is new.

    Raises:
        ValueError: files that do not fit the config, or an output that is there already.
        OSError: the checkpoint cannot be written; nothing is left of it.
    """
    import jax

    from emo_jax.models.emo import build
    from emo_jax.weights.assemble import assemble

    if config is None:
        raise ValueError("no config given; add --config configs/base.py")
    output = pathlib.Path(args.output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already; give a new folder")
    if os.path.ismount(output):
        raise ValueError(f"{output} is a mount point, which cannot be put in place whole; give a new folder in it")
    found, scale, rest = read_sources(args, config)
    emo, key = build(config), jax.random.key(args.seed)
    flat, report = assemble(emo, found, key, scale or 0.18215, read_hearing(args.audio, emo))
    if "unet" in report.unused:
        report.unused["unet"] |= rest
    print_report(report)
    _write_run(output, config, flat)
    size = sum(np.asarray(a).nbytes for a in flat.values())
    print(f"{args.output}: {len(flat)} parameters, {size / 1e9:.2f} GB")


def _write_run(output, config, flat) -> None:
    from emo_jax.weights.runs import save_weights_as_run

    try:
        with whole_folder(output) as partial:
            save_weights_as_run(partial, config, flat)
    except (OSError, ValueError, RuntimeError) as error:  # a full disk is tensorstore's ValueError
        told = " ".join(str(error).split())[:300]
        raise OSError(f"{output} cannot be written ({told}); make room, or choose another folder") from error


def read_sources(args, config):
    """The sources of `assemble` that the arguments name, the scaling factor and a single file's unused tensors."""
    from emo_jax.weights import sources

    model = config.model
    if not (args.sd or args.vae or args.motion or args.audio):
        raise ValueError("nothing to convert; give --sd, --vae, --motion or --audio")
    found, scale, rest = {}, None, {}
    levels = len(model.vae.channels)
    if args.sd:
        print(f"reading {args.sd}", file=sys.stderr, flush=True)
        found, scale, rest = sources.stable_diffusion(args.sd, model.unet.layers, levels)
    if args.vae:
        print(f"reading {args.vae}", file=sys.stderr, flush=True)
        found["vae"], scale = sources.autoencoder(args.vae, levels)
    if args.motion:
        print(f"reading {args.motion}", file=sys.stderr, flush=True)
        found["motion"] = sources.motion_module(args.motion)
    return found, scale, rest


def read_hearing(path, emo):
    """(flat params, {name: reason} of unused tensors) of the wav2vec 2.0 at `path`, or None without one.

    Raises:
        ValueError: the model hears otherwise, or with a wav2vec 2.0 of another geometry.
    """
    from emo_jax.weights.sources import locate
    from emo_jax.weights.wav2vec2 import load_wav2vec2

    if path is None:
        return None
    if emo.audio_encoder is None:
        raise ValueError("--audio is given, but the config hears without wav2vec 2.0; set model.audio.encoder=wav2vec2")
    found, flat, unused = load_wav2vec2(locate(path, [""]))
    for field in dataclasses.fields(found):
        there, here = (getattr(config, field.name) for config in (found, emo.audio_encoder.config))
        if field.name != "dtype" and there != here:
            raise ValueError(f"{path} has {field.name} {there}; set model.audio.wav2vec2.{field.name}, now {here}")
    return flat, unused


def print_report(report) -> None:
    """What became of every tensor and parameter; alike ones on one line."""
    for kind, count in report.used.items():
        print(f"{kind}: {count} tensors used, {len(report.unused[kind])} not")
        for reason, number in Counter(report.unused[kind].values()).items():
            example = next(name for name, why in report.unused[kind].items() if why == reason)
            print(f"  not used: {number} ({example}, ...): {reason}")
    groups = {}
    for path, how in report.new.items():
        groups.setdefault((path.split("/")[0], how.split(" of ")[0]), []).append(path)
    for (branch, how), paths in groups.items():
        print(f"  new in {branch}: {len(paths)} start as {how} ({paths[0]}{', ...' if len(paths) > 1 else ''})")


def to_safetensors(args) -> None:
    """Checkpoint -> OUTPUT/{unet,vae,motion,audio}.safetensors, diffusers' and transformers' names, the same bits."""
    from safetensors.numpy import save_file

    from emo_jax.files import whole
    from emo_jax.weights.assemble import KINDS
    from emo_jax.weights.store import read_flat

    if not args.checkpoint:
        raise ValueError("--checkpoint is missing; give a run of emo train or a folder of emo convert")
    _, flat = read_flat(args.checkpoint)
    flat = {path: array for path, array in flat.items() if not path.startswith("reference_net/")}
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for kind in (*KINDS, "audio"):  # one after the other: memory holds each twice while it is written
        tensors = file_tensors(flat, kind)
        if tensors:
            with whole(output / f"{kind}.safetensors") as partial:
                save_file(tensors, partial)
            print(f"{output / kind}.safetensors: {len(tensors)} tensors", flush=True)


def file_tensors(flat, kind):
    """The tensors {name: array} of one kind of file, or of "audio", in flat params; {} where they have none."""
    from emo_jax.weights.assemble import disassemble
    from emo_jax.weights.wav2vec2 import to_transformers

    if kind != "audio":
        return disassemble(flat, kind)
    start = "audio_encoder/"
    return to_transformers({path.removeprefix(start): a for path, a in flat.items() if path.startswith(start)})

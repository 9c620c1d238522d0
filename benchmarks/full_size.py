"""Memory and time of conversion and generation at full size on one small machine.

Writes files of random numbers with the sizes of Stable Diffusion 1.5, AnimateDiff and wav2vec 2.0 base, converts them
with `emo convert`, and generates one clip of two denoising steps with `emo generate`.

    python -m benchmarks.full_size FOLDER          # needs 20 GB there
"""

import json
import pathlib
import sys
import time

import numpy as np
from emo_jax.configs import base
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from emo_jax.evaluation.properties import peak_memory
from emo_jax.media.audio import write_wav
from emo_jax.models.emo import build
from emo_jax.weights.convert import file_tensors

FILES = {"unet": "sd/unet", "vae": "sd/vae", "motion": "motion", "audio": "voice"}
TEXT_WIDTH = 768
"""Width of Stable Diffusion's text embedding."""


def write_files(folder: pathlib.Path) -> None:
    """Writes float16 weights in the layouts of diffusers and transformers, a portrait and a voice of one clip."""
    rng, flat = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(build(base.get_config()).abstract_params(), sep="/").items():
        if not path.startswith("reference_net/"):
            fan_in = max(1, int(np.prod(leaf.shape[:-1])))
            flat[path] = (rng.standard_normal(leaf.shape, np.float32) * fan_in**-0.5).astype(np.float16)
    tensors = {kind: file_tensors(flat, kind) for kind in FILES}
    blocks = [name.split("attn2.to_q")[0] for name in tensors["unet"] if "attn2.to_q" in name]
    for block in blocks:  # keys and values of the text, which EMO does not use
        shape = len(tensors["unet"][f"{block}attn2.to_q.weight"]), TEXT_WIDTH
        tensors["unet"] |= {f"{block}attn2.to_{kv}.weight": np.zeros(shape, np.float16) for kv in "kv"}
    for kind, name in FILES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        file = "model.safetensors" if kind == "audio" else "diffusion_pytorch_model.safetensors"
        save_file(tensors[kind], folder / name / file)
    (folder / "voice/config.json").write_text(base.get_config().model.audio.wav2vec2.to_json())
    (folder / "sd/vae/config.json").write_text(json.dumps({"scaling_factor": 0.18215}))
    Image.fromarray(rng.integers(0, 255, (600, 600, 3), np.uint8)).save(folder / "portrait.png")
    write_wav(f"{folder}/voice.wav", 0.1 * rng.standard_normal(7680))  # one clip: 12 frames


def measure(name: str, *arguments: object) -> None:
    """Runs `emo ...` in a process and prints its peak memory and time."""
    started = time.monotonic()
    peak = peak_memory([sys.executable, "-m", "emo_jax.cli", *map(str, arguments)])
    print(f"{name}: {peak / 1024:.2f} GiB, {time.monotonic() - started:.0f} s", flush=True)


def main(folder: pathlib.Path) -> None:
    """Runs every step whose result does not exist yet."""
    if not (folder / "voice.wav").exists():
        write_files(folder)
    sizes = {f.parent.name: f.stat().st_size for f in folder.glob("**/*model.safetensors") if "run" not in f.parts}
    print("files:", ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in sizes.items()), flush=True)
    if not (folder / "run").exists():
        inputs = "--sd", folder / "sd", "--motion", folder / "motion", "--audio", folder / "voice"
        measure("emo convert", "convert", "--config=base", *inputs, "--output", folder / "run")
    inputs = "--portrait", folder / "portrait.png", "--audio", folder / "voice.wav", "--output", folder / "out.mp4"
    options = "--clips", 1, "--steps", 2, "--reference-scale", 1, "--audio-scale", 1, "--face-box", "150,150,450,450"
    for size in ("512x512", "512x768"):
        weights = "--checkpoint", folder / "run", "--size", size
        measure(f"emo generate at {size}", "generate", *weights, *inputs, *options)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))

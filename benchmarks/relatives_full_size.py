"""Memory and time of hallo and EchoMimic at full size, with random numbers in files of the released layouts.

Converts them with `emo convert`, and generates one clip of 512x512 with one guided step.

    python -m benchmarks.relatives_full_size hallo FOLDER        # needs 11 GB there
    python -m benchmarks.relatives_full_size echomimic FOLDER    # the same
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from emo_jax.configs import echomimic, hallo
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.full_size import measure
from emo_jax.media.audio import write_wav
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.models.emo import build
from emo_jax.weights import names, whisper
from emo_jax.weights.echomimic import VAE, WHISPER
from emo_jax.weights.wav2vec2 import to_transformers
from tests.weights import echomimic_files, hallo_files, torch_files

CONFIGS = {"hallo": hallo.get_config, "echomimic": echomimic.get_config}
Branches = dict[str, dict[str, np.ndarray]]
"""{first part of a path: {path: array of zeros without memory}}."""


class RandomTensors(Mapping):
    """Arrays of given shapes, drawn when they are requested: together they would not fit in memory twice."""

    def __init__(self, arrays: Mapping[str, np.ndarray], dtype: type = np.float32):
        self.shapes, self.dtype = {name: array.shape for name, array in arrays.items()}, dtype
        self.pool = np.random.default_rng(0).standard_normal(2**24, np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        scale = np.float32(np.sqrt(max(1, int(np.prod(shape[1:])))))
        return (np.resize(self.pool, shape) / scale).astype(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_hallo(folder: pathlib.Path, branches: Branches, config: ConfigDict) -> list[object]:
    """Writes net.pth in float16, 4.85 GB like the released one, and the others in float32; returns the options."""
    torch_files.save(folder / "net.pth", RandomTensors(hallo_files.net(branches, config), np.float16))
    _write_vae(folder / "vae", branches)
    (folder / "voice").mkdir(exist_ok=True)
    voice = to_transformers({p.removeprefix("audio_encoder/"): a for p, a in branches["audio_encoder"].items()})
    save_file(dict(RandomTensors(voice)), folder / "voice/model.safetensors")
    (folder / "voice/config.json").write_text(config.model.audio.wav2vec2.to_json())
    return ["--hallo", folder / "net.pth", "--vae", folder / "vae", "--audio", folder / "voice"]


def write_echomimic(folder: pathlib.Path, branches: Branches, config: ConfigDict) -> list[object]:
    """Writes the four files and Whisper's in float16, and the autoencoder in float32; returns the options."""
    for name, tensors in echomimic_files.layout(branches).items():
        torch_files.save(folder / f"{name}.pth", RandomTensors(tensors, np.float16))
    _write_vae(folder / VAE, branches)
    (folder / WHISPER).parent.mkdir(exist_ok=True)
    encoder = {p.removeprefix("audio_encoder/"): a for p, a in branches["audio_encoder"].items()}
    tensors = echomimic_files.openai_names(whisper.to_transformers(encoder))
    torch_files.save(folder / WHISPER, RandomTensors(tensors, np.float16), entry="model_state_dict")
    return ["--echomimic", folder]


WRITERS = {"hallo": write_hallo, "echomimic": write_echomimic}


def _write_vae(folder: pathlib.Path, branches: Branches) -> None:
    folder.mkdir(exist_ok=True)
    vae = dict(names.from_path(p.removeprefix("vae/"), a) for p, a in branches["vae"].items() if a.ndim)
    save_file(dict(RandomTensors(vae)), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"scaling_factor": 0.18215}))


def write_files(name: str, folder: pathlib.Path) -> list[object]:
    """Writes a release, a portrait and a voice of one clip; returns the options of `emo convert`."""
    config, branches = CONFIGS[name](), {}
    leaves: dict[str, Any] = dict(flatten_dict(build(config).abstract_params(), sep="/"))
    for path, leaf in leaves.items():
        branches.setdefault(path.split("/")[0], {})[path] = np.broadcast_to(np.float32(0), leaf.shape)
    sources = WRITERS[name](folder, branches, config)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (600, 600, 3), np.uint8)).save(folder / "portrait.png")
    samples = round(config.clip.frames * SAMPLE_RATE / config.clip.fps)
    write_wav(f"{folder}/voice.wav", 0.1 * rng.standard_normal(samples))
    return sources


def main(name: str, folder: pathlib.Path) -> None:
    """Writes the files and converts them, unless the converted weights exist, and generates a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "weights").exists():
        sources = write_files(name, folder)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
        print("files:", ", ".join(f"{file} {size / 2**30:.2f} GiB" for file, size in sizes.items()), flush=True)
        measure("emo convert", "convert", *sources, "--output", folder / "weights")
    inputs = "--checkpoint", folder / "weights", "--portrait", folder / "portrait.png", "--audio", folder / "voice.wav"
    options = "--steps", 1, "--face-box", "150,150,450,450", "--framing", "crop", "--output", folder / "out.mp4"
    measure("emo generate, one guided step at 512x512", "generate", *inputs, *options)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in CONFIGS:
        sys.exit(__doc__)
    main(sys.argv[1], pathlib.Path(sys.argv[2]))

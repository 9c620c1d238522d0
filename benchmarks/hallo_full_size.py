"""Memory and time of hallo at full size, with files of random numbers in the layout of the released ones.

Converts them with `emo convert`, and generates one clip of 16 frames of 512x512 with one guided step.

    python -m benchmarks.hallo_full_size FOLDER    # needs 11 GB there
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from emo_jax.configs import hallo
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.full_size import measure
from emo_jax.media.audio import write_wav
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.models.emo import build
from emo_jax.weights import names
from emo_jax.weights.wav2vec2 import to_transformers
from tests.weights import hallo_files, torch_files


class RandomTensors(Mapping):
    """Arrays of given shapes, drawn when they are requested: together they would not fit in memory twice."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: type = np.float32):
        self.shapes, self.dtype = shapes, dtype
        self.pool = np.random.default_rng(0).standard_normal(2**24, np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        scale = np.float32(np.sqrt(max(1, int(np.prod(shape[1:])))))
        return (np.resize(self.pool, shape) / scale).astype(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_files(folder: pathlib.Path) -> None:
    """Writes net.pth in float16, 4.85 GB like the released one, and an autoencoder and a wav2vec 2.0 in float32."""
    config = hallo.get_config()
    branches: dict[str, dict[str, np.ndarray]] = {}
    leaves: dict[str, Any] = dict(flatten_dict(build(config).abstract_params(), sep="/"))
    for path, leaf in leaves.items():
        branches.setdefault(path.split("/")[0], {})[path] = np.broadcast_to(np.float32(0), leaf.shape)
    shapes = {name: array.shape for name, array in hallo_files.net(branches, config).items()}
    torch_files.save(folder / "net.pth", RandomTensors(shapes, np.float16))
    vae = dict(names.from_path(p.removeprefix("vae/"), a) for p, a in branches["vae"].items() if a.ndim)
    voice = to_transformers({p.removeprefix("audio_encoder/"): a for p, a in branches["audio_encoder"].items()})
    files = {"vae/diffusion_pytorch_model.safetensors": vae, "voice/model.safetensors": voice}
    for file, tensors in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        drawn = RandomTensors({name: array.shape for name, array in tensors.items()})
        save_file({name: drawn[name] for name in drawn}, folder / file)
    (folder / "vae/config.json").write_text(json.dumps({"scaling_factor": 0.18215}))
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (600, 600, 3), np.uint8)).save(folder / "portrait.png")
    write_wav(f"{folder}/voice.wav", 0.1 * rng.standard_normal(config.clip.frames * SAMPLE_RATE // 25))
    (folder / "voice/config.json").write_text(config.model.audio.wav2vec2.to_json())


def main(folder: pathlib.Path) -> None:
    """Runs every step whose result does not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "voice/config.json").exists():
        write_files(folder)
    sizes = [path.stat().st_size for name in ("net.pth", "vae", "voice") for path in _weights(folder / name)]
    print(f"files: {sum(sizes) / 2**30:.2f} GiB, of which net.pth {sizes[0] / 2**30:.2f} GiB", flush=True)
    if not (folder / "weights").exists():
        sources = "--hallo", folder / "net.pth", "--vae", folder / "vae", "--audio", folder / "voice"
        measure("emo convert", "convert", *sources, "--output", folder / "weights")
    inputs = "--checkpoint", folder / "weights", "--portrait", folder / "portrait.png", "--audio", folder / "voice.wav"
    options = "--steps", 1, "--face-box", "150,150,450,450", "--framing", "crop", "--output", folder / "out.mp4"
    measure("emo generate, one guided step at 512x512", "generate", *inputs, *options)


def _weights(path: pathlib.Path) -> list[pathlib.Path]:
    return [path] if path.is_file() else list(path.glob("*.safetensors"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))

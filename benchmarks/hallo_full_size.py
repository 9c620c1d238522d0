"""Memory and time of converting hallo's weights at full size, with files of random numbers in their layout.

    python -m benchmarks.hallo_full_size FOLDER    # needs 12 GB there

`emo bench denoise --config hallo` measures a guided denoising step.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping

import numpy as np
from emo_jax.configs import hallo
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from benchmarks.full_size import measure
from emo_jax.models.emo import build
from emo_jax.weights import names
from emo_jax.weights.wav2vec2 import to_transformers
from tests.weights import hallo_files, torch_files


class RandomTensors(Mapping):
    """Float32 arrays of given shapes, drawn when they are requested: together they would not fit in memory twice."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes, self.pool = shapes, np.random.default_rng(0).standard_normal(2**24, np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        return np.resize(self.pool, shape) / np.float32(np.sqrt(max(1, int(np.prod(shape[1:])))))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_files(folder: pathlib.Path) -> None:
    """Writes net.pth, an autoencoder and a wav2vec 2.0 of random numbers in float32, the type of the released ones."""
    config = hallo.get_config()
    branches: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in flatten_dict(build(config).abstract_params(), sep="/").items():
        branches.setdefault(path.split("/")[0], {})[path] = np.broadcast_to(np.float32(0), leaf.shape)
    shapes = {name: array.shape for name, array in hallo_files.net(branches, config).items()}
    torch_files.save(folder / "net.pth", RandomTensors(shapes))
    vae = dict(names.from_path(p.removeprefix("vae/"), a) for p, a in branches["vae"].items() if a.ndim)
    voice = to_transformers({p.removeprefix("audio_encoder/"): a for p, a in branches["audio_encoder"].items()})
    files = {"vae/diffusion_pytorch_model.safetensors": vae, "voice/model.safetensors": voice}
    for file, tensors in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        drawn = RandomTensors({name: array.shape for name, array in tensors.items()})
        save_file({name: drawn[name] for name in drawn}, folder / file)
    (folder / "vae/config.json").write_text(json.dumps({"scaling_factor": 0.18215}))
    (folder / "voice/config.json").write_text(config.model.audio.wav2vec2.to_json())


def main(folder: pathlib.Path) -> None:
    """Writes the files if they do not exist, and converts them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "voice/config.json").exists():
        write_files(folder)
    print(f"net.pth: {(folder / 'net.pth').stat().st_size / 2**30:.2f} GiB", flush=True)
    sources = "--hallo", folder / "net.pth", "--vae", folder / "vae", "--audio", folder / "voice"
    measure("emo convert", "convert", *sources, "--output", folder / "weights")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))

"""The parity tests at the widths of Stable Diffusion 1.5 and wav2vec 2.0 base. The arrays take gigabytes.

.venv-torch/bin/python -m benchmarks.parity_full_size record FOLDER   # what torch computes, in float64: 16 GB of memory
.venv/bin/python -m benchmarks.parity_full_size compare FOLDER        # largest relative errors of emo_jax, in float32
"""

import pathlib
import sys

import numpy as np

from tests.parity import cases

vars(cases).update(  # before the modules that read them are imported
    CHANNELS=(320, 640, 1280, 1280), ATTENTION=(True, True, True, False), LAYERS=2, HEADS=8, GROUPS=32, TEXT=768,
    VAE_CHANNELS=(128, 256, 512, 512), VAE_GROUPS=32, WAV2VEC2={"base": {}}, WAV2VEC2_SAMPLES=16000,
    WAV2VEC2_LENGTHS=(16000, 9000), LATENT_SIZE=(32, 24), VIDEO_SIZE=(16, 8), IMAGE_SIZE=(128, 192),
)  # fmt: skip


def record(folder: pathlib.Path) -> None:
    """Writes FOLDER/{unet,video,vae,wav2vec2}.npz."""
    import torch

    from tests.parity import record as recorder

    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("unet", "video", "vae", "wav2vec2")):
        print(f"torch computes {name}", flush=True)
        with torch.no_grad():
            arrays = getattr(recorder, f"record_{name}")(np.random.default_rng(seed))
        arrays = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}
        np.savez(folder / f"{name}.npz", **arrays)
        del arrays


def compare(folder: pathlib.Path) -> None:
    """Runs the tests on the recorded arrays and prints the largest relative error of each."""
    import jax

    from tests.parity import test_parity, test_wav2vec2

    errors = []

    def close(ours, theirs, tolerance=None):
        assert ours.shape == theirs.shape
        errors.append(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max())

    def recorded(prefix):
        name = prefix.split("/")[0]
        with np.load(folder / f"{name.split('_')[0]}.npz") as stored:
            under = [n for n in stored.files if n.startswith(f"{prefix}/")]
            if prefix == name:  # the tests read the weights separately
                under = [n for n in under if "/weights/" not in n]
            return {n.removeprefix(f"{prefix}/"): np.asarray(stored[n], np.float32) for n in under}

    for module in (test_parity, test_wav2vec2):
        module.close, module.compiled = close, jax.jit
    runs = {
        "UNet, all features": test_parity.test_unet_and_its_features,
        "ReferenceNet": test_parity.test_reference_net,
        "UNet with temporal modules": test_parity.test_unet_with_temporal_modules,
        "VAE": test_parity.test_vae,
        "wav2vec 2.0": lambda r: test_wav2vec2.test_all_hidden_states(r, "base", False),
        "wav2vec 2.0, padded": lambda r: test_wav2vec2.test_all_hidden_states(r, "base", True),
    }
    for name, run in runs.items():
        errors.clear()
        run(recorded)
        print(f"{name}: {len(errors)} arrays, largest relative error {max(errors):.1e}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    {"record": record, "compare": compare}[sys.argv[1]](pathlib.Path(sys.argv[2]))

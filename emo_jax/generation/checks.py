"""Checks for weights that give no usable video."""

from __future__ import annotations

import jax
import numpy as np

from emo_jax.generation.guided import Params

MAX_LATENT = 1000.0
"""Largest magnitude of a usable latent. Latents have unit variance; extreme guidance scales reach more than this."""


def check_usable(usable: bool, segment: int) -> None:
    """Raises FloatingPointError if the latents of a segment are not usable."""
    if not usable:
        raise FloatingPointError(
            f"latents of segment {segment} are NaN, infinite or above {MAX_LATENT:g}; use smaller guidance scales, or "
            "weights without NaN and infinite values"
        )


def check_frames(frames: np.ndarray, segment: int) -> np.ndarray:
    """Returns the frames of a segment. Raises FloatingPointError if all have one colour: the decoder is broken."""
    if (frames == frames[0, 0, 0]).all():
        raise FloatingPointError(f"frames of segment {segment} have a single colour; train or export the weights again")
    return frames


def check_params(params: Params, name: object) -> None:
    """Checks for weights that give a black video from plausible latents.

    Values that are not finite in other parts than the VAE reach the latents, which `VideoSampler.stream` checks.

    Raises:
        FloatingPointError: all weights of a part are zero, or weights of the VAE are not finite.
    """
    for part, tree in params.items():
        leaves = jax.tree.leaves(tree)
        if leaves and not any(np.any(leaf) for leaf in leaves):
            raise FloatingPointError(f"{name}: all weights of {part} are zero; train or export them again")
    if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params["vae"])):
        raise FloatingPointError(f"{name}: weights of vae are NaN or infinite; train or export them again")

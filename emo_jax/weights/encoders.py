"""Fingerprints of the encoders (VAE encoder, wav2vec 2.0) that stored latents were made with."""

import hashlib

import numpy as np

from emo_jax.models.parts import ENCODERS


def encoder_digest(flat):
    """Returns the SHA-256 hex digest of the encoders' parameters, as stored in {path: array}."""
    total = hashlib.sha256()
    for path in sorted(filter(ENCODERS.match, flat)):
        total.update(path.encode() + np.ascontiguousarray(flat[path]).view(np.uint8).tobytes())
    return total.hexdigest()


def encoder_magnitudes(flat):
    """Returns {path: mean magnitude} of the encoders' parameters."""
    return {
        path: float(np.abs(np.asarray(a, np.float32)).mean(dtype=np.float64))
        for path, a in flat.items()
        if ENCODERS.match(path)
    }

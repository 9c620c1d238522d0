"""Random portraits and voices."""

import numpy as np

BOX = (60.0, 50.0, 130.0, 150.0)
"""Face box inside `random_portrait()`."""


def random_voice(samples, seed=0):
    """Noise float32 (samples,) whose loudness changes every 50 ms."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 0.3, samples // 800 + 1), 800)[:samples]
    return (loudness * rng.standard_normal(samples)).astype(np.float32).clip(-1, 1)


def random_portrait(seed=0, height=200, width=180):
    """Noise uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

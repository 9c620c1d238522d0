"""`emo demo`: the portrait and the voice that come with the package, and the video that the small model makes of them.

python -m emo_jax.demo --make-assets    # draws and synthesises emo_jax/assets again
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SHOWN = 8  # frames in the strip


class Strip:
    """Frames at equal distances of a video of `total` frames, side by side."""

    def __init__(self, total: int, shown: int = SHOWN):
        self.wanted = set(np.linspace(0, total - 1, shown + 2).round().astype(int)[1:-1].tolist())
        self.seen, self.kept = 0, []

    def add(self, frames: np.ndarray) -> None:
        """Takes the next frames of the video, uint8 (n, H, W, 3)."""
        self.kept += [frame.copy() for at, frame in enumerate(frames, self.seen) if at in self.wanted]
        self.seen += len(frames)

    def save(self, path: Path) -> None:
        """Writes a PNG."""
        Image.fromarray(np.concatenate(self.kept, axis=1)).save(path, optimize=True)

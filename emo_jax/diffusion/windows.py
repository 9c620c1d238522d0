"""Long videos as overlapping windows of all frames, whose predictions are averaged in each denoising step (EchoMimic).

The windows move from step to step, so that their borders are at other frames each time. They close to a ring: the last
ones continue with the video's first frames.
"""

import numpy as np
from jaxtyping import Int


def windows(frames: int, f: int, overlap: int, offset: int = 0) -> Int[np.ndarray, "windows f"]:
    """Returns the frames of each window of a denoising step.

    Args:
        frames: frames of the video, at least f.
        f: frames of a window.
        overlap: frames that neighbouring windows share.
        offset: frames by which all windows are moved.

    Raises:
        ValueError: the video is shorter than a window, or windows do not advance.
    """
    if not 0 <= overlap < f <= frames:
        raise ValueError(f"frames, f, overlap are {frames}, {f}, {overlap}; expected 0 <= overlap < f <= frames")
    starts = np.arange(0, frames if frames > f else 1, f - overlap)
    return (starts[:, None] + np.arange(f) + offset) % frames

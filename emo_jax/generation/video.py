"""The result of a generation."""

import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from emo_jax.media.video_writer import VideoWriter


@dataclass
class Video:
    """A generated video with its sound track.

    Attributes:
        frames: RGB frames; there are ceil(seconds of audio * fps) of them.
        fps: frames per second.
        audio: sound in [-1, 1], (samples,) or (samples, channels).
        audio_rate: samples per second of `audio`.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: float
    audio: Float[np.ndarray, " samples *channels"]
    audio_rate: int

    def save(self, path: str | os.PathLike) -> None:
        """Writes the video to an mp4 file (H.264, AAC).

        Raises:
            ValueError: `path` does not end in .mp4 or cannot be written.
        """
        height, width = self.frames.shape[1:3]
        with VideoWriter(path, (height, width), self.fps, self.audio, audio_rate=self.audio_rate) as writer:
            writer.write(self.frames)

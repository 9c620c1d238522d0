"""The result of a generation."""

import base64
import os
import tempfile
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from emo_jax.media.video_writer import VideoWriter

MAX_EMBEDDED = 50_000_000
"""Largest mp4 file, in bytes, that a notebook shows."""


@dataclass(eq=False, repr=False)
class Video:
    """A generated video with its sound track. Notebooks show it with controls to play it.

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

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return len(self.frames) / self.fps

    def save(self, path: str | os.PathLike) -> None:
        """Writes the video to an mp4 file (H.264, AAC).

        Raises:
            ValueError: `path` does not end in .mp4 or cannot be written.
        """
        height, width = self.frames.shape[1:3]
        with VideoWriter(path, (height, width), self.fps, self.audio, audio_rate=self.audio_rate) as writer:
            writer.write(self.frames)

    def __repr__(self) -> str:
        """Returns the size, length and rates in one line."""
        count, height, width, _ = self.frames.shape
        return (
            f"Video({count} frames of {width}x{height} pixels, {self.fps:g} fps, {self.seconds:.2f} s, "
            f"sound at {self.audio_rate} Hz)"
        )

    def _repr_html_(self) -> str:
        """Returns a player for notebooks, with the mp4 file embedded."""
        with tempfile.TemporaryDirectory(prefix="emo-") as folder:
            path = os.path.join(folder, "video.mp4")
            self.save(path)
            with open(path, "rb") as file:
                data = file.read()
        if len(data) > MAX_EMBEDDED:
            return f"<pre>{self!r}: too large to show here; save it</pre>"
        return f'<video controls src="data:video/mp4;base64,{base64.b64encode(data).decode()}"></video>'

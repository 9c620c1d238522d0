"""The results of a generation: frames, segment by segment or all together."""

import base64
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from emo_jax import __version__
from emo_jax.media.notice import Notice
from emo_jax.media.soundtrack import array_track
from emo_jax.media.video_writer import open_writer

MAX_EMBEDDED = 50_000_000
"""Largest mp4 file, in bytes, that a notebook shows."""


def provenance(weights: str, seed: int) -> str:
    """Returns the comment of a generated file: that it is generated, by what, from which weights and seed.

    trainedAlgorithmicMedia is the IPTC's term (digital source type) for what a trained model made.
    """
    return f"AI-generated (trainedAlgorithmicMedia) by emo_jax {__version__}, weights {weights}, seed {seed}"


class FrameStream:
    """An iterator of the frames of a video, segment by segment: uint8 (n, height, width, 3).

    Attributes:
        size: (height, width) of the frames in pixels.
        total: number of all frames.
    """

    def __init__(self, segments: Iterator[np.ndarray], size: tuple[int, int], total: int):
        self._segments, self.size, self.total = segments, size, total

    def __iter__(self) -> "FrameStream":
        """Returns itself."""
        return self

    def __next__(self) -> UInt8[np.ndarray, "frames height width 3"]:
        """Returns the frames of the next segment."""
        return next(self._segments)


@dataclass(eq=False, repr=False)
class Video:
    """A generated video with its sound track. Notebooks show it with controls to play it.

    Attributes:
        frames: RGB frames; there are ceil(seconds of audio * fps) of them.
        fps: frames per second.
        audio: sound in [-1, 1], (samples,) or (samples, channels).
        audio_rate: samples per second of `audio`.
        comment: a text that is stored in saved files; it says that the video is generated (`provenance`).
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: float
    audio: Float[np.ndarray, " samples *channels"]
    audio_rate: int
    comment: str = ""

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return len(self.frames) / self.fps

    def save(self, path: str | os.PathLike, *, codec: str | None = None, label: str | None = None) -> None:
        """Writes the video to a file whose ending chooses the format, or to a folder of PNG (`path` ends in /).

        Args:
            path: ends in .mp4, .mov, .webm, .gif or a slash.
            codec: "h264", "hevc", "av1" or "vp9"; None for the default of the format.
            label: a text to draw into the lower left corner of each frame.

        Raises:
            ValueError: `path` has another ending, cannot be written, or does not hold the codec.
        """
        height, width = self.frames.shape[1:3]
        frames = self.frames if label is None else Notice(label, (height, width)).draw(self.frames)
        metadata = {"comment": self.comment} if self.comment else {}
        track = array_track(self.audio, self.audio_rate)
        with open_writer(path, (height, width), self.fps, track, codec=codec, metadata=metadata) as writer:
            writer.write(frames)

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

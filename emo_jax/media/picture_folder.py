"""Writes a video as a folder of PNG pictures and a WAV file."""

from __future__ import annotations

import contextlib
import os
import wave
from collections.abc import Mapping
from fractions import Fraction
from types import TracebackType

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from emo_jax.files import atomic_folder
from emo_jax.media.audio import quantise
from emo_jax.media.soundtrack import SoundTrack, TrackReader, array_track
from emo_jax.media.targets import PICTURE_NAME, SOUND_NAME, check_picture_folder
from emo_jax.media.timing import SAMPLE_RATE, exact_fps


class PictureFolderWriter:
    """Context manager that writes frames 000001.png, 000002.png, ... and, if `audio` is given, sound.wav.

    The folder gets its name when it is complete. After an exception nothing stays, and an earlier folder is kept.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: tuple[int, int],
        fps: float | Fraction,
        audio: np.ndarray | SoundTrack | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
    ):
        """Checks the arguments.

        Args:
            path: the folder; it may exist if it is empty or holds an earlier video.
            size: (height, width) of the frames in pixels.
            fps: frames per second, which decides the length of the sound; it is stored in the pictures.
            audio: float32 (samples,) or (samples, channels) in [-1, 1] at 16 kHz, or a sound track.
            metadata: texts that are stored in each picture.

        Raises:
            ValueError: if the folder cannot be written or holds other files.
        """
        self.path, self.fps, self.frames = path, exact_fps(fps), 0
        self._size = (int(size[0]), int(size[1]))
        self._track = array_track(audio, SAMPLE_RATE) if isinstance(audio, np.ndarray) else audio
        self._target = check_picture_folder(path)
        self._info = PngInfo()
        for key, value in {**(metadata or {}), "fps": str(self.fps)}.items():
            self._info.add_text(key.capitalize(), value)
        self._stack = contextlib.ExitStack()

    def write(self, frames: np.ndarray) -> None:
        """Writes frames, uint8 RGB (N, height, width, 3).

        Raises:
            ValueError: if `frames` has another dtype or size.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != (*self._size, 3):
            height, width = self._size
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (N, {height}, {width}, 3)")
        for frame in frames:
            self.frames += 1
            Image.fromarray(frame).save(self._folder / PICTURE_NAME.format(self.frames), pnginfo=self._info)

    def __enter__(self) -> PictureFolderWriter:
        """Creates the temporary folder and returns the writer."""
        self._folder = self._stack.enter_context(atomic_folder(self._target))
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Completes the folder, or removes it after an exception."""
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self.frames:
                raise ValueError(f"no frames were written to {self.path}; write at least one")
            self._write_sound()

    def _write_sound(self) -> None:
        """Writes the sound as 16-bit WAV, as long as the frames, in pieces of a second."""
        if self._track is None:
            return
        reader, rate = TrackReader(self._track), self._track.rate
        left = round(self.frames * rate / self.fps)
        with wave.open(os.fspath(self._folder / SOUND_NAME), "wb") as file:
            file.setnchannels(self._track.channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            while left:
                samples = reader.read(min(rate, left))
                file.writeframes(quantise(samples).astype("<i2").tobytes())
                left -= len(samples)

"""What the networks get at each time: sound and head rotation speeds, cut into segments."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from emo_jax.diffusion.clips import segments
from emo_jax.generation.guided import Params
from emo_jax.media.timing import cut, window_bounds
from emo_jax.models.emo import EMO
from emo_jax.models.hearing import AnyRecording, make_recording

Array: TypeAlias = jax.Array | np.ndarray


class Segment(NamedTuple):
    """The inputs of one segment that change with time.

    Attributes:
        audio: what `EMO.audio_features` takes, with `clip.audio_window` more frames on either side.
        speed: (batch, frames), for the same frames.
        clips: number of clips to generate, at most K.
    """

    audio: Any
    speed: np.ndarray
    clips: int


class TimeInputs:
    """Cuts sound and speeds into segments.

    Args:
        emo: the networks.
        clips: clips of a full segment (K).
    """

    def __init__(self, emo: EMO, clips: int):
        self.emo, self._clips, self._frames = emo, clips, clips * emo.config.clip.frames
        # Of equal speeds without positions, one is enough.
        self._one_speed = not emo.backbone.config.speed_positions
        self._hidden_states = jax.jit(emo.hidden_states)
        self._recording: tuple[Any, AnyRecording] | None = None

    def segments(
        self, audio: Callable[[int, int], Any], speed: np.ndarray, batch: int, count: int, first: int | None
    ) -> Iterator[Segment]:
        """Yields the inputs of each segment.

        Args:
            audio: see `hearing`.
            speed: head rotation speed in degrees per frame, a number, (batch,) or (batch, frames).
            batch: number of videos.
            count: frames of the longest video.
            first: clips of the first segment; None for a full one.
        """
        f, done = self.emo.config.clip.frames, 0
        for clips in segments(count, f, self._clips, first):
            window = self._padded_window(audio, done * f, clips)
            yield Segment(window, self.speeds(speed, batch, done * f, count), clips)
            done += clips

    def _padded_window(self, audio_window: Callable[[int, int], Any], first: int, clips: int) -> np.ndarray:
        """Returns the audio of a segment, padded with zeros to the length of a full segment."""
        clip, margin = self.emo.config.clip, self.emo.config.clip.audio_window
        window, frames = audio_window(first - margin, clips * clip.frames + 2 * margin), self._frames
        if self.emo.audio_encoder is None:
            length = window_bounds(first - margin, frames + 2 * margin, clip.fps)[1]
        else:
            length = frames + 2 * margin
        return np.pad(window, [(0, 0), (0, length - window.shape[1])] + [(0, 0)] * (window.ndim - 2))

    def speeds(self, speed: np.ndarray, batch: int, first: int, count: int) -> np.ndarray:
        """Returns the speeds of a full segment that starts at frame `first`, or a single speed if one is enough."""
        margin = self.emo.config.clip.audio_window
        if speed.ndim != 2:
            length = 1 if self._one_speed else self._frames
            return np.broadcast_to(speed.reshape(-1, 1), (batch, length + 2 * margin))
        places = np.arange(self._frames + 2 * margin) + first - margin
        return np.broadcast_to(speed, (batch, count))[:, np.clip(places, 0, count - 1)]

    def hearing(self, params: Params | None, audio: Array | Sequence[np.ndarray]) -> Callable[[int, int], Any]:
        """Returns a function (first frame, frames) -> input of `EMO.audio_features`.

        That input is a waveform for log-mel spectra, and precomputed features of an encoder. The features of the most
        recent recordings are kept.

        Args:
            params: the networks' parameters.
            audio: (batch, samples) at 16 kHz, or a list of sounds of different lengths.
        """
        clip, encoder = self.emo.config.clip, self.emo.audio_encoder
        if encoder is None:
            return lambda first, frames: np.stack([cut(a, *window_bounds(first, frames, clip.fps)) for a in audio])
        if not isinstance(audio, np.ndarray | jax.Array):  # of different lengths: each has its own statistics
            readers = [self.hearing(params, np.asarray(samples)[None]) for samples in audio]
            return lambda first, frames: np.concatenate([read(first, frames) for read in readers])
        assert params is not None
        weights, recent = params["audio_encoder"], self._recording
        if recent is None or recent[0] is not weights or not np.array_equal(recent[1].audio, audio):
            hidden_states = functools.partial(self._hidden_states, {"audio_encoder": weights})
            recent = weights, make_recording(self.emo, hidden_states, np.asarray(audio), clip.fps, clip.frames)
            self._recording = recent
        return recent[1]

"""Audio features A^f of each video frame: log-mel spectra, or wav2vec 2.0's hidden states as in the paper.

`models.whisper` has those of Whisper.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.media.moments import moment_frames
from emo_jax.media.timing import AUDIO_MARGIN, SAMPLE_RATE, cut, exact_fps, frame_count, window_bounds
from emo_jax.models.wav2vec2 import Wav2Vec2Config, interpolate_at, taps_at

WINDOW_SECONDS = 16.0
"""Length of a `Recording`'s windows, about that of wav2vec 2.0's training examples."""
OVERLAP_SECONDS = 2.0
"""Context on either side of a window: more than the 1.28 s of the positional convolution."""
CACHED_WINDOWS = 8
"""Windows that a `Recording` caches: 1.6 minutes of sound, 240 MB of twelve hidden states of 768 numbers."""

_WINDOW = 2 * AUDIO_MARGIN


@functools.cache
def _mel_filters(bands: int, low: float = 60.0, high: float = 7600.0) -> Float[np.ndarray, "bins {bands}"]:
    """Computes triangular filters on the mel scale (O'Shaughnessy 1987), for _WINDOW // 2 + 1 frequency bins."""
    first, last = 2595 * np.log10(1 + np.array([low, high]) / 700)
    mel = np.linspace(first, last, bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def mel_features(
    audio: Float[AnyArray, "batch samples"], frames: int, fps: float, *, bands: int, steps: int
) -> Float[AnyArray, "batch {frames} {steps} {bands}"]:
    """Computes log-mel features of each video frame.

    Args:
        audio: waveforms at 16 kHz in [-1, 1] that start AUDIO_MARGIN samples before the first frame and end at least
            AUDIO_MARGIN samples after the last (`media.timing.window_bounds`).
        frames: number of video frames.
        fps: video frame rate.
        bands: mel bands.
        steps: spectra per frame, evenly spaced over it.

    Returns:
        Log power with a floor at -80 dB, scaled to about [-1, 1], float32.
    """
    centres = (np.arange(frames * steps) + 0.5) * SAMPLE_RATE / (fps * steps)
    starts = np.round(centres).astype(np.int32)  # the margin centres each window
    windows = audio[:, starts[:, None] + np.arange(_WINDOW)]
    spectrum = jnp.fft.rfft(windows * np.hanning(_WINDOW).astype(np.float32))
    power = (jnp.abs(spectrum) ** 2) @ _mel_filters(bands) / _WINDOW
    decibels = 10 * jnp.log10(power + 1e-8)
    return (rearrange(decibels, "batch (frames steps) bands -> batch frames steps bands", steps=steps) + 35) / 35


def features_shape(audio: ConfigDict) -> tuple[int, int]:
    """Returns the shape (layers, size) of a frame's audio features."""
    if audio.encoder == "mel":
        return audio.steps, audio.bands
    if audio.encoder == "whisper":
        return audio.steps * len(audio.layers), audio.whisper.d_model
    return len(audio.layers), audio.wav2vec2.hidden_size


def standardise_by(
    audio: Float[AnyArray, "batch samples"], moments: Float[AnyArray, "batch count kernel"]
) -> tuple[Float[AnyArray, "batch samples"], Float[AnyArray, "batch count kernel"]]:
    """Scales each waveform, and the moments of the recording that it is a part of, by the recording's statistics.

    Args:
        audio: waveforms.
        moments: moments of their recordings, see `media.moments`.
    """
    mean, variance = moments.mean((-2, -1), keepdims=True), moments.var((-2, -1), keepdims=True)
    scale = (variance + 1e-7) ** 0.5
    return (audio - mean[..., 0]) / scale[..., 0], (moments - mean) / scale


def standardise(audio: Float[AnyArray, "batch samples"]) -> Float[AnyArray, "batch samples"]:
    """Scales each waveform to mean 0 and variance 1, as transformers' feature extractor does."""
    mean, variance = audio.mean(-1, keepdims=True), audio.var(-1, keepdims=True)
    return (audio - mean) / (variance + 1e-7) ** 0.5


def frame_positions(
    first: int, frames: int, fps: float, start: int, config: Wav2Vec2Config
) -> Float[np.ndarray, " {frames}"]:
    """Computes the fractional positions of video frames' centres on the time axis of wav2vec 2.0's outputs.

    Args:
        first: index of the first frame.
        frames: number of frames.
        fps: video frame rate.
        start: sample of the recording at which the network's input begins.
        config: sizes; output j is at the middle of its receptive field.
    """
    centres = (np.arange(first, first + frames) + 0.5) * float(SAMPLE_RATE / exact_fps(fps))
    return (centres - start - config.field / 2) / config.stride


def start_positions(
    first: int, frames: int, fps: float, start: int, config: Wav2Vec2Config
) -> Float[np.ndarray, " {frames}"]:
    """Computes the positions of video frames where `model.audio.timing` is 'frames'.

    hallo stretches the outputs of a recording to its frames. For recordings of many frames, frame i gets the output
    whose receptive field starts with it.

    Args:
        first: index of the first frame.
        frames: number of frames.
        fps: video frame rate.
        start: sample of the recording at which the network's input begins.
        config: sizes.
    """
    return (np.arange(first, first + frames) * float(SAMPLE_RATE / exact_fps(fps)) - start) / config.stride


def interpolate(
    states: Float[AnyArray, "batch time *size"], positions: Float[np.ndarray, " frames"]
) -> Float[AnyArray, "batch frames *size"]:
    """Interpolates states linearly at fractional positions on the time axis; the ends are held."""
    return interpolate_at(states, taps_at(np.clip(positions, 0, states.shape[1] - 1)))


def _moments_of(waveforms: np.ndarray, moments: Any, config: Wav2Vec2Config) -> Any:
    """Returns the moments that are given, or those of the waveforms for another first convolution."""
    size, stride = config.conv_kernel[0], config.conv_stride[0]
    if moments is not None and moments.shape[-1] == size:
        return moments
    return np.stack([moment_frames(a, size, stride) for a in waveforms])


class FrameRecording:
    """wav2vec 2.0's features of recordings where its transformer runs at the rate of the video, as in hallo.

    The outputs of the convolutions are stretched to the frames of the recording, which zeros fill up to complete clips
    after it is standardised. The transformer sees the recording at once; of longer ones than MAX_FRAMES a window, whose
    features at the ends are taken from its neighbours.

    Args:
        hidden_states: (audio (batch, samples), lengths (batch,), moment_frames, taps) -> hidden states (batch, frames,
            layers, size). The numbers of samples and frames are one of a few.
        audio: waveforms at 16 kHz.
        fps: video frame rate.
        clip_frames: frames of a clip.
        config: sizes of the network.
        moments: see `Recording`.
    """

    MAX_FRAMES, OVERLAP = 1600, 100

    def __init__(
        self,
        hidden_states: Callable[..., Any],
        audio: Float[np.ndarray, "batch samples"],
        fps: float,
        clip_frames: int,
        config: Wav2Vec2Config,
        moments: Float[AnyArray, "batch count kernel"] | None = None,
    ):
        self.audio, self._hidden_states, self._config = audio.copy(), hidden_states, config
        frames = frame_count(audio.shape[1], fps)
        self._frames = -(-frames // clip_frames) * clip_frames
        padding = (self._frames - frames) * int(SAMPLE_RATE / exact_fps(fps))
        waveform: Any = audio
        if config.do_normalize:
            waveform, moments = (standardise(audio), None) if moments is None else standardise_by(audio, moments)
        self.waveform = np.pad(waveform, ((0, 0), (0, max(padding, config.field - audio.shape[1]))))
        self._moment_frames = _moments_of(self.waveform, moments, config)
        self._outputs = config.length(self.waveform.shape[1])
        self._size = 100  # the frames of a window: a few sizes, each of which is compiled once
        while self._size < min(self._frames, self.MAX_FRAMES):
            self._size *= 2
        self._window = functools.lru_cache(CACHED_WINDOWS)(self._compute_window)

    def __call__(self, first: int, frames: int) -> Float[np.ndarray, "batch {frames} *size"]:
        """Returns the features of the frames from `first` on; outside the recording, the ends are held."""
        wanted = np.clip(np.arange(first, first + frames), 0, self._frames - 1)
        hop = self._size - 2 * self.OVERLAP
        last = max(0, -(-(self._frames - self._size) // hop)) if self._size == self.MAX_FRAMES else 0
        features = []
        for frame in wanted.tolist():
            window = min(max(frame - self.OVERLAP, 0) // hop, last) if last else 0
            features.append(self._window(window)[:, frame - self._first(window)])
        return np.stack(features, axis=1)

    def _first(self, window: int) -> int:
        """Returns the first frame of a window; the last window ends with the recording."""
        return max(0, min(window * (self._size - 2 * self.OVERLAP), self._frames - self._size))

    def _compute_window(self, window: int) -> np.ndarray:
        first, stretch = self._first(window), (self._outputs - 1) / max(self._frames - 1, 1)
        count = min(self._size, self._frames - first)
        positions = np.minimum(np.arange(first, first + self._size), self._frames - 1) * stretch
        start, outputs = int(positions[0]), int(np.ceil(self._size * max(stretch, 2.0))) + 2
        samples = self._config.stride * (outputs - 1) + self._config.field
        audio = np.stack([cut(a, start * self._config.stride, samples) for a in self.waveform])
        lengths = np.full(len(audio), count, np.int32)
        return np.asarray(self._hidden_states(audio, lengths, self._moment_frames, taps_at(positions - start)))


class Recording:
    """wav2vec 2.0's features of recordings of any length, computed in windows, so that memory stays bounded.

    A window is computed when its features are first requested, and cached. The features in the overlap at its ends are
    taken from its neighbours. The waveform is standardised, and group norm's statistics are taken, over the recording.

    Args:
        hidden_states: (audio (batch, samples), lengths (batch,), moment_frames (batch, count, kernel)) -> hidden states
            (batch, time, layers, size); the number of samples is always the same.
        audio: waveforms at 16 kHz.
        fps: video frame rate.
        reach: silent frames that are added at either end.
        config: sizes of the network.
        seconds: length of a window.
        overlap: context at either end of a window, in seconds.
        moments: moments of the recordings that `audio` is a part of, see `media.moments`; None: of `audio` itself.
    """

    def __init__(
        self,
        hidden_states: Callable[..., Any],
        audio: Float[np.ndarray, "batch samples"],
        fps: float,
        reach: int,
        config: Wav2Vec2Config,
        seconds: float = WINDOW_SECONDS,
        overlap: float = OVERLAP_SECONDS,
        moments: Float[AnyArray, "batch count kernel"] | None = None,
    ):
        self.audio, self._hidden_states, self._fps, self._config = audio.copy(), hidden_states, fps, config
        self._start, length = window_bounds(-reach, frame_count(audio.shape[1], fps) + 2 * reach, fps)
        standard: Any = audio
        if config.do_normalize:
            standard, moments = (standardise(audio), None) if moments is None else standardise_by(audio, moments)
        self.waveform = np.stack([cut(a, self._start, length) for a in standard])
        self._moment_frames = _moments_of(self.waveform, moments, config)
        self._size, self._overlap = (round(s * SAMPLE_RATE / config.stride) for s in (seconds, overlap))
        self._count = config.length(length)
        self._window = functools.lru_cache(CACHED_WINDOWS)(self._compute_window)

    def __call__(self, first: int, frames: int) -> Float[np.ndarray, "batch {frames} *size"]:
        """Returns the features of the frames from `first` on; beyond `reach` frames outside, the ends are held."""
        positions = frame_positions(first, frames, self._fps, self._start, self._config)
        positions = np.clip(positions, 0, self._count - 1)
        low, high = int(positions[0]), min(int(positions[-1]) + 2, self._count)
        states: Any = np.stack([self._output(j) for j in range(low, high)], axis=1)
        return np.asarray(interpolate(states, positions - low))

    def _output(self, j: int) -> np.ndarray:
        """Returns output j of the recording, from the window in whose middle it is."""
        hop = self._size - 2 * self._overlap
        last = max(0, -(-(self._count - self._size) // hop))
        window = min(max(j - self._overlap, 0) // hop, last)
        return self._window(window)[:, j - self._first(window)]

    def _first(self, window: int) -> int:
        """Returns the first output of a window; the last window ends with the recording."""
        return max(0, min(window * (self._size - 2 * self._overlap), self._count - self._size))

    def _compute_window(self, window: int) -> np.ndarray:
        samples = self._config.stride * (self._size - 1) + self._config.field
        start = self._first(window) * self._config.stride
        audio = np.stack([cut(a, start, samples) for a in self.waveform])
        lengths = np.full(len(audio), min(samples, self.waveform.shape[1]), np.int32)
        return np.asarray(self._hidden_states(audio, lengths, self._moment_frames))

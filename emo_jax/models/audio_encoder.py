"""Audio features A^f of each video frame: log-mel spectra, or wav2vec 2.0's hidden states as in the paper."""

import functools

import jax.numpy as jnp
import numpy as np

from emo_jax.media.timing import AUDIO_MARGIN, SAMPLE_RATE, cut, exact_fps, frame_count, window_bounds

SECONDS, OVERLAP = 16.0, 2.0
"""Length of the windows in which a Recording is heard, about that of wav2vec 2.0's training examples, and how much of
it only gives context on either side: more than the 1.28 s that the position convolution reaches."""

KEPT = 8
"""Windows that a Recording keeps: 1.6 minutes of sound, 240 MB of twelve hidden states of 768 numbers."""

_WINDOW = 2 * AUDIO_MARGIN


@functools.cache
def _mel_filters(bands, low=60.0, high=7600.0):
    """Triangular filters on the mel scale (O'Shaughnessy 1987): (_WINDOW // 2 + 1, bands)."""
    mel = np.linspace(*(2595 * np.log10(1 + np.array([low, high]) / 700)), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def mel_features(audio, frames, fps, *, bands, steps):
    """Log-mel features of each video frame.

    Args:
        audio: (B, W) waveform at 16 kHz in [-1, 1], which starts AUDIO_MARGIN samples before the first frame and
            ends at least AUDIO_MARGIN samples behind the last (data.audio.window_bounds).
        frames: how many video frames it spans; fps: their rate.
        bands: mel bands; steps: spectra per frame, evenly spaced over it.

    Returns:
        (B, frames, steps, bands) float32, log power with a floor at -80 dB, scaled to about [-1, 1].
    """
    centres = (np.arange(frames * steps) + 0.5) * SAMPLE_RATE / (fps * steps)
    starts = np.round(centres).astype(np.int32)  # of a window centred there, given the margin
    cut = audio[:, starts[:, None] + np.arange(_WINDOW)]
    spectrum = jnp.fft.rfft(cut * np.hanning(_WINDOW).astype(np.float32))
    power = (jnp.abs(spectrum) ** 2) @ _mel_filters(bands) / _WINDOW
    decibels = 10 * jnp.log10(power + 1e-8)
    return (decibels.reshape(audio.shape[0], frames, steps, bands) + 35) / 35


def standardise(audio):
    """Waveforms (B, samples), numpy or jax, at mean 0 and variance 1 each, as by transformers' feature extractor."""
    mean, variance = audio.mean(-1, keepdims=True), audio.var(-1, keepdims=True)
    return (audio - mean) / (variance + 1e-7) ** 0.5


def frame_positions(first, frames, fps, start, config):
    """Where the centres of video frames lie on the time axis of wav2vec 2.0's outputs: (frames,), fractional.

    Args:
        first: the first frame's number. start: the sample of the recording with which the network's input begins.
        config: Wav2Vec2Config; its output j stands for the middle of the samples that it sees.
    """
    centres = (np.arange(first, first + frames) + 0.5) * float(SAMPLE_RATE / exact_fps(fps))
    return (centres - start - config.field / 2) / config.stride


def interpolate(states, positions):
    """States (B, T, ...) at fractional positions (n,) along T, in between linear, held at the ends: (B, n, ...)."""
    last = states.shape[1] - 1
    positions = np.clip(positions, 0, last)
    below = positions.astype(np.int32)
    share = (positions - below).astype(np.float32).reshape(-1, *(1,) * (states.ndim - 2))
    return states[:, below] * (1 - share) + states[:, np.minimum(below + 1, last)] * share


def sketch(audio, size, stride, block=1 << 16):
    """2 * size stand-ins (2 * size, size) with the mean and covariance of all frames of `size` samples of a recording.

    What is linear in a frame has the same mean and variance over the stand-ins as over all the frames, one every
    `stride` samples of audio (samples,): this is how windows share the group norm of the whole.
    """
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::stride]
    total, products = np.zeros(size), np.zeros((size, size))
    for i in range(0, len(frames), block):
        part = frames[i : i + block].astype(np.float64)
        total, products = total + part.sum(0), products + part.T @ part
    mean = total / len(frames)
    variances, directions = np.linalg.eigh(products / len(frames) - np.outer(mean, mean))
    spread = (directions * np.sqrt(size * np.maximum(variances, 0))).T
    return np.concatenate([mean + spread, mean - spread]).astype(np.float32)


class Recording:
    """wav2vec 2.0's features of whole recordings, window by window: beside the sound, memory does not grow with it.

    A window of SECONDS is heard when it is first asked for, and kept; the OVERLAP at its ends is its neighbours'.
    Sound is standardised, and group norm measured, over the recording. Up to KEPT windows are heard once whatever is
    asked for, longer recordings once for each time that one goes through them.

    Args:
        listen: (audio (B, W), lengths (B,), sketch (B, n, k)) -> hidden states (B, T, L, D); W is always the same.
        audio: float32 (B, samples) at 16 kHz. fps: of the video frames; `reach` more of them are silent at either end.
        config: Wav2Vec2Config.
    """

    def __init__(self, listen, audio, fps, reach, config, seconds=SECONDS, overlap=OVERLAP):
        self.audio, self._listen, self._fps, self._config = audio.copy(), listen, fps, config
        self._start, length = window_bounds(-reach, frame_count(audio.shape[1], fps) + 2 * reach, fps)
        audio = standardise(audio) if config.do_normalize else audio
        self.heard = np.stack([cut(a, self._start, length) for a in audio])
        self._sketch = np.stack([sketch(a, config.conv_kernel[0], config.conv_stride[0]) for a in self.heard])
        self._size, self._overlap = (round(s * SAMPLE_RATE / config.stride) for s in (seconds, overlap))
        self._count = config.length(length)
        self._window = functools.lru_cache(KEPT)(self._hear)

    def __call__(self, first, frames):
        """Features (B, frames, L, D) of the frames from `first` on; held further than `reach` beyond the ends."""
        positions = frame_positions(first, frames, self._fps, self._start, self._config)
        positions = np.clip(positions, 0, self._count - 1)
        low, high = int(positions[0]), min(int(positions[-1]) + 2, self._count)
        return interpolate(np.stack([self._output(j) for j in range(low, high)], axis=1), positions - low)

    def _output(self, j):
        hop = self._size - 2 * self._overlap
        last = max(0, -(-(self._count - self._size) // hop))
        window = min(max(j - self._overlap, 0) // hop, last)
        return self._window(window)[:, j - self._first(window)]

    def _first(self, window):
        """The first output of a window; the last ends where the recording does."""
        return max(0, min(window * (self._size - 2 * self._overlap), self._count - self._size))

    def _hear(self, window):
        samples = self._config.stride * (self._size - 1) + self._config.field
        start = self._first(window) * self._config.stride
        sound = np.stack([cut(a, start, samples) for a in self.heard])
        lengths = np.full(len(sound), min(samples, self.heard.shape[1]), np.int32)
        return np.asarray(self._listen(sound, lengths, self._sketch))

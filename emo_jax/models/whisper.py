"""Whisper's encoder (Radford et al. 2022) with all its hidden states, and its log-mel spectra.

Names follow transformers' paths.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float

from emo_jax.arrays import AnyArray
from emo_jax.media.timing import SAMPLE_RATE, exact_fps
from emo_jax.models.initializers import FAN_IN_NORMAL, ZEROS, Computed
from emo_jax.models.layers import Dense, LayerNorm

States = Float[AnyArray, "batch time size"]

HOP, _WINDOW = 160, 400
"""Samples between two spectra, and samples of a spectrum."""
STEP = 2 * HOP
"""Samples between two outputs: 20 ms."""
_BLOCK = 6000
"""Spectra that are computed at once."""


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes by transformers' names; the defaults are those of whisper-tiny.

    Attributes:
        d_model: width.
        encoder_layers: layers.
        encoder_attention_heads: heads of each layer.
        encoder_ffn_dim: inner features of each feed-forward network.
        num_mel_bins: bands of the spectra.
        max_source_positions: outputs of a window of sound, which is twice as many spectra long.

    Raises:
        ValueError: sizes do not fit together.
    """

    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(
                f"whisper.encoder_attention_heads is {self.encoder_attention_heads}; expected a divisor of "
                f"{self.d_model}"
            )


def _sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """Returns Whisper's encodings of positions: sines, then cosines, with periods of 2 pi to 20,000 pi steps."""
    length, half = shape[0], shape[1] // 2
    rates = np.exp(-np.log(10_000) / max(half - 1, 1) * np.arange(half))
    angles = np.arange(length)[:, None] * rates
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.pad(table, ((0, 0), (0, shape[1] - 2 * half))).astype(np.float32)


class WhisperEncoder(nn.Module):
    """Maps log-mel spectra, 100 per second, to hidden states, 50 per second.

    Attributes:
        config: sizes.
    """

    config: WhisperConfig

    @nn.compact
    def __call__(self, mel: Float[AnyArray, "batch spectra bands"]) -> tuple[tuple[States, ...], States]:
        """Computes the encoder of transformers' WhisperModel.

        Args:
            mel: spectra of at most 2 * max_source_positions; released weights expect exactly as many.

        Returns:
            The hidden states, encoder_layers + 1 in all: the input of the first layer and each layer's output; and the
            last one after the final norm.
        """
        c = self.config
        h = mel.astype(c.dtype)
        for i in (1, 2):
            conv = nn.Conv(
                c.d_model, (3,), (i,), ((1, 1),), dtype=c.dtype, kernel_init=FAN_IN_NORMAL, bias_init=ZEROS,
                name=f"conv{i}",
            )  # fmt: skip
            h = nn.gelu(conv(h), approximate=False)
        positions = self.param("embed_positions", Computed(_sinusoids), (c.max_source_positions, c.d_model))
        states = [h + positions[: h.shape[1]].astype(c.dtype)]
        for i in range(c.encoder_layers):
            states.append(_Layer(c, name=f"layers_{i}")(states[-1]))
        return tuple(states), _norm(c.dtype, "layer_norm")(states[-1])


class _Layer(nn.Module):
    config: WhisperConfig

    @nn.compact
    def __call__(self, x: States) -> States:
        c = self.config
        x = x + _Attention(c, name="self_attn")(_norm(c.dtype, "self_attn_layer_norm")(x))
        h = Dense(c.encoder_ffn_dim, dtype=c.dtype, name="fc1")(_norm(c.dtype, "final_layer_norm")(x))
        return x + Dense(c.d_model, dtype=c.dtype, name="fc2")(nn.gelu(h, approximate=False))


class _Attention(nn.Module):
    config: WhisperConfig

    @nn.compact
    def __call__(self, x: States) -> States:
        c = self.config

        def project(name: str, bias: bool = True) -> AnyArray:
            y = Dense(c.d_model, use_bias=bias, dtype=c.dtype, name=name)(x)
            return rearrange(y, "batch time (heads size) -> batch time heads size", heads=c.encoder_attention_heads)

        y = jax.nn.dot_product_attention(project("q_proj"), project("k_proj", bias=False), project("v_proj"))
        return Dense(c.d_model, dtype=c.dtype, name="out_proj")(y.reshape(x.shape))


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    return LayerNorm(1e-5, dtype=dtype, use_fast_variance=False, name=name)


# -- log-mel spectra


@functools.cache
def _mel_filters(bands: int) -> Float[np.ndarray, "bins {bands}"]:
    """Computes Slaney's triangular filters of equal area from 0 to 8 kHz.

    Mels are linear in Hz up to 1 kHz, and logarithmic above.
    """
    step, growth = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(8) / growth  # in mel; 8 kHz
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < 15, mels * step, 1000 * np.exp((mels - 15) * growth))
    frequency = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def log_mel(audio: Float[AnyArray, "batch samples"], bands: int) -> Float[AnyArray, "batch spectra {bands}"]:
    """Computes Whisper's log-mel spectra of recordings, one for each HOP samples, about in [-1, 1.5].

    The loudest band of a recording sets a floor 80 dB below it. NumPy arrays are processed in float64 and in blocks,
    so that memory stays small; others in float32.

    Args:
        audio: waveforms at 16 kHz of more than 200 samples.
        bands: mel bands.
    """
    count, half = audio.shape[1] // HOP, _WINDOW // 2
    if isinstance(audio, np.ndarray):
        padded = np.pad(audio, ((0, 0), (half, half)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, ::HOP][:, :count]
        blocks = [_log_power(frames[:, i : i + _BLOCK].astype(np.float64), bands, np) for i in range(0, count, _BLOCK)]
        power: Any = np.concatenate(blocks, axis=1)
    else:
        padded = jnp.pad(audio, ((0, 0), (half, half)), mode="reflect")
        places = np.arange(count)[:, None] * HOP + np.arange(_WINDOW)
        power = _log_power(padded[:, places], bands, jnp)
    floor = power.max(axis=(1, 2), keepdims=True) - 8
    return (power.clip(floor) + 4) / 4


def _log_power(frames: Any, bands: int, xp: Any) -> Any:
    spectrum = xp.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1].astype(frames.dtype))
    power = (xp.abs(spectrum) ** 2) @ _mel_filters(bands).astype(frames.dtype)
    return xp.log10(power.clip(1e-10)).astype(np.float32)


# -- features of video frames


def steps_of_frames(first: int, frames: int, fps: float, steps: int) -> np.ndarray:
    """Returns the numbers of the encoder's outputs that each frame gets (frames, steps): those around its start.

    As in EchoMimic (and MuseTalk): with 10 steps, frame i gets outputs floor(50 i / fps) - 4 to + 5.
    """
    per_frame = SAMPLE_RATE / exact_fps(fps) / STEP
    starts = np.array([int(i * per_frame // 1) for i in range(first, first + frames)])
    return starts[:, None] + np.arange(steps) - (steps // 2 - 1)


def tokens_of_frames(
    states: Float[AnyArray, "batch time layers size"], steps: Any
) -> Float[AnyArray, "batch frames tokens size"]:
    """Returns the outputs of the frames; the ends of the recording are held.

    Args:
        states: hidden states of a recording.
        steps: numbers of outputs (frames, steps).
    """
    chosen = states[:, steps.clip(0, states.shape[1] - 1)]
    return rearrange(chosen, "batch frames steps layers size -> batch frames (steps layers) size")


class WhisperRecording:
    """Whisper's features of recordings, computed in windows of the length of its training: 30 s as released.

    The spectra are computed over the recording and then cut; zeros fill the last window. A window is computed when its
    features are first requested, and its outputs are kept: 23 MB for a minute of whisper-tiny's five layers.

    Args:
        hidden_states: spectra (batch, 2 * max_source_positions, bands) -> hidden states (batch, time, layers, size).
        audio: waveforms at 16 kHz.
        fps: video frame rate.
        steps: outputs of each frame.
        config: sizes of the network.
    """

    def __init__(
        self,
        hidden_states: Callable[..., Any],
        audio: Float[np.ndarray, "batch samples"],
        fps: float,
        steps: int,
        config: WhisperConfig,
    ):
        self.audio, self._hidden_states, self._fps, self._steps = audio.copy(), hidden_states, fps, steps
        shortest = _WINDOW + 1
        audio = np.pad(audio, ((0, 0), (0, max(0, shortest - audio.shape[1]))))
        self._mel, self._size = log_mel(audio, config.num_mel_bins), config.max_source_positions
        self._count = self._mel.shape[1] // 2
        self._windows: dict[int, np.ndarray] = {}

    def __call__(self, first: int, frames: int) -> Float[AnyArray, "batch {frames} tokens size"]:
        """Returns the features of the frames from `first` on; outside the recording, the ends are held."""
        steps = steps_of_frames(first, frames, self._fps, self._steps).clip(0, self._count - 1)
        low, high = int(steps.min()), int(steps.max()) + 1
        windows = range(low // self._size, (high - 1) // self._size + 1)
        states = np.concatenate([self._window(i) for i in windows], axis=1)
        return tokens_of_frames(states, steps - windows[0] * self._size)

    def _window(self, index: int) -> np.ndarray:
        if index not in self._windows:
            part = self._mel[:, 2 * index * self._size : 2 * (index + 1) * self._size]
            part = np.pad(part, ((0, 0), (0, 2 * self._size - part.shape[1]), (0, 0)))
            states = np.asarray(self._hidden_states(part))
            self._windows[index] = states[:, : self._count - index * self._size]
        return self._windows[index]

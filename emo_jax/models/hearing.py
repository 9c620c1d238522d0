"""Audio features of video frames, by the encoder of a config: the parts of `EMO` that know the encoders."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.media.timing import AUDIO_MARGIN, SAMPLE_RATE, window_bounds
from emo_jax.models import audio_encoder
from emo_jax.models.audio_encoder import FrameRecording, Recording
from emo_jax.models.checks import check_audio_layers
from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config, taps_at
from emo_jax.models.whisper import (
    STEP,
    WhisperConfig,
    WhisperEncoder,
    WhisperRecording,
    log_mel,
    steps_of_frames,
    tokens_of_frames,
)

Encoder = Wav2Vec2 | WhisperEncoder
AnyRecording = Recording | FrameRecording | WhisperRecording


def build_encoder(audio: ConfigDict, dtype: Any) -> Encoder | None:
    """Returns the encoder of `model.audio`; None for log-mel spectra.

    Raises:
        ValueError: sizes that do not fit together, or hidden states that the encoder does not have.
    """
    if audio.encoder == "mel":
        return None
    check_audio_layers(audio)
    sizes = audio[audio.encoder].items()
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list | tuple) else v for name, v in sizes}
    if audio.encoder == "whisper":
        return WhisperEncoder(WhisperConfig(dtype=dtype, **fields))
    return Wav2Vec2(Wav2Vec2Config(dtype=dtype, **fields))


def smallest_input(encoder: Encoder) -> Float[AnyArray, "1 ..."]:
    """Returns the smallest input of an encoder, zeros."""
    if isinstance(encoder, WhisperEncoder):
        return jnp.zeros((1, 2, encoder.config.num_mel_bins))
    return jnp.zeros((1, encoder.config.field))


def make_recording(
    emo: Any,
    hidden_states: Callable[..., Any],
    audio: Float[np.ndarray, "batch samples"],
    fps: float,
    clip_frames: int,
    moments: Any = None,
) -> AnyRecording:
    """Returns the features of recordings, which a call with (first frame, frames) computes.

    Args:
        emo: the networks (`models.emo.EMO`), with an audio encoder.
        hidden_states: `EMO.hidden_states` without its first argument.
        audio: waveforms at 16 kHz.
        fps: video frame rate.
        clip_frames: frames of a clip.
        moments: moments of the recordings that `audio` is a part of, see `media.moments`; None: of `audio` itself.
    """
    fields, config = emo.config.model.audio, emo.audio_encoder.config
    if isinstance(emo.audio_encoder, WhisperEncoder):
        return WhisperRecording(hidden_states, audio, fps, fields.steps, config)
    if fields.get("timing", "centres") == "frames":
        return FrameRecording(hidden_states, audio, fps, clip_frames, config, moments=moments)
    return Recording(hidden_states, audio, fps, emo.config.clip.audio_window, config, moments=moments)


def features_of_waveforms(
    emo: Any,
    params: Mapping[str, Any],
    audio: Float[AnyArray, "batch samples"],
    frames: int,
    moments: Float[AnyArray, "batch count kernel"] | None,
) -> Float[AnyArray, "batch {frames} layers size"]:
    """Computes the audio features of frames from waveforms; see `EMO.audio_features` for the arguments."""
    fields, fps = emo.config.model.audio, emo.config.clip.fps
    context = (audio.shape[1] - window_bounds(0, frames, fps)[1]) // 2
    if emo.audio_encoder is None:
        return audio_encoder.mel_features(audio[:, context:], frames, fps, bands=fields.bands, steps=fields.steps)
    if isinstance(emo.audio_encoder, WhisperEncoder):
        return _whisper_features(emo, params, audio, frames, context)
    config = emo.audio_encoder.config
    if config.do_normalize and moments is not None:
        audio, moments = audio_encoder.standardise_by(audio, moments)
    elif config.do_normalize:
        audio = audio_encoder.standardise(audio)
    if moments is not None and moments.shape[-1] != config.conv_kernel[0]:
        moments = None  # not the frames of the first convolution
    hidden_states = functools.partial(emo.hidden_states, params)
    if fields.get("timing", "centres") == "frames":
        margin, start = int(context * fps / SAMPLE_RATE), -AUDIO_MARGIN - context  # margin: frames of context
        starts = audio_encoder.start_positions(-margin, frames + 2 * margin, fps, start, config)
        states = hidden_states(audio, None, moments, taps_at(np.maximum(starts, 0)))
        return states[:, margin : margin + frames]
    states = hidden_states(audio, None, moments)
    positions = audio_encoder.frame_positions(0, frames, fps, -AUDIO_MARGIN - context, config)
    return audio_encoder.interpolate(states, positions)


def _whisper_features(
    emo: Any, params: Mapping[str, Any], audio: Float[AnyArray, "batch samples"], frames: int, context: int
) -> Float[AnyArray, "batch {frames} tokens size"]:
    """Computes Whisper's features of a part of a recording, which zeros fill up to one of its windows.

    Raises:
        ValueError: the part is longer than a window.
    """
    config, fields = emo.audio_encoder.config, emo.config.model.audio
    mel = log_mel(jnp.asarray(audio), config.num_mel_bins)
    missing = 2 * config.max_source_positions - mel.shape[1]
    if missing < 0:
        seconds = config.max_source_positions * STEP / SAMPLE_RATE
        raise ValueError(
            f"{frames} frames with clip.audio_context {emo.config.clip.get('audio_context', 0)} are longer than "
            f"Whisper's window of {seconds:g} s; make clip.frames or clip.audio_context smaller"
        )
    states = emo.hidden_states(params, jnp.pad(mel, ((0, 0), (0, missing), (0, 0))))[:, : mel.shape[1] // 2]
    steps = steps_of_frames(0, frames, emo.config.clip.fps, fields.steps) + round((AUDIO_MARGIN + context) / STEP)
    return tokens_of_frames(states, steps)

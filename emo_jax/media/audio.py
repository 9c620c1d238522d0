"""Decodes the audio track of any media file to mono float32, and writes WAV files."""

from __future__ import annotations

import math
import os
import wave
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from emo_jax.media.container import decode_audio_frames, open_media
from emo_jax.media.resampling import resample_blocks
from emo_jax.media.timing import SAMPLE_RATE

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

PCM_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
"""numpy dtype of each FFmpeg sample format."""
MAX_PEAK = 16.0
"""Largest magnitude accepted in float audio; louder files were never scaled to [-1, 1]."""


def quantise(audio: np.ndarray) -> np.ndarray:
    """Clips audio to [-1, 1] and converts it to int16 of the same shape."""
    return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def write_wav(path: str | os.PathLike, audio: np.ndarray) -> None:
    """Writes audio (samples,) in [-1, 1] at 16 kHz as a 16-bit mono WAV file."""
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(quantise(audio).astype("<i2").tobytes())


def load_audio(path: str | os.PathLike, rate: int = SAMPLE_RATE, align_to_video: bool = False) -> np.ndarray:
    """Decodes the first audio track of a media file to mono.

    Reads any container, codec, rate, bit depth and channel count that FFmpeg decodes. Channels are averaged, which
    cannot exceed full scale, and then resampled without delay (`resample_blocks`). Values beyond full scale, as lossy
    codecs and float files have them, are clipped. Damaged packets are skipped. The file is decoded in blocks: memory
    beyond the result is small.

    Args:
      path: an audio or video file.
      rate: output rate in Hz.
      align_to_video: if True, sample 0 is the time of the first video frame. A track that starts later is padded with
        silence, a track that starts earlier is trimmed.

    Returns:
      float32 (samples,) in [-1, 1], with round(duration * rate) samples for the duration of the decoded audio.

    Raises:
      ValueError: if the file is missing or not media, has no audio track, no samples, NaN or infinite samples, or
        samples far outside [-1, 1].
    """
    data = bytearray()  # grows in place, so that the peak memory is the result and not twice the result
    with open_media(path) as container:
        if not container.streams.audio:
            raise ValueError(f"{path} has no sound track; give a file with one (WAV, MP3, M4A, MP4, ...)")
        trim = _samples_before_video(container, rate) if align_to_video else 0
        data.extend(bytes(4 * max(-trim, 0)))
        padding = len(data)
        for block in resample_blocks(_decode_mono(container, path), rate):
            data.extend(np.clip(block, -1.0, 1.0).astype(np.float32).tobytes())
    if len(data) == padding:
        raise ValueError(f"{path} has an audio track without samples (truncated or empty); export it again")
    audio = np.frombuffer(data, np.float32)[max(trim, 0) :]
    if not len(audio):
        raise ValueError(f"the audio of {path} ends before its first video frame; give a file where they overlap")
    return audio


def _decode_mono(container: InputContainer, path: object) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (sample rate, float32 (samples,) mean of the channels) for each decoded frame."""
    for frame in decode_audio_frames(container, container.streams.audio[0], path):
        mono = _to_float(_channels(frame)).mean(axis=0, dtype=np.float64).astype(np.float32)
        peak = np.abs(mono).max(initial=0.0)
        if not math.isfinite(peak):
            raise ValueError(f"{path} has NaN or infinite samples; export it again as 16-bit WAV")
        if peak > MAX_PEAK:
            raise ValueError(
                f"{path} has samples up to {peak:g}, expected [-1, 1]: damaged or not scaled; export it again"
            )
        yield frame.sample_rate, mono


def _channels(frame: AudioFrame) -> np.ndarray:
    """Returns (channels, samples) of a decoded frame in its own sample format.

    Replaces `frame.to_ndarray`, which reads a ninth channel in eight-channel frames and crashes (PyAV 18).
    """
    channels, samples = frame.layout.nb_channels, frame.samples
    dtype = PCM_DTYPES[frame.format.packed.name]
    if frame.format.is_planar:
        return np.stack([np.frombuffer(memoryview(plane), dtype, samples) for plane in frame.planes[:channels]])
    return np.frombuffer(memoryview(frame.planes[0]), dtype, samples * channels).reshape(samples, channels).T


def _to_float(values: np.ndarray) -> np.ndarray:
    """Converts PCM of any bit depth to floats in [-1, 1]; FFmpeg decodes 24-bit to 32-bit."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return values


def _samples_before_video(container: InputContainer, rate: int) -> int:
    """Returns how many samples precede the first video frame; negative if the audio starts later."""
    audio, video = container.streams.audio[0], next(iter(container.streams.video), None)
    if video is None or video.start_time is None or audio.start_time is None:
        return 0
    if video.time_base is None or audio.time_base is None:
        return 0
    return round((video.start_time * video.time_base - audio.start_time * audio.time_base) * rate)

"""Sound: of any container at 16 kHz mono, as a WAV file, and the windows of it that belong to video frames.

Every place that turns frames into samples or back uses the functions below, in exact rational arithmetic, so that
training, sampling and the written file agree on where a frame's sound lies.
"""

from __future__ import annotations

import math
import os
import wave
from collections.abc import Iterator

import numpy as np

from emo_jax.media.container import decode_packets, open_media
from emo_jax.media.resampling import _resampled
from emo_jax.media.timing import SAMPLE_RATE

PCM_KINDS = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
MAX_PEAK = 16.0  # float sound louder than this was never scaled to [-1, 1]


def quantise(sound: np.ndarray) -> np.ndarray:
    """Sound in [-1, 1], clipped there, as int16."""
    return np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)


def write_wav(path: str | os.PathLike, sound: np.ndarray) -> None:
    """Writes sound (samples,) in [-1, 1], 16 kHz, as a 16-bit mono WAV file."""
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(quantise(sound).astype("<i2").tobytes())


def load_audio(path: str | os.PathLike, rate: int = SAMPLE_RATE, align_to_video: bool = False) -> np.ndarray:
    """The first sound track of an audio or video file as float32 (samples,), mono, `rate` Hz, in [-1, 1].

    Any container, codec, rate, bit depth and channel count that FFmpeg decodes. Channels are averaged (which cannot
    exceed full scale) before a band-limited, zero-delay resampler; the result has round(duration * rate) samples,
    duration being that of the decoded samples. Sound is decoded in blocks: memory beyond the result stays small.
    Values beyond full scale (lossy codecs and float files overshoot) are clipped. Damaged packets are skipped.
    With `align_to_video` sample 0 is the time of the first video frame: silence is put in front of, or sound cut from,
    a track that starts later or earlier.

    Raises ValueError, one line that names the file: missing, a directory, empty, not media, no sound track, no
    samples, NaN or infinite samples, or float samples far outside [-1, 1].
    """
    data = bytearray()  # grows in place, so the peak is the result and not twice the result
    with open_media(path) as container:
        if not container.streams.audio:
            raise ValueError(f"{path} has no sound track; give a file with one (WAV, MP3, M4A, MP4, ...)")
        skip = _lag(container, rate) if align_to_video else 0
        data.extend(bytes(4 * max(-skip, 0)))
        lead = len(data)
        for piece in _resampled(_decode_mono(container, path), rate):
            data.extend(np.clip(piece, -1.0, 1.0).astype(np.float32).tobytes())
    if len(data) == lead:
        raise ValueError(f"{path} has a sound track with no samples (cut off or empty); export it again")
    audio = np.frombuffer(data, np.float32)[max(skip, 0) :]
    if not len(audio):
        raise ValueError(f"the sound of {path} ends before its first video frame; give a file where they overlap")
    return audio


def _decode_mono(container, path) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 (samples,) mean of the channels) for each decoded frame."""
    for frame in decode_packets(container, container.streams.audio[0], path):
        mono = _to_float(_channels(frame)).mean(axis=0, dtype=np.float64).astype(np.float32)
        peak = np.abs(mono).max(initial=0.0)
        if not math.isfinite(peak):
            raise ValueError(f"{path} has NaN or infinite samples; export it again as 16-bit WAV")
        if peak > MAX_PEAK:
            raise ValueError(f"{path} is damaged or not scaled: samples up to {peak:g}, expected [-1, 1]; re-export it")
        yield frame.sample_rate, mono


def _channels(frame) -> np.ndarray:
    """(channels, samples) of a decoded frame. Not `to_ndarray`: with 8 channels PyAV 18 reads a ninth, and crashes."""
    channels, samples = frame.layout.nb_channels, frame.samples
    kind = PCM_KINDS[frame.format.packed.name]
    if frame.format.is_planar:
        return np.stack([np.frombuffer(plane, kind, samples) for plane in frame.planes[:channels]])
    return np.frombuffer(frame.planes[0], kind, samples * channels).reshape(samples, channels).T


def _to_float(values: np.ndarray) -> np.ndarray:
    """PCM of any depth to floats in [-1, 1]; unsigned 8-bit is centred at 128, 24-bit arrives as 32-bit."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return values


def _lag(container, rate: int) -> int:
    """Samples of sound that lie before the first video frame; negative where the sound starts later."""
    sound, video = container.streams.audio[0], next(iter(container.streams.video), None)
    if video is None or sound.start_time is None or video.start_time is None:
        return 0
    return round((video.start_time * video.time_base - sound.start_time * sound.time_base) * rate)

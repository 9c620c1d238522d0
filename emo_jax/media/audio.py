"""Decodes the audio track of any media file to mono float32, and writes WAV files."""

from __future__ import annotations

import math
import os
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from emo_jax.media.container import decode_audio_frames, open_media
from emo_jax.media.loudness import SILENCE_DB, loudest_db, remove_offset
from emo_jax.media.resampling import resample_blocks
from emo_jax.media.timeline import GAPS, MAX_GAP, OVERLAPS, RESTARTS, join_blocks
from emo_jax.media.timing import SAMPLE_RATE

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

PCM_DTYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
"""numpy dtype of each FFmpeg sample format."""
MAX_PEAK = 16.0
"""Largest magnitude accepted in float audio; louder files were never scaled to [-1, 1]."""
MIN_RATE, MAX_RATE = 1000, 768_000
"""Sample rates in Hz accepted from a header."""
MAX_SECONDS = 6 * 3600
"""Longest audio that is decoded: 1.4 GB at 16 kHz."""
QUIET_DB = -45.0
"""Level in dBFS of the loudest 20 ms of a track below which the other tracks of a file are tried."""
TRACK_MARGIN_DB = 20.0
"""By how much another track must be louder than a quiet one before it."""
MIN_MIX_POWER = 0.25
"""Smallest power of the channels' mean, relative to that of independent channels; below it they cancel."""

ONE_CHANNEL, OTHER_TRACK = "one-channel", "other-track"
NOTES = {
    GAPS: "audio is missing in places; silence was inserted there",
    OVERLAPS: "the time stamps of the audio overlap in places; what repeats was left out",
    RESTARTS: "the time stamps of the audio go back; the parts were joined",
    ONE_CHANNEL: "the channels of the audio cancel each other; only the loudest is used",
    OTHER_TRACK: "the first audio track is silent or damaged; another one is used",
}
"""A sentence for the user about each flag of `Decoded`."""


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


class Decoded(NamedTuple):
    """Audio of a media file.

    Attributes:
        samples: float32 (samples,) in [-1, 1].
        flags: what was unusual about the file, keys of NOTES.
    """

    samples: np.ndarray
    flags: tuple[str, ...]


def load_audio(path: str | os.PathLike, rate: int = SAMPLE_RATE, align_to_video: bool = False) -> np.ndarray:
    """Decodes the audio of a media file to mono; returns the samples of `decode_audio`."""
    return decode_audio(path, rate, align_to_video).samples


def decode_audio(path: str | os.PathLike, rate: int = SAMPLE_RATE, align_to_video: bool = False) -> Decoded:
    """Decodes the first audible audio track of a media file to mono.

    A track below QUIET_DB is passed over if another one is louder by TRACK_MARGIN_DB.

    Reads any container, codec, rate, bit depth and channel count that FFmpeg decodes. Channels are averaged, which
    cannot exceed full scale, and then resampled without delay (`resample_blocks`). If channels of opposite sign cancel
    in the average, the loudest channel is used. Every sample is placed by its time stamp: missing audio becomes
    silence, and overlaps are trimmed (`join_blocks`). Values beyond full scale, as lossy codecs and float files have
    them, are clipped. Damaged packets are skipped. The file is decoded in blocks: memory beyond the result is small.

    Args:
        path: an audio or video file.
        rate: output rate in Hz.
        align_to_video: if True, sample 0 is the time of the first video frame. A track that starts later is padded with
            silence, a track that starts earlier is trimmed.

    Returns:
        The samples, round(duration * rate) of them, and flags.

    Raises:
        ValueError: if the file is missing or not media, has no audio track, no samples, NaN or infinite samples,
            samples far outside [-1, 1], a sample rate outside MIN_RATE to MAX_RATE, damaged time stamps, or more than
            MAX_SECONDS.
    """
    return decode_audible_track(path, rate, align_to_video)[0]


def decode_audible_track(
    path: str | os.PathLike, rate: int = SAMPLE_RATE, align_to_video: bool = False, seconds: float = MAX_SECONDS
) -> tuple[Decoded, int]:
    """Returns the audio of `decode_audio`, and the index of its track among the audio tracks of the file.

    Args:
        path: an audio or video file.
        rate: output rate in Hz.
        align_to_video: as `decode_audio` takes it.
        seconds: decode only so much from the start; a recording of more than MAX_SECONDS is an error only without it.
    """
    with open_media(path) as container:
        tracks = len(container.streams.audio)
    if not tracks:
        raise ValueError(f"{path} has no sound track; give a file with one (WAV, MP3, M4A, MP4, ...)")
    best: tuple[Decoded, int] | None = None
    best_level = -np.inf
    first_error: ValueError | None = None
    for track in range(tracks):
        try:
            decoded = _decode_track(path, track, rate, align_to_video, seconds)
        except ValueError as error:
            first_error = first_error or error
            continue
        level = loudest_db(remove_offset(decoded.samples))
        if best is None or level > max(best_level + TRACK_MARGIN_DB, SILENCE_DB):
            best, best_level = (decoded, track), level
        if best_level > QUIET_DB:
            break
    if best is not None:
        decoded, track = best
        return (Decoded(decoded.samples, (*decoded.flags, OTHER_TRACK)) if track else decoded), track
    assert first_error is not None  # every track either raised or was decoded
    raise first_error


def _decode_track(path: str | os.PathLike, track: int, rate: int, align_to_video: bool, seconds: float) -> Decoded:
    """Decodes one track; if its channels cancel, decodes the loudest channel instead."""
    mix = _Mix()
    decoded = _decode_mix(path, track, rate, align_to_video, seconds, mix)
    if not mix.cancels():
        return decoded
    mix = _Mix(channel=mix.loudest())
    samples, flags = _decode_mix(path, track, rate, align_to_video, seconds, mix)
    return Decoded(samples, (*flags, ONE_CHANNEL))


class _Mix:
    """Converts the channels of a track to mono, by their mean or by one channel, and measures their power."""

    def __init__(self, channel: int | None = None):
        self._channel = channel
        self._power = np.zeros(0)
        self._mean_power = 0.0

    def __call__(self, channels: np.ndarray) -> np.ndarray:
        """Converts float (channels, samples) to float32 (samples,)."""
        mean = channels.mean(axis=0, dtype=np.float64)
        if len(channels) > 1:
            power = np.square(channels, dtype=np.float64).sum(axis=1)
            missing = max(len(power) - len(self._power), 0)  # the number of channels may change within a track
            self._power = np.pad(self._power, (0, missing))
            self._power[: len(power)] += power
            self._mean_power += float(np.square(mean).sum())
        if self._channel is not None and self._channel < len(channels):
            return channels[self._channel].astype(np.float32)
        return mean.astype(np.float32)

    def loudest(self) -> int:
        """Returns the index of the loudest channel."""
        return int(self._power.argmax())

    def cancels(self) -> bool:
        """Returns whether the mean has less than MIN_MIX_POWER of the power that independent channels would have."""
        independent = self._power.sum() / max(len(self._power), 1) ** 2
        return self._mean_power < MIN_MIX_POWER * independent


def to_mono(samples: np.ndarray) -> np.ndarray:
    """Mixes channels as `decode_audio` does: their mean, or the loudest one if they cancel each other.

    Args:
        samples: float (samples, channels).

    Returns:
        float32 (samples,).
    """
    mix = _Mix()
    mono = mix(samples.T)
    return _Mix(channel=mix.loudest())(samples.T) if mix.cancels() else mono


def _decode_mix(
    path: str | os.PathLike, track: int, rate: int, align_to_video: bool, seconds: float, mix: _Mix
) -> Decoded:
    data = bytearray()  # grows in place, so that the peak memory is the result and not twice the result
    flags: list[str] = []
    with open_media(path) as container:
        stream = container.streams.audio[track]
        trim = _samples_before_video(container, stream, rate, path) if align_to_video else 0
        data.extend(bytes(4 * max(-trim, 0)))
        padding = len(data)
        for block in resample_blocks(join_blocks(decode_blocks(container, stream, path, mix), flags, path), rate):
            data.extend(np.clip(block, -1.0, 1.0).astype(np.float32).tobytes())
            if len(data) - padding >= 4 * rate * seconds and seconds < MAX_SECONDS:
                del data[padding + 4 * round(rate * seconds) :]
                break
            if len(data) > 4 * rate * MAX_SECONDS:
                raise ValueError(f"the audio of {path} is longer than {MAX_SECONDS // 3600} hours; split the file")
    if len(data) == padding:
        raise ValueError(f"{path} has an audio track without samples (truncated or empty); export it again")
    audio = np.frombuffer(data, np.float32)[max(trim, 0) :]
    if not len(audio):
        raise ValueError(f"the audio of {path} ends before its first video frame; give a file where they overlap")
    return Decoded(audio, tuple(flags))


def decode_blocks(
    container: InputContainer, stream: AudioStream, path: object, mix: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Fraction | None, int, np.ndarray]]:
    """Decodes a track frame by frame.

    Args:
        container: an open file.
        stream: one of its audio tracks.
        path: name of the file in error messages.
        mix: converts the float (channels, samples) of a frame to float32 (samples, ...).

    Yields:
        (time in seconds or None, sample rate, mixed samples) of each frame.

    Raises:
        ValueError: if samples are not finite or far outside [-1, 1], or the rate is outside MIN_RATE to MAX_RATE.
    """
    for frame in decode_audio_frames(container, stream, path):
        if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
            raise ValueError(
                f"{path} has a sample rate of {frame.sample_rate} Hz, expected {MIN_RATE} to {MAX_RATE}: its header is "
                "damaged; export it again"
            )
        samples = mix(to_float(_channels(frame)))
        peak = np.abs(samples).max(initial=0.0)
        if not math.isfinite(peak):
            raise ValueError(f"{path} has NaN or infinite samples; export it again as 16-bit WAV")
        if peak > MAX_PEAK:
            raise ValueError(
                f"{path} has samples up to {peak:g}, expected [-1, 1]: damaged or not scaled; export it again"
            )
        time = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        yield time, frame.sample_rate, samples


def _channels(frame: AudioFrame) -> np.ndarray:
    """Returns (channels, samples) of a decoded frame in its own sample format.

    Replaces `frame.to_ndarray`, which reads a ninth channel in eight-channel frames and crashes (PyAV 18).
    """
    channels, samples = frame.layout.nb_channels, frame.samples
    dtype = PCM_DTYPES[frame.format.packed.name]
    if frame.format.is_planar:
        return np.stack([np.frombuffer(memoryview(plane), dtype, samples) for plane in frame.planes[:channels]])
    return np.frombuffer(memoryview(frame.planes[0]), dtype, samples * channels).reshape(samples, channels).T


def to_float(values: np.ndarray) -> np.ndarray:
    """Converts PCM of any bit depth to floats in [-1, 1]; FFmpeg decodes 24-bit to 32-bit."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)
    return values


def _samples_before_video(container: InputContainer, audio: AudioStream, rate: int, path: object) -> int:
    """Returns how many samples precede the first video frame; negative if the audio starts later."""
    video = next(iter(container.streams.video), None)
    if video is None or video.start_time is None or audio.start_time is None:
        return 0
    if video.time_base is None or audio.time_base is None:
        return 0
    lead = video.start_time * video.time_base - audio.start_time * audio.time_base
    if abs(lead) > MAX_GAP:
        raise ValueError(
            f"the audio of {path} starts {float(abs(lead)):.0f} s {'before' if lead > 0 else 'after'} its video, "
            f"expected at most {MAX_GAP} s: its time stamps are damaged; remux it (ffmpeg -i IN -c copy OUT)"
        )
    return round(lead * rate)

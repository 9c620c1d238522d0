"""The sound track of a written video: all channels of an array or a file, at a rate that mp4 files carry."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from emo_jax.media.audio import decode_blocks
from emo_jax.media.container import open_media
from emo_jax.media.resampling import resample_blocks
from emo_jax.media.timeline import join_blocks

RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sample rates of AAC in Hz."""
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""FFmpeg's name of the layout of a number of channels."""


class SoundTrack(NamedTuple):
    """Sound that is read block by block.

    Attributes:
        rate: samples per second, one of RATES.
        channels: number of channels, a key of LAYOUTS.
        blocks: returns an iterator of float32 (samples, channels) in [-1, 1]; every call starts anew.
    """

    rate: int
    channels: int
    blocks: Callable[[], Iterator[np.ndarray]]

    def skip(self, seconds: float) -> SoundTrack:
        """Returns the track without its first seconds."""

        def blocks() -> Iterator[np.ndarray]:
            left = round(seconds * self.rate)
            for block in self.blocks():
                if left < len(block):
                    yield block[left:]
                left = max(0, left - len(block))

        return self._replace(blocks=blocks) if seconds else self

    def read(self) -> np.ndarray:
        """Returns all samples: float32 (samples,) for one channel, else (samples, channels)."""
        samples = np.concatenate([np.zeros((0, self.channels), np.float32), *self.blocks()])
        return samples[:, 0] if self.channels == 1 else samples


def array_track(audio: np.ndarray, rate: int) -> SoundTrack:
    """Returns the track of an array; rates that AAC lacks are converted as by `file_track`.

    Args:
        audio: float (samples,) or (samples, channels); values beyond [-1, 1] are clipped.
        rate: its sample rate in Hz.

    Raises:
        ValueError: if the array has another shape or type, no channels, or values that are not finite.
    """
    audio = np.asarray(audio)
    channels = audio.shape[1] if audio.ndim == 2 else 1
    if audio.ndim not in (1, 2) or audio.dtype.kind != "f" or not 1 <= channels <= max(LAYOUTS):
        raise ValueError(
            f"audio is {audio.dtype} {audio.shape}; expected float32 (samples,) or (samples, channels), at most "
            f"{max(LAYOUTS)} channels"
        )
    if not np.isfinite(audio).all():
        raise ValueError("audio has NaN or infinite samples; expected numbers in [-1, 1]")
    if rate < 1:
        raise ValueError(f"audio_rate is {rate}; expected samples per second, such as 16000")
    if audio.min(initial=0.0) < -1 or audio.max(initial=0.0) > 1:
        audio = np.clip(audio, -1.0, 1.0)
    audio = audio.reshape(len(audio), channels).astype(np.float32, copy=False)  # no needless copy of an hour of sound
    out_rate = _rate(rate)
    return SoundTrack(out_rate, channels, lambda: clip_blocks([(rate, audio)], out_rate))


def file_track(path: str | os.PathLike, index: int = 0) -> SoundTrack:
    """Returns an audio track of a file, decoded block by block while it is read.

    Rates that AAC lacks are resampled to the next higher one, at most 96 kHz. More channels than LAYOUTS has are
    mixed to one, with a note on stderr. Every sample is at its time: see `join_blocks`.

    Args:
        path: an audio or video file.
        index: the audio track among those of the file.

    Raises:
        ValueError: if the file cannot be read or has no such track.
    """
    with open_media(path) as container:
        if index >= len(container.streams.audio):
            raise ValueError(f"{path} has no audio track {index}; it has {len(container.streams.audio)}")
        context = container.streams.audio[index].codec_context
        count, rate = context.layout.nb_channels, _rate(context.sample_rate)
    channels = count if count in LAYOUTS else 1
    if count > max(LAYOUTS):
        _note_mixed(path, count)

    def mix(samples: np.ndarray) -> np.ndarray:
        if len(samples) > max(LAYOUTS):
            samples = samples.mean(axis=0, dtype=np.float64, keepdims=True)
        missing = max(channels - len(samples), 0)  # the number of channels may change within a track
        return np.pad(samples[:channels], ((0, missing), (0, 0)), mode="edge").T.astype(np.float32)

    def blocks() -> Iterator[np.ndarray]:
        with open_media(path) as container:
            frames = decode_blocks(container, container.streams.audio[index], path, mix)
            yield from clip_blocks(join_blocks(frames, [], path), rate)

    return SoundTrack(rate, channels, blocks)


def convert_track(track: SoundTrack, rate: int) -> SoundTrack:
    """Returns a track at another sample rate in Hz, resampled while it is read."""
    if track.rate == rate:
        return track
    return track._replace(rate=rate, blocks=lambda: clip_blocks(((track.rate, b) for b in track.blocks()), rate))


def mix_track(track: SoundTrack) -> SoundTrack:
    """Returns the mean of the channels of a track, with a note on stderr."""
    _note_mixed("the sound", track.channels)
    return track._replace(channels=1, blocks=lambda: (block.mean(1, keepdims=True) for block in track.blocks()))


def _note_mixed(name: object, channels: int) -> None:
    print(f"note: {name} has {channels} channels; the video gets their mean, as one channel", file=sys.stderr)


class TrackReader:
    """Reads a sound track in pieces of any length, followed by silence.

    Args:
        track: the sound track.
    """

    def __init__(self, track: SoundTrack):
        self.track = track
        self._blocks = track.blocks()
        self._held = np.zeros((0, track.channels), np.float32)

    def read(self, count: int) -> np.ndarray:
        """Returns the next `count` samples, (count, channels)."""
        blocks, held = [self._held], len(self._held)
        while held < count:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros((count - held, self.track.channels), np.float32)
            blocks.append(block)
            held += len(block)
        samples = np.concatenate(blocks)
        self._held = samples[count:]
        return samples[:count]


def clip_blocks(blocks: Iterable[tuple[int, np.ndarray]], rate: int) -> Iterator[np.ndarray]:
    """Yields blocks (rate, samples) resampled to another rate in Hz and clipped to [-1, 1]."""
    for block in resample_blocks(blocks, rate):
        yield np.clip(block, -1.0, 1.0)


def _rate(rate: int) -> int:
    """Returns the smallest rate of AAC that is at least `rate`, or the highest one."""
    return next((allowed for allowed in RATES if allowed >= rate), RATES[-1])

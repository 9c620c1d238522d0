"""Sound that arrives while it is used: from a pipe or a microphone."""

from __future__ import annotations

import bisect
import os
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np

from emo_jax.media.audio import decode_blocks, to_mono
from emo_jax.media.container import open_pipe
from emo_jax.media.resampling import resample_blocks
from emo_jax.media.soundtrack import LAYOUTS, RATES, SoundTrack, clip_blocks
from emo_jax.media.timing import SAMPLE_RATE

MAX_AHEAD = 1000
"""Blocks that are read before they are played; a file that is sent through a pipe would fill the memory otherwise."""
MICROPHONE_RATE, MICROPHONE_BLOCK = 48000, 960
"""Sample rate in Hz, and samples of 20 ms that are read at once."""


class Source(NamedTuple):
    """Sound as it comes.

    Attributes:
        rate: samples per second.
        channels: number of channels.
        blocks: float32 (samples, channels), each yielded when it is there.
    """

    rate: int
    channels: int
    blocks: Iterator[np.ndarray]


def open_source(name: str) -> Source:
    """Returns the sound of standard input ("-"), of a named pipe, or of the default microphone ("microphone").

    Raises:
        ValueError: the pipe has no sound in a format that is read, or the microphone cannot be used.
    """
    if name == "microphone":
        return _microphone()
    return _pipe(0 if name == "-" else os.open(name, os.O_RDONLY), "standard input" if name == "-" else name)


def _pipe(descriptor: int, name: str) -> Source:
    container = open_pipe(descriptor, name)
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        raise ValueError(f"{name} has no sound; send WAV, MP3, Ogg or another format with its header")
    context = stream.codec_context
    channels = context.layout.nb_channels
    if not 1 <= channels <= max(LAYOUTS):
        raise ValueError(f"{name} has {channels} channels; expected 1 to {max(LAYOUTS)}")

    def mix(samples: np.ndarray) -> np.ndarray:
        missing = max(channels - len(samples), 0)  # the number of channels may change
        return np.pad(samples[:channels], ((0, missing), (0, 0)), mode="edge").T.astype(np.float32)

    def blocks() -> Iterator[np.ndarray]:
        with container:
            # Time stamps are not used: a pipe is heard as it comes.
            yield from (np.clip(block, -1, 1) for _, _, block in decode_blocks(container, stream, name, mix))

    return Source(context.sample_rate, channels, blocks())


def _microphone() -> Source:
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: the library PortAudio is missing
        raise ValueError(
            f"the microphone needs the extra microphone and PortAudio ({error}): pip install -c constraints.txt -e "
            "'.[microphone]', or pipe sound in: arecord -f S16_LE -r 16000 | emo generate --live --audio -"
        ) from error
    try:
        stream = sounddevice.InputStream(MICROPHONE_RATE, channels=1, dtype="float32", blocksize=MICROPHONE_BLOCK)
        stream.start()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"the microphone cannot be used ({error}); choose another default device") from error

    def blocks() -> Iterator[np.ndarray]:
        with stream:
            while True:
                yield stream.read(MICROPHONE_BLOCK)[0].copy()

    return Source(MICROPHONE_RATE, 1, blocks())


class LiveSound:
    """Reads a source in a thread, for the networks (`heard`) and for the sound of the video (`track`).

    Args:
        source: the sound.

    Attributes:
        track: the sound of the video; its blocks can be read once.
    """

    def __init__(self, source: Source):
        rate = next((allowed for allowed in RATES if allowed >= source.rate), RATES[-1])
        self._source, self._played = source, queue.Queue[np.ndarray | None](MAX_AHEAD)
        self.track = SoundTrack(rate, source.channels, lambda: clip_blocks(self._rest(), rate))
        self._samples, self._first = np.zeros(0, np.float32), 0
        self._arrivals: list[tuple[int, float]] = []
        self._stopped, self._ended, self._error = False, False, None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="read sound", daemon=True).start()

    def stop(self) -> None:
        """Ends the sound at its next block; what has come is still used. May be called by a signal handler."""
        self._stopped = True  # takes no lock, since the interrupted thread may hold it

    def _rest(self) -> Iterator[tuple[int, np.ndarray]]:
        while (block := self._played.get()) is not None:
            yield self._source.rate, block

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for block in self._source.blocks:
            if self._stopped:
                break
            self._played.put(block)
            yield self._source.rate, to_mono(block)
        if isinstance(self._source.blocks, Generator):
            self._source.blocks.close()  # releases the microphone

    def _read(self) -> None:
        try:
            for mono in resample_blocks(self._blocks(), SAMPLE_RATE):
                with self._changed:
                    self._samples = np.concatenate([self._samples, np.clip(mono, -1, 1)])
                    self._arrivals.append((self._first + len(self._samples), time.monotonic()))
                    self._changed.notify_all()
        except Exception as error:  # raised by `wait`, in the thread that uses the sound
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._played.put(None)

    def wait(self, count: int) -> int | None:
        """Waits until `count` samples at 16 kHz have come, or all.

        Returns:
            None, or the number of all samples if the sound has ended before.

        Raises:
            ValueError: the sound cannot be read further.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._first + len(self._samples) >= count)
            if self._error is not None:
                raise ValueError(f"the sound cannot be read: {self._error}") from self._error
            there = self._first + len(self._samples)
            return there if self._ended and there < count else None

    def heard(self, first: int, end: int) -> np.ndarray:
        """Returns the samples [first, end) at 16 kHz that are there, and forgets those before `first`."""
        with self._changed:
            dropped = max(0, min(first - self._first, len(self._samples)))
            self._samples, self._first = self._samples[dropped:], self._first + dropped
            return self._samples[: max(0, end - self._first)].copy()

    def arrival(self, sample: int) -> float:
        """Returns the time (of `time.monotonic`) at which a sample has come."""
        with self._changed:
            index = bisect.bisect_right(self._arrivals, sample, key=lambda pair: pair[0])
            time_of = self._arrivals[min(index, len(self._arrivals) - 1)][1]
            del self._arrivals[: max(0, index - 1)]  # times are asked for in order
            return time_of

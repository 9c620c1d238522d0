"""Sound: of any container at 16 kHz mono, as a WAV file, and the windows of it that belong to video frames.

Every place that turns frames into samples or back uses the functions below, in exact rational arithmetic, so that
training, sampling and the written file agree on where a frame's sound lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

BLOCK = 1 << 16  # input samples resampled at a time
ZERO_CROSSINGS = 32  # of the resampling filter, on each side
KAISER_BETA = 8.0  # about 80 dB of stop band
CUTOFF = 0.92  # of the lower Nyquist rate; the filter is flat to 0.84 and closed at 1.0


def _resampled(pieces: Iterable[tuple[int, np.ndarray]], rate: int) -> Iterator[np.ndarray]:
    """Blocks at `rate`; a stream that changes its own rate midway is resampled part by part."""
    resampler = None
    for source_rate, piece in pieces:
        if resampler is None or resampler.source != source_rate:
            if resampler is not None:
                yield from resampler.flush()
            resampler = BlockResampler(source_rate, rate)
        yield from resampler.feed(piece)
    if resampler is not None:
        yield from resampler.flush()


class BlockResampler:
    """Band-limited resampling of a stream: the same output as for the whole signal at once, in bounded memory.

    `feed` samples (n,) and `flush` at the end, each an iterator of float32 blocks; round(total * target / source)
    samples come out in all, with no delay. Blocks start at multiples of the reduced source rate, where input and
    output samples coincide, and are filtered with as much context on both sides as the filter is long.
    """

    def __init__(self, source: int, target: int):
        ratio = Fraction(target, source)
        self.source, self.up, self.down = source, ratio.numerator, ratio.denominator
        half = ZERO_CROSSINGS * max(self.up, self.down)
        self._taps = _low_pass(half, CUTOFF / max(self.up, self.down)) if ratio != 1 else None
        self._context = self.down * math.ceil(half / self.up / self.down)
        self._block = self.down * math.ceil(BLOCK / self.down)
        self._pieces, self._held = [np.zeros(self._context, np.float32)], self._context
        self._read = self._written = 0

    def feed(self, piece: np.ndarray) -> Iterator[np.ndarray]:
        self._read += len(piece)
        if self._taps is None:
            yield piece
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held >= self._block + 2 * self._context:
            yield from self._drain()

    def flush(self) -> Iterator[np.ndarray]:
        if self._taps is None:
            return
        missing = round(Fraction(self._read * self.up, self.down)) - self._written
        blocks = math.ceil(missing / (self._block // self.down * self.up))
        short = max(blocks * self._block + 2 * self._context - self._held, 0)
        self._pieces.append(np.zeros(short, np.float32))
        for block in self._drain():
            yield block[:missing]
            missing -= len(block[:missing])

    def _drain(self) -> Iterator[np.ndarray]:
        from scipy.signal import resample_poly

        held, first = np.concatenate(self._pieces), 0
        skip, size = self._context // self.down * self.up, self._block // self.down * self.up
        while len(held) - first >= self._block + 2 * self._context:
            window = held[first : first + self._block + 2 * self._context]
            yield resample_poly(window, self.up, self.down, window=self._taps)[skip : skip + size]
            self._written += size
            first += self._block
        self._pieces, self._held = [held[first:]], len(held) - first


def _low_pass(half: int, cutoff: float) -> np.ndarray:
    """Kaiser-windowed sinc, 2 * half + 1 taps of sum 1; cutoff as a share of the Nyquist rate."""
    taps = cutoff * np.sinc(cutoff * np.arange(-half, half + 1)) * np.kaiser(2 * half + 1, KAISER_BETA)
    return (taps / taps.sum()).astype(np.float32)

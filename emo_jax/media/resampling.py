"""Resamples a stream of audio blocks with libsoxr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np


def resample_blocks(blocks: Iterable[tuple[int, np.ndarray]], rate: int) -> Iterator[np.ndarray]:
    """Resamples audio block by block, in bounded memory.

    The output does not depend on how the signal is split into blocks. It has no delay: input time t is output time t.
    If the input rate or the number of channels changes within the stream, each part is resampled separately.

    libsoxr's HQ setting is flat within 0.01 dB up to 0.91 of the lower Nyquist rate; aliases and images are below
    -130 dB. Values are not clipped: a band-limited signal may exceed the peak of its samples.

    Args:
        blocks: pairs (input rate in Hz, float32 samples (n,) or (n, channels)).
        rate: output rate in Hz.

    Yields:
        float32 (m,) or (m, channels) blocks at `rate`. A part of n samples at one rate gives round(n * rate / input
            rate) samples in all.
    """
    resampler = None
    for input_rate, block in blocks:
        if resampler is None or resampler.input_rate != input_rate or resampler.shape != block.shape[1:]:
            if resampler is not None:
                yield resampler.flush()
            resampler = _Resampler(input_rate, rate, block.shape[1:])
        yield resampler.process(block)
    if resampler is not None:
        yield resampler.flush()


class _Resampler:
    """One `soxr.ResampleStream` whose total length is exactly round(n * output rate / input rate).

    soxr rounds half up and so may give one sample more than Python's `round`; equal rates bypass it.
    """

    def __init__(self, input_rate: int, output_rate: int, shape: tuple[int, ...]):
        import soxr

        self.input_rate, self.shape = input_rate, shape
        channels = shape[0] if shape else 1
        self._ratio = Fraction(output_rate, input_rate)
        self._stream = None
        if self._ratio != 1:
            self._stream = soxr.ResampleStream(input_rate, output_rate, channels, "float32", "HQ")
        self._consumed = self._produced = 0

    def process(self, block: np.ndarray) -> np.ndarray:
        """Returns the samples that follow from the input so far."""
        if self._stream is None:
            return block
        self._consumed += len(block)
        output = self._stream.resample_chunk(np.ascontiguousarray(block, np.float32))
        self._produced += len(output)
        return output

    def flush(self) -> np.ndarray:
        """Returns the remaining samples; the resampler cannot be used afterwards."""
        empty = np.zeros((0, *self.shape), np.float32)
        if self._stream is None:
            return empty
        missing = max(round(self._consumed * self._ratio) - self._produced, 0)
        output = self._stream.resample_chunk(empty, last=True)[:missing]
        return np.pad(output, [(0, missing - len(output))] + [(0, 0)] * len(self.shape))

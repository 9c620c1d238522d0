"""Joins decoded audio blocks by their time stamps: gaps become silence, overlaps are trimmed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

TOLERANCE = Fraction(40, 1000)
"""Deviation in seconds between time stamps and sample count that is ignored; many formats round their time stamps."""
MAX_OVERLAP = 5
"""Seconds; if time stamps go back further, a new recording begins, which is appended."""
MAX_GAP = 600
"""Seconds of missing audio that are filled; a longer gap is a damaged time stamp."""

GAPS, OVERLAPS, RESTARTS = "sound-gaps", "sound-overlaps", "sound-restarts"


def join_blocks(
    blocks: Iterable[tuple[Fraction | None, int, np.ndarray]], flags: list[str], path: object
) -> Iterator[tuple[int, np.ndarray]]:
    """Joins audio blocks so that every sample is at its time.

    Args:
        blocks: tuples (time in seconds or None, rate in Hz, samples (n, ...)). A block without time follows the
            previous one.
        flags: receives GAPS, OVERLAPS or RESTARTS, once each, if the time stamps were not continuous.
        path: name of the file in error messages.

    Yields:
        (rate, samples): the input with zeros in gaps and without the overlapping start of blocks.

    Raises:
        ValueError: if a gap exceeds MAX_GAP.
    """
    expected: Fraction | None = None
    for time, rate, samples in blocks:
        if time is not None and expected is not None and abs(time - expected) > TOLERANCE:
            missing = time - expected
            if missing > MAX_GAP:
                raise ValueError(
                    f"{path} has no sound for {float(missing):.0f} s, expected at most {MAX_GAP} s: its time stamps "
                    "are damaged; remux it (ffmpeg -i IN -c copy OUT) or split it there"
                )
            if missing > 0:
                _add_flag(flags, GAPS)
                yield from _silence(round(missing * rate), rate, samples)
                expected = time
            elif -missing <= MAX_OVERLAP:
                _add_flag(flags, OVERLAPS)
                samples = samples[min(round(-missing * rate), len(samples)) :]
            else:
                _add_flag(flags, RESTARTS)
                expected = time
        elif expected is None:
            expected = time or Fraction(0)
        expected += Fraction(len(samples), rate)
        yield rate, samples


def _silence(count: int, rate: int, like: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields `count` zero samples in blocks of one second."""
    for start in range(0, count, rate):
        yield rate, np.zeros((min(rate, count - start), *like.shape[1:]), like.dtype)


def _add_flag(flags: list[str], flag: str) -> None:
    if flag not in flags:
        flags.append(flag)

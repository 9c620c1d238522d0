"""Several videos in one program: their rows of a batch, and their frames in turn."""

import collections
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from emo_jax.generation.checks import check_frames, check_usable
from emo_jax.generation.prepared import Prepared
from emo_jax.generation.sampler import VideoSampler

Item = TypeVar("Item")
Batches = Iterator[tuple[UInt8[np.ndarray, "batch frames height width 3"], Bool[np.ndarray, " batch"]]]


def sample_one(sampler: VideoSampler, video: Prepared) -> Iterator[UInt8[np.ndarray, "frames height width 3"]]:
    """Yields the frames of the square of one video, segment by segment."""
    segments = sampler.stream(
        video.crop[None],
        video.masks,
        video.samples[None],
        speed=_speeds([video], video.total),
        scales=video.scales,
        key=jax.random.key(video.seed),
        hold=None if video.canvas is None else video.canvas.hold[None],
        on_window=video.on_window,
        **video.extra,
    )
    return (check_frames(frames[0], index) for index, frames in enumerate(segments))


def sample_many(
    sampler: VideoSampler, videos: Sequence[Prepared], batch: int
) -> list[Iterator[UInt8[np.ndarray, "frames height width 3"]]]:
    """Samples videos of one group together; returns an iterator of the frames of each.

    Each video equals that of `sample_one` up to rounding: it has noise from its seed, and its length. Iterate over all
    in turn, so that no frames are kept for long; one that is not iterated to its end must be closed.

    Args:
        sampler: the sampler of the group.
        videos: at most `batch` of them.
        batch: size of the program's batch; missing rows repeat the shortest video, so that nothing is compiled again.
    """
    shortest = min(videos, key=lambda video: video.total)
    rows = [*videos, *[shortest] * (batch - len(videos))]
    longest = max(video.total for video in rows)
    first = rows[0]
    extra = dict(first.extra)
    if extra.get("face") is not None:
        extra["face"] = np.concatenate([video.extra["face"] for video in rows])
    if extra.get("regions") is not None:
        extra["regions"] = [np.concatenate(level) for level in zip(*(v.extra["regions"] for v in rows), strict=True)]
    batches = sampler.sample(
        np.stack([video.crop for video in rows]),
        np.concatenate([video.masks for video in rows]),
        [video.samples for video in rows],
        speed=_speeds(rows, longest),
        scales=first.scales,
        key=jnp.stack([jax.random.key(video.seed) for video in rows]),
        hold=None if first.canvas is None else np.stack([_hold(video) for video in rows]),
        **extra,
    )
    shared = _Shared(batches, [video.total for video in videos])
    return [shared.row(index) for index in range(len(videos))]


def in_turn(iterators: Sequence[Iterator[Item]]) -> Iterator[tuple[int, Item]]:
    """Yields (index, item) of iterators in turn, one item of each, until all are over."""
    running = dict(enumerate(iterators))
    while running:
        for index, iterator in list(running.items()):
            try:
                yield index, next(iterator)
            except StopIteration:
                del running[index]


class _Shared:
    """Splits batches of frames into the videos of their rows."""

    def __init__(self, batches: Batches, totals: list[int]):
        self._batches, self._totals = batches, totals
        self._held: list[collections.deque] = [collections.deque() for _ in totals]
        self._open = set(range(len(totals)))
        self._error: Exception | None = None

    def row(self, row: int) -> Iterator[np.ndarray]:
        left, index = self._totals[row], 0
        try:
            while left > 0:
                if not self._held[row]:
                    self._advance()
                frames, usable = self._held[row].popleft()
                check_usable(usable, index)
                yield check_frames(frames[:left], index)
                left, index = left - len(frames), index + 1
        finally:
            self._open.discard(row)
            self._held[row].clear()

    def _advance(self) -> None:
        if self._error is not None:  # of the program: it concerns all rows
            raise self._error
        try:
            frames, usable = next(self._batches)
        except Exception as error:
            self._error = error
            raise
        for row in self._open:
            self._held[row].append((frames[row], bool(usable[row])))


def _hold(video: Prepared) -> np.ndarray:
    assert video.canvas is not None
    return video.canvas.hold


def _speeds(videos: Sequence[Prepared], count: int) -> Float[np.ndarray, "..."]:
    """Returns the speed of each video, or of each of its first `count` frames if one is a curve; its end stays."""
    speeds = [np.asarray(v.sampling.speed if v.speed is None else v.speed, np.float32) for v in videos]
    if all(speed.ndim == 0 for speed in speeds):
        return np.stack(speeds)
    curves = [np.full(count, speed) if speed.ndim == 0 else speed for speed in speeds]
    return np.stack([np.pad(curve, (0, max(0, count - len(curve))), mode="edge")[:count] for curve in curves])

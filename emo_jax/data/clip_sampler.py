"""Draws one training sample (a clip with its conditions) from one record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emo_jax.data import motion_fields, records, transforms
from emo_jax.data.latents import LatentSource
from emo_jax.data.sources import Source
from emo_jax.media import mp4
from emo_jax.media.timing import audio_context

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class ClipSampler:
    """Draws a clip: (position in the source, random generator) -> one sample, without the batch axis.

    The fields are those of `config.clip` and `config.data`; see `pipeline.make_dataset`.
    """

    source: Source
    frames: int
    motion_frames: int
    audio_window: int
    fps: float
    image_size: tuple[int, int]
    crop_scale: tuple[float, float]
    min_reference_gap: float
    same_window_prob: float
    first_clip_prob: float
    flip_prob: float
    color_jitter: float
    audio_context: float = 0.0
    flow_cell: int = 0
    face: tuple[float, tuple[float, float]] | None = None

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws a sample from the record at `position`; its fields are listed in `pipeline.element_spec`."""
        with records.open_record(self.source, position) as record:
            return self._draw(record, rng)

    def _draw(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        total = len(record["boxes"])
        if picture := total < self.frames:  # it stands still
            total = self.motion_frames + self.frames
        has_motion = self.motion_frames > 0 and bool(rng.random() >= self.first_clip_prob)
        before = self.motion_frames if has_motion else 0
        start = transforms.choose_start(rng, total, self.frames, before)
        gap = transforms.gap_frames(self.min_reference_gap, self.fps)
        reference = start if picture else transforms.choose_reference(rng, total, start, self.frames, gap, before)
        return self._images(record, rng, reference, start, before) | {
            **self._audio(record, start),
            "has_sound": np.asarray(self._has_sound(record)),
            "speed": transforms.speed_window(record["speed"], start, self.frames, self.audio_window),
        }

    def _images(
        self, record: dict[str, Any], rng: np.random.Generator, reference: int, start: int, before: int
    ) -> dict[str, np.ndarray]:
        """Returns the augmented reference, motion frames, frames and mask; `before` is the number of motion frames."""
        decode = functools.partial(mp4.decode_video, record["video"])
        clip = _still_or_moving(record, decode, start - before, before + self.frames)
        reference_frame = _still_or_moving(record, decode, reference, 1)
        size = clip.shape[1:3]
        # With one window for both, the face position in the reference would reveal what the mask says. With probability
        # same_window_prob it is one window nevertheless, so that the model also learns to copy a static background.
        shapes = (size, self.image_size, self.crop_scale)
        if self.face:
            box = record["boxes"][min(reference, len(record["boxes"]) - 1)]
            window = transforms.choose_face_window(rng, *shapes, box, self.face)
        else:
            window = transforms.choose_window(rng, *shapes)
        in_clip = self._in_clip(reference, start)
        scale = transforms.tighter_scale(self.crop_scale) if in_clip else self.crop_scale
        reference_window = transforms.choose_window(rng, size, self.image_size, scale)
        if rng.random() < self.same_window_prob and not in_clip:
            reference_window = window
        clip = transforms.crop(clip, window, self.image_size)
        boxes = self._boxes(record, start)
        sample = {
            "reference": transforms.crop(reference_frame, reference_window, self.image_size)[0],
            "motion": self._motion(clip[:before]),
            "frames": clip[before:],
            "has_motion": np.asarray(before > 0),
            "mask": transforms.union_mask(boxes, window, self.image_size),
        }
        if mirrored := rng.random() < self.flip_prob:
            sample = transforms.flip_horizontally(sample)
        if self.color_jitter:
            sample = transforms.change_colors(sample, *transforms.choose_colors(rng, self.color_jitter))
        if self.flow_cell:
            place, last = functools.partial(self._points, record, mirrored=mirrored), len(record["boxes"]) - 1
            numbers = [min(number, last) for number in range(start - before, start + self.frames)]
            known, points = place([min(reference, last)], reference_window), place(numbers, window)
            sample["field"] = self._fields(sample, points, known)
        return sample

    def _points(
        self, record: dict[str, Any], numbers: Sequence[int], window: transforms.Window, mirrored: bool
    ) -> list[np.ndarray | None]:
        """Returns the landmarks of some frames in the crops of a window."""
        named = motion_fields.named_points(record["landmarks"])
        if named is None:
            return [None] * len(numbers)
        placed = transforms.place_points(named[np.asarray(numbers)], window, self.image_size)
        return [*(transforms.mirror_points(placed, self.image_size[1]) if mirrored else placed)]

    def _fields(
        self, sample: dict[str, np.ndarray], points: Sequence[np.ndarray | None], known: Sequence[np.ndarray | None]
    ) -> np.ndarray:
        """Returns the fields (motion frames + frames, ...) of a sample; those of missing motion frames are zeros."""
        frames = [*sample["motion"], *sample["frames"]]
        missing = len(frames) - len(points)
        find = functools.partial(motion_fields.motion_field, reference=sample["reference"], cell=self.flow_cell)
        found = [find(frame, points=at, known=known[0]) for frame, at in zip(frames[missing:], points, strict=True)]
        return np.stack([np.zeros_like(found[0])] * missing + found).astype(np.float16)

    def _boxes(self, record: dict[str, Any], start: int) -> np.ndarray:
        """Returns the boxes (frames, 4) of a clip."""
        boxes = record["boxes"]
        return boxes if len(boxes) == 1 else boxes[start : start + self.frames]

    def _has_sound(self, record: dict[str, Any]) -> bool:
        return len(record["audio"]) > 0

    def _in_clip(self, reference: int, start: int) -> bool:
        """Returns whether the reference is a frame of the clip, as for a single picture."""
        return start <= reference < start + self.frames

    def _motion(self, images: np.ndarray) -> np.ndarray:
        """Returns the motion frames; zeros for the first clip of a video."""
        return images if len(images) else np.zeros((self.motion_frames, *images.shape[1:]), images.dtype)

    def _audio(self, record: dict[str, Any], start: int) -> dict[str, np.ndarray]:
        reach, context = self.audio_window, self.audio_context
        return {
            "audio": transforms.audio_window(record["audio"], start, self.frames, reach, self.fps, context),
            "audio_moments": record["audio_moments"],
        }


def _still_or_moving(
    record: dict[str, Any], read: Callable[[int, int], np.ndarray], first: int, count: int
) -> np.ndarray:
    """Reads `count` frames from `first` on with read(first, count); the single frame of a picture is repeated."""
    return read(0, 1).repeat(count, 0) if len(record["boxes"]) == 1 else read(first, count)


@dataclasses.dataclass(frozen=True)
class LatentClipSampler(ClipSampler):
    """Draws a clip from latents. Requires color_jitter = 0, and flip_prob = 0 unless mirrored latents were encoded."""

    source: LatentSource

    def _images(
        self, record: dict[str, Any], rng: np.random.Generator, reference: int, start: int, before: int
    ) -> dict[str, np.ndarray]:
        count = self.source.layout.windows
        window = reference_window = int(rng.integers(count))
        if (rng.random() >= self.same_window_prob or self._in_clip(reference, start)) and count > 1:
            reference_window = (window + int(rng.integers(1, count))) % count
        mirrored = bool(rng.random() < self.flip_prob)
        position = record["position"]
        read = functools.partial(self.source.frames, position, window, mirrored)
        read_reference = functools.partial(self.source.frames, position, reference_window, mirrored)
        clip = _still_or_moving(record, read, start - before, before + self.frames)
        mask = transforms.union_mask(self._boxes(record, start), tuple(record["windows"][window]), self.image_size)
        return {
            "reference": _still_or_moving(record, read_reference, reference, 1)[0],
            "motion": self._motion(clip[:before]),
            "frames": clip[before:],
            "has_motion": np.asarray(before > 0),
            "mask": mask[:, ::-1] if mirrored else mask,
        }

    def _has_sound(self, record: dict[str, Any]) -> bool:
        return bool(self.source.index()["sound"][record["position"]])

    def _audio(self, record: dict[str, Any], start: int) -> dict[str, np.ndarray]:
        if not self.source.layout.layers:
            return super()._audio(record, start)
        first, count = start - self.audio_window, self.frames + 2 * self.audio_window
        return {"audio": self.source.features(record["position"], first, count)}


def make_clip_sampler(source: Source, data_config: ConfigDict, clip_config: ConfigDict) -> ClipSampler:
    """Returns the sampler of `pipeline.make_dataset` for a source, given `config.data` and `config.clip`."""
    settings = dict(
        frames=clip_config.frames,
        motion_frames=clip_config.motion_frames,
        audio_window=clip_config.audio_window,
        fps=clip_config.fps,
        image_size=tuple(clip_config.image_size),
        crop_scale=tuple(data_config.crop_scale),
        min_reference_gap=data_config.min_reference_gap,
        same_window_prob=data_config.same_window_prob,
        first_clip_prob=data_config.first_clip_prob,
        flip_prob=data_config.flip_prob,
        color_jitter=data_config.color_jitter,
        audio_context=audio_context(clip_config),
        flow_cell=clip_config.get("flow_cell", 0),  # older weights: no flow
        face=(clip_config.face.height, tuple(clip_config.face.centre)) if data_config.get("face_crop") else None,
    )
    if isinstance(source, LatentSource):
        if data_config.get("face_crop"):
            raise ValueError("data.face_crop is True; expected False with latents, whose crops are drawn already")
        return LatentClipSampler(source, **settings)
    return ClipSampler(source, **settings)

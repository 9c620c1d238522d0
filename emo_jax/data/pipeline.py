"""The input pipeline: records -> Grain -> batches of clips.

Sample number i of epoch e depends on the seed, i and e only. The number of workers and of processes changes who makes
it, not what it is: the batches of all processes of one step, one behind the other, are the batch of a single process.
The place in the data is the number of samples taken (see `elastic`).

Grain is imported when a data set is made: it imports jax where jax is installed (it starts no backend).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags, logging

from emo_jax.data import latents, records, transforms
from emo_jax.data.latents import LatentSource, Layout
from emo_jax.media import mp4
from emo_jax.media.timing import audio_context, exact_fps

if TYPE_CHECKING:
    from emo_jax.data import elastic


@dataclasses.dataclass(frozen=True)
class ClipSampler:
    """Draws one clip from one record: (position in the source, generator) -> sample without the batch axis.

    The fields are those of `config.clip` and `config.data`, see `make_dataset`.
    """

    source: records.RecordSource | LatentSource
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

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        with records.reading(self.source, position) as record:
            return self._clip(record, rng)

    def _clip(self, record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        total = len(record["boxes"])
        has_motion = self.motion_frames > 0 and bool(rng.random() >= self.first_clip_prob)
        before = self.motion_frames if has_motion else 0
        start = transforms.choose_start(rng, total, self.frames, before)
        gap = transforms.gap_frames(self.min_reference_gap, self.fps)
        reference = transforms.choose_reference(rng, total, start, self.frames, gap)
        return self._pictures(record, rng, reference, start, before) | {
            "audio": self._sound(record, start),
            "speed": transforms.speed_window(record["speed"], start, self.frames, self.audio_window),
        }

    def _pictures(self, record, rng, reference: int, start: int, before: int) -> dict[str, np.ndarray]:
        """Reference, motion frames, frames and mask, with what the generator changes about them."""
        pictures = mp4.decode_video(record["video"], start - before, before + self.frames)
        alone = mp4.decode_video(record["video"], reference, 1)
        size = pictures.shape[1:3]
        # Two windows: with one for both, the place of the face in the reference would tell what the mask tells. But not
        # always: with one, what stays where it is can be copied, as in a video whose mask lies on the portrait's face.
        window = transforms.choose_window(rng, size, self.image_size, self.crop_scale)
        other = transforms.choose_window(rng, size, self.image_size, self.crop_scale)
        if rng.random() < self.same_window_prob:
            other = window
        pictures = transforms.crop(pictures, window, self.image_size)
        boxes = record["boxes"][start : start + self.frames]
        sample = {
            "reference": transforms.crop(alone, other, self.image_size)[0],
            "motion": self._motion(pictures[:before]),
            "frames": pictures[before:],
            "has_motion": np.asarray(before > 0),
            "mask": transforms.union_mask(boxes, window, self.image_size),
        }
        if rng.random() < self.flip_prob:
            sample = transforms.flip_horizontally(sample)
        if self.color_jitter:
            sample = transforms.change_colors(sample, *transforms.choose_colors(rng, self.color_jitter))
        return sample

    def _motion(self, pictures: np.ndarray) -> np.ndarray:
        """The motion frames; zeros where there are none."""
        return pictures if len(pictures) else np.zeros((self.motion_frames, *pictures.shape[1:]), pictures.dtype)

    def _sound(self, record, start: int) -> np.ndarray:
        reach, context = self.audio_window, self.audio_context
        return transforms.audio_window(record["audio"], start, self.frames, reach, self.fps, context)


class LatentSampler(ClipSampler):
    """The same from encoded records; color_jitter must be 0, and flip_prob too if none is there mirrored."""

    def _pictures(self, record, rng, reference: int, start: int, before: int) -> dict[str, np.ndarray]:
        count = self.source.layout.windows
        window = other = rng.integers(count)
        if rng.random() >= self.same_window_prob and count > 1:
            other = (window + rng.integers(1, count)) % count
        mirrored = bool(rng.random() < self.flip_prob)
        position, seen = record["position"], tuple(record["windows"][window])
        pictures = self.source.frames(position, window, mirrored, start - before, before + self.frames)
        mask = transforms.union_mask(record["boxes"][start : start + self.frames], seen, self.image_size)
        return {
            "reference": self.source.frames(position, other, mirrored, reference, 1)[0],
            "motion": self._motion(pictures[:before]),
            "frames": pictures[before:],
            "has_motion": np.asarray(before > 0),
            "mask": mask[:, ::-1] if mirrored else mask,
        }

    def _sound(self, record, start: int) -> np.ndarray:
        if not self.source.layout.layers:
            return super()._sound(record, start)
        return self.source.features(record["position"], start - self.audio_window, self.frames + 2 * self.audio_window)


def element_spec(
    clip_config, batch_size: int, layout: Layout | None = None
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of a batch of `batch_size` (per process); from latents, with their layout."""
    f, n, m = clip_config.frames, clip_config.motion_frames, clip_config.audio_window
    size = tuple(clip_config.image_size)
    picture, kind = ((*size, 3), np.uint8) if layout is None else (layout.latent_shape, latents.DTYPE)
    heard = ((transforms.audio_window_samples(clip_config),), np.float32)
    if layout is not None and layout.layers:
        heard = ((f + 2 * m, *layout.heard_shape), latents.DTYPE)
    spec = {
        "reference": (picture, kind),
        "motion": ((n, *picture), kind),
        "frames": ((f, *picture), kind),
        "has_motion": ((), np.bool_),
        "audio": heard,
        "mask": ((*size, 1), np.uint8),
        "speed": ((f + 2 * m,), np.float32),
    }
    return {name: ((batch_size, *shape), np.dtype(dtype)) for name, (shape, dtype) in spec.items()}


def make_dataset(
    data_config,
    clip_config,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    needs_sound: bool = False,
    epochs: int | None = None,
    sources: list[tuple[Source, float]] | None = None,
) -> elastic.ElasticDataset:
    """Batches of clips, as `element_spec` describes them: shuffled anew in every epoch, one clip a record.

    Of several sources each is shuffled in epochs of its own, and the weights decide how often it has its turn.
    An iterator's `get_state()` and `set_state(state)` resume exactly, given the same records, `data_config` (but for
    num_workers and prefetch), `clip_config` and seed; batch_size and the processes may be others than before.

    Args:
      data_config: `config.data`: directory and split, or sources; crop_scale, min_reference_gap (seconds),
        same_window_prob, first_clip_prob, flip_prob, color_jitter, num_workers, prefetch (batches made ahead, per
        worker).
      clip_config: `config.clip`: frames, motion_frames, audio_window, audio_context, fps, image_size.
      batch_size: clips per batch, of all processes together.
      seed: of the order and of every draw; the same in all processes.
      rows: which clips of each batch this process makes, from 0 and in this order (`sharding.rows`); None: all.
      needs_sound: leave out the records without sound.
      epochs: passes over the records (of several sources: until the first of them is used up); None for no end.
      sources: what `open_sources` gave, where it is open already.

    Raises:
      ValueError: if a setting is out of range, the records are missing or have another frame rate, or there are fewer
        suitable records than `batch_size`.
    """
    import grain

    from emo_jax.data.elastic import ElasticDataset

    rows = range(batch_size) if rows is None else rows
    _check(data_config, clip_config, batch_size, rows, epochs)
    sources, fitting = sources or open_sources(data_config), []
    common_layout([source for source, _ in sources], data_config, clip_config)
    for number, (source, weight) in enumerate(sources):
        positions = suitable_records(source, clip_config, needs_sound)
        if len(positions):
            fitting.append((source, positions, weight, number))
    count = sum(len(positions) for _, positions, _, _ in fitting)
    if count < batch_size:
        names = "; ".join(f"{source.directory}, split {source.split}" for source, _ in sources)
        raise ValueError(
            f"{names}: {count} records fit this config, expected at least {batch_size}, the batch: lower "
            "train.batch_size or add records"
        )
    clips = [
        grain.MapDataset.source(positions)
        .seed(_source_seed(seed, number))
        .shuffle()
        .random_map(clip_sampler(source, data_config, clip_config))
        for source, positions, _, number in fitting
    ]
    samples = clips[0] if len(clips) == 1 else grain.MapDataset.mix(clips, [weight for _, _, weight, _ in fitting])
    if data_config.num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl's flags, and raise outside of an absl app
    return ElasticDataset(
        samples.repeat(epochs),
        batch_size,
        rows,
        workers=data_config.num_workers,
        ahead=max(1, data_config.prefetch),
    )


Source = records.RecordSource | LatentSource


def open_sources(data_config) -> list[tuple[Source, float]]:
    """What `config.data` names, records or latents, and how often each has its turn: sources, or the one directory.

    Raises:
      ValueError: if both are given, a source is not (directory, split, weight), or it cannot be opened.
    """
    if not data_config.sources:
        return [(_open(data_config.directory, data_config.split), 1.0)]
    if data_config.directory:
        raise ValueError(
            f"data.directory is {data_config.directory!r} and data.sources names others; give one of them alone"
        )
    for entry in data_config.sources:
        if len(entry) != 3 or isinstance(entry, str) or not (isinstance(entry[2], int | float) and entry[2] > 0):
            raise ValueError(
                f"data.sources holds {entry!r}; expected (directory, split, weight above 0), for example "
                "(('data/mine','train',3),('data/pictures','train',1))"
            )
    return [(_open(directory, split), weight) for directory, split, weight in data_config.sources]


def _open(directory: str, split: str) -> Source:
    return LatentSource(directory, split) if latents.is_latents(directory) else records.open_records(directory, split)


def common_layout(sources: list[Source], data_config, clip_config) -> Layout | None:
    """The layout of latents, None for records.

    Raises:
      ValueError: if the sources differ in form, or the latents were made for other settings than these.
    """
    layouts = {getattr(source, "layout", None) for source in sources}
    if len(layouts) > 1:
        raise ValueError(
            f"{' and '.join(source.directory for source in sources)} differ in form; a batch holds records alone, or "
            "latents that were encoded alike (emo prepare latents)"
        )
    (layout,) = layouts
    if layout is None:
        return None
    checks = {
        "clip.image_size": (tuple(clip_config.image_size), layout.image_size),
        "data.crop_scale": (tuple(data_config.crop_scale), layout.crop_scale),
        "data.color_jitter": (data_config.color_jitter, 0),
        "data.flip_prob": (data_config.flip_prob, data_config.flip_prob if layout.mirrored else 0),
    }
    for name, (value, made) in checks.items():
        if value != made:
            raise ValueError(
                f"{name} is {value}, but {sources[0].directory} holds latents of {made}; set it to that, or encode anew"
            )
    if layout.layers and layout.reach < clip_config.audio_window:
        raise ValueError(
            f"clip.audio_window is {clip_config.audio_window}, but {sources[0].directory} holds audio features of "
            f"{layout.reach} frames beyond a record's ends; encode anew"
        )
    return layout


def _source_seed(seed: int, number: int) -> int:
    """So that no two sources draw alike; the first as if it were alone."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def clip_sampler(source: Source, data_config, clip_config) -> ClipSampler:
    """The sampler that `make_dataset` draws clips with."""
    made = LatentSampler if isinstance(source, LatentSource) else ClipSampler
    return made(
        source,
        clip_config.frames,
        clip_config.motion_frames,
        clip_config.audio_window,
        clip_config.fps,
        tuple(clip_config.image_size),
        tuple(data_config.crop_scale),
        data_config.min_reference_gap,
        data_config.same_window_prob,
        data_config.first_clip_prob,
        data_config.flip_prob,
        data_config.color_jitter,
        audio_context(clip_config),
    )


def make_iterator(data_config, clip_config, **options) -> elastic.ElasticIterator:
    """An iterator over `make_dataset(...)`; close it after use if there are workers."""
    return iter(make_dataset(data_config, clip_config, **options))


def suitable_records(source: Source, clip_config, needs_sound: bool = False) -> np.ndarray:
    """Positions (K,) of the records long enough for a clip and its motion frames, and with sound if that is needed."""
    index = source.index()
    for fps in np.unique(index["fps"][index["frames"] > 1]):  # a single picture has none
        if exact_fps(float(fps)) != exact_fps(clip_config.fps):
            raise ValueError(
                f"{source.directory} holds records at {fps:g} fps, but clip.fps is {clip_config.fps:g}: "
                "prepare the records at that rate, or change clip.fps"
            )
    keep = index["frames"] >= clip_config.frames + clip_config.motion_frames
    if needs_sound:
        keep &= index["sound"]
    if not keep.all():
        logging.info("%s, split %s: %d of %d records fit.", source.directory, source.split, keep.sum(), len(keep))
    return np.flatnonzero(keep)


def _check(data, clip, batch_size: int, rows: Sequence[int], epochs: int | None) -> None:
    low, high = data.crop_scale
    context = audio_context(clip)
    checks = {
        "clip.frames": (clip.frames, clip.frames >= 1, "at least 1"),
        "clip.motion_frames": (clip.motion_frames, clip.motion_frames >= 0, "at least 0"),
        "clip.audio_window": (clip.audio_window, clip.audio_window >= 0, "at least 0"),
        "clip.audio_context": (context, 0 <= context < math.inf, "seconds, at least 0"),
        "clip.image_size": (clip.image_size, len(clip.image_size) == 2 and min(clip.image_size) > 0, "(height, width)"),
        "data.crop_scale": (data.crop_scale, 0 < low <= high <= 1, "(low, high) with 0 < low <= high <= 1"),
        "data.min_reference_gap": (data.min_reference_gap, data.min_reference_gap >= 0, "seconds, at least 0"),
        "data.same_window_prob": (data.same_window_prob, 0 <= data.same_window_prob <= 1, "a probability in [0, 1]"),
        "data.first_clip_prob": (data.first_clip_prob, 0 <= data.first_clip_prob <= 1, "a probability in [0, 1]"),
        "data.flip_prob": (data.flip_prob, 0 <= data.flip_prob <= 1, "a probability in [0, 1]"),
        "data.color_jitter": (data.color_jitter, 0 <= data.color_jitter < 1, "at least 0 (off) and below 1"),
        "data.num_workers": (data.num_workers, data.num_workers >= 0, "at least 0"),
        "batch_size": (batch_size, batch_size >= 1, "at least 1"),
        "rows": (rows, len(rows) and {*rows} <= {*range(batch_size)}, f"some of 0 to {batch_size - 1}"),
        "epochs": (epochs, epochs is None or epochs >= 1, "at least 1, or None for no end"),
    }
    for name, (value, fine, wanted) in checks.items():
        if not fine or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{name} is {value}; expected {wanted}")

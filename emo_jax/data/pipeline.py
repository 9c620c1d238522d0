"""The input pipeline: records or latents -> Grain -> batches of clips.

Sample i of epoch e depends on the seed, i and e only. The number of workers and processes changes who makes a sample,
not its content: the rows of all processes for one step form the batch that a single process would make. The position in
the data is the number of samples consumed (see `elastic`).

Grain is imported when a dataset is made, because it imports JAX if JAX is installed (it starts no backend).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from emo_jax.data import latents, transforms
from emo_jax.data.clip_sampler import make_clip_sampler
from emo_jax.data.records import RecordSource
from emo_jax.data.sources import Source, common_layout, open_sources, select_records
from emo_jax.media import moments
from emo_jax.media.timing import audio_context

if TYPE_CHECKING:
    import grain

    from emo_jax.data import elastic


WITHOUT_SOUND = ("none", "videos", "all")
"""Choices of `data.without_sound`."""


def element_spec(
    clip_config: ConfigDict, batch_size: int, layout: latents.Layout | None = None
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns the shape and dtype of every array of a batch.

    Args:
        clip_config: `config.clip`.
        batch_size: samples per batch and process.
        layout: the layout of the latents, if the batches are made from latents.

    Returns:
        {field: (shape, dtype)}.
    """
    f, n, m = clip_config.frames, clip_config.motion_frames, clip_config.audio_window
    size = tuple(clip_config.image_size)
    image, image_dtype = ((*size, 3), np.uint8) if layout is None else (layout.latent_shape, latents.DTYPE)
    audio: tuple[tuple[int, ...], Any] = ((transforms.audio_window_samples(clip_config),), np.float32)
    if layout is not None and layout.layers:
        audio = ((f + 2 * m, *layout.audio_feature_shape), latents.DTYPE)
    spec: dict[str, tuple[tuple[int, ...], Any]] = {
        "reference": (image, image_dtype),
        "motion": ((n, *image), image_dtype),
        "frames": ((f, *image), image_dtype),
        "has_motion": ((), np.bool_),
        "has_sound": ((), np.bool_),
        "audio": audio,
        "mask": ((*size, 1), np.uint8),
        "speed": ((f + 2 * m,), np.float32),
    }
    if cell := clip_config.get("flow_cell", 0):  # older weights: no flow
        spec["field"] = ((n + f, size[0] // cell, size[1] // cell, 3), np.float16)
    if layout is None or not layout.layers:
        spec["audio_moments"] = ((2 * moments.FRAME, moments.FRAME), np.float32)
    return {name: ((batch_size, *shape), np.dtype(dtype)) for name, (shape, dtype) in spec.items()}


def make_dataset(
    data_config: ConfigDict,
    clip_config: ConfigDict,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    needs_sound: bool = False,
    needs_speed: bool = False,
    epochs: int | None = None,
    sources: list[tuple[Source, float]] | None = None,
    repeats: bool = False,
) -> elastic.ElasticDataset:
    """Makes batches of clips as described by `element_spec`: one clip per record and epoch, shuffled in each epoch.

    Each source is shuffled in separate epochs; its weight sets how often a sample is drawn from it. The
    `get_state()` and `set_state(state)` of an iterator resume exactly, given the same records, seed, `clip_config` and
    `data_config` (except num_workers and prefetch); batch_size and the number of processes may differ.

    Args:
        data_config: `config.data`: directory and split, or sources; max_speed, without_sound, crop_scale,
            min_reference_gap (seconds), same_window_prob, first_clip_prob, flip_prob, color_jitter, num_workers,
            prefetch (batches per worker), buckets ((height, width) of each; none: all samples have
            clip.image_size).
        clip_config: `config.clip`: frames, motion_frames, audio_window, audio_context, fps, image_size.
        batch_size: clips per batch, over all processes.
        seed: seed of the order and of every draw; equal in all processes.
        rows: rows of each batch that this process makes, in this order (see `distributed.mesh.local_rows`); None: all.
        needs_sound: leaves out records without sound, except those of `data_config.without_sound`.
        needs_speed: leaves out records without reliable head rotation speeds.
        epochs: passes over the records (for several sources: until one of them is used up); None: endless.
        sources: the result of `open_sources`, if already opened.
        repeats: whether one record suffices; a batch may then hold several clips of it.

    Returns:
        The dataset.

    Raises:
        ValueError: if a setting is out of range, the records are missing or have another frame rate, or fewer than
            `batch_size` records fit.
    """
    from emo_jax.data.elastic import ElasticDataset

    rows = range(batch_size) if rows is None else rows
    _check_settings(data_config, clip_config, batch_size, rows, epochs)
    sources = sources or open_sources(data_config)
    layout = common_layout([source for source, _ in sources], data_config, clip_config)
    buckets = [(height, width) for height, width in data_config.get("buckets", ())]
    if buckets and layout is not None:
        raise ValueError("data.buckets needs records; latents were encoded at one size")
    if clip_config.get("flow_cell", 0) and layout is not None:
        raise ValueError("model.vae.flow_channels needs records: latents of frames depend on the reference image drawn")
    needs = dict(needs_sound=needs_sound, needs_speed=needs_speed)
    limits: dict[str, Any] = dict(max_speed=data_config.max_speed, without_sound=data_config.without_sound)
    selected = [select_records(source, clip_config, **needs, **limits) for source, _ in sources]
    if sum(map(len, selected)) < (1 if repeats else batch_size):
        raise ValueError(_too_few_records(sources, clip_config, batch_size, **needs, **limits))
    if buckets:
        samples = _bucketed(sources, selected, buckets, data_config, clip_config, batch_size, seed)
    else:
        samples = _mixed(sources, selected, data_config, clip_config, seed)
    if data_config.num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl's flags and raise if these are not parsed
    return ElasticDataset(
        samples.repeat(epochs),
        batch_size,
        rows,
        workers=data_config.num_workers,
        prefetch=max(1, data_config.prefetch),
        aligned=bool(buckets),
    )


def _mixed(
    sources: list[tuple[Source, float]], selected: list[np.ndarray], data: ConfigDict, clip: ConfigDict, seed: int
) -> grain.MapDataset:
    """Returns the clips of the selected records of all sources, each shuffled, in the proportions of their weights."""
    import grain

    clips, weights = [], []
    for number, ((source, weight), positions) in enumerate(zip(sources, selected, strict=True)):
        if len(positions):
            sampler = make_clip_sampler(source, data, clip)
            order = grain.MapDataset.source(cast(Sequence[int], positions)).seed(_source_seed(seed, number)).shuffle()
            clips.append(order.random_map(sampler))
            weights.append(weight)
    return clips[0] if len(clips) == 1 else grain.MapDataset.mix(clips, weights)


def _bucketed(
    sources: list[tuple[Source, float]],
    selected: list[np.ndarray],
    sizes: list[tuple[int, int]],
    data: ConfigDict,
    clip: ConfigDict,
    batch_size: int,
    seed: int,
) -> grain.MapDataset:
    """Returns clips whose batches have the size of the bucket that is nearest to the records' aspect ratio."""
    from emo_jax.data.buckets import BucketedSamples, nearest_bucket

    nearest = [
        nearest_bucket(cast(RecordSource, source).aspects()[positions], sizes)
        for (source, _), positions in zip(sources, selected, strict=True)
    ]
    samples, weights = [], []
    for bucket, size in enumerate(sizes):
        here = [positions[numbers == bucket] for positions, numbers in zip(selected, nearest, strict=True)]
        # A source's weight is divided over the buckets as its records are.
        shares = [
            weight * len(part) / max(1, len(positions))
            for (_, weight), part, positions in zip(sources, here, selected, strict=True)
        ]
        if sum(shares):
            parts = [(source, share) for (source, _), share in zip(sources, shares, strict=True)]
            samples.append(_mixed(parts, here, data, ConfigDict({**clip, "image_size": size}), seed))
            weights.append(sum(shares))
    return BucketedSamples(samples, weights, batch_size)


def _too_few_records(
    sources: list[tuple[Source, float]],
    clip: ConfigDict,
    batch_size: int,
    needs_sound: bool,
    needs_speed: bool,
    max_speed: float,
    without_sound: str,
) -> str:
    """Returns an error message that names the requirement that leaves fewer records than a batch."""
    names = "; ".join(f"{source.directory}, split {source.split}" for source, _ in sources)

    def count(**needs: bool) -> int:
        return sum(len(select_records(source, clip, **needs, without_sound=without_sound)) for source, _ in sources)

    total = count()
    if max_speed and count(needs_sound=needs_sound, needs_speed=needs_speed) >= batch_size:
        return f"{names}: too few records are as slow as data.max_speed, {max_speed:g}; raise it, or 0 keeps all"
    if needs_sound and total and not count(needs_sound=True):
        return (
            f"{names}: none of {total} records has sound; prepare videos with sound, train the stage image, or set "
            "data.without_sound"
        )
    if needs_speed and count(needs_sound=needs_sound) >= batch_size:
        left = count(needs_sound=needs_sound, needs_speed=True)
        return (
            f"{names}: {left} records have reliable head rotation speeds, expected at least the batch size "
            f"{batch_size}: prepare the videos with --faces landmarks, because records with the flag roll-only or a "
            "low speed_confidence are left out"
        )
    left = count(needs_sound=needs_sound, needs_speed=needs_speed)
    return (
        f"{names}: {left} records fit this config, expected at least the batch size {batch_size}: lower it "
        f"(--config.train.batch_size={max(left, 1)}) or add records"
    )


def make_iterator(data_config: ConfigDict, clip_config: ConfigDict, **options: Any) -> elastic.ElasticIterator:
    """Returns an iterator over `make_dataset(...)`. Close it after use if there are workers."""
    return iter(make_dataset(data_config, clip_config, **options))


def _source_seed(seed: int, number: int) -> int:
    """Returns a different seed for each source; the first source has the seed that it has alone."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _check_settings(
    data: ConfigDict, clip: ConfigDict, batch_size: int, rows: Sequence[int], epochs: int | None
) -> None:
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
        "data.max_speed": (data.max_speed, data.max_speed >= 0, "degrees per frame, or 0 for no limit"),
        "data.without_sound": (data.without_sound, data.without_sound in WITHOUT_SOUND, " or ".join(WITHOUT_SOUND)),
        "data.first_clip_prob": (data.first_clip_prob, 0 <= data.first_clip_prob <= 1, "a probability in [0, 1]"),
        "data.flip_prob": (data.flip_prob, 0 <= data.flip_prob <= 1, "a probability in [0, 1]"),
        "data.color_jitter": (data.color_jitter, 0 <= data.color_jitter < 1, "at least 0 (off) and below 1"),
        "data.num_workers": (data.num_workers, data.num_workers >= 0, "at least 0"),
        "batch_size": (batch_size, batch_size >= 1, "at least 1"),
        "rows": (rows, len(rows) and {*rows} <= {*range(batch_size)}, f"some of 0 to {batch_size - 1}"),
        "epochs": (epochs, epochs is None or epochs >= 1, "at least 1, or None for no end"),
    }
    for name, (value, valid, expected) in checks.items():
        if not valid or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{name} is {value}; expected {expected}")

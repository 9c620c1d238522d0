"""Sources of training samples: directories of records or of latents, and which of their records fit a config."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import logging

from emo_jax.data import latents, motion_fields, records
from emo_jax.data.latents import LatentSource, Layout
from emo_jax.data.record_files import MissingSplit
from emo_jax.media.timing import exact_fps

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Source = records.RecordSource | LatentSource


def open_sources(data_config: ConfigDict) -> list[tuple[Source, float]]:
    """Opens the sources of `config.data`: `sources`, or the single `directory`.

    Returns:
        (source, weight) pairs; the weights are the relative frequencies at which samples are drawn from the sources.

    Raises:
        ValueError: if both fields are set, an entry is not (directory, split, weight), or a source cannot be opened.
    """
    if not data_config.sources:
        return [(_open(data_config.directory, data_config.split), 1.0)]
    if data_config.directory:
        raise ValueError(
            f"data.directory is {data_config.directory!r} and data.sources is set as well; set only one of them"
        )
    for entry in data_config.sources:
        if len(entry) != 3 or isinstance(entry, str) or not (isinstance(entry[2], int | float) and entry[2] > 0):
            raise ValueError(
                f"data.sources contains {entry!r}; expected (directory, split, weight above 0), for example "
                "(('data/mine','train',3),('data/pictures','train',1))"
            )
    return [(_open(directory, split), weight) for directory, split, weight in data_config.sources]


def open_held_out(data_config: ConfigDict, directory: str, split: str) -> list[tuple[Source, float]]:
    """Opens the held-out split of the sources of `config.data`, or of another directory.

    Args:
        data_config: `config.data`.
        directory: a directory of records or latents; "": those of `data_config` that have the split.
        split: the split, or a slice of it.

    Returns:
        (source, weight) pairs, as `open_sources`.

    Raises:
        ValueError: no directory has the split, or a source cannot be opened.
    """
    if directory:
        return [(_open(directory, split), 1.0)]
    entries = data_config.sources or [(data_config.directory, data_config.split, 1.0)]
    found, missing = [], None
    for entry, _, weight in entries:
        try:
            found.append((_open(entry, split), weight))
        except MissingSplit as error:
            missing = error
    if not found and missing:
        raise missing
    return found


def _open(directory: str, split: str) -> Source:
    if latents.is_latent_directory(directory):
        return LatentSource(directory, split)
    return records.open_records(directory, split)


def common_layout(sources: list[Source], data_config: ConfigDict, clip_config: ConfigDict) -> Layout | None:
    """Returns the layout that all sources share; None if they hold records.

    Raises:
        ValueError: if the sources differ in kind or layout, or the latents were encoded with other settings.
    """
    layouts = {getattr(source, "layout", None) for source in sources}
    if len(layouts) > 1:
        raise ValueError(
            f"{' and '.join(source.directory for source in sources)} differ in kind or layout; give records only, or "
            "latents that were encoded with the same settings (emo prepare latents)"
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
    for name, (value, encoded) in checks.items():
        if value != encoded:
            raise ValueError(
                f"{name} is {value}, but the latents of {sources[0].directory} were encoded with {encoded}; use that "
                "value, or encode again"
            )
    if layout.layers and layout.reach < clip_config.audio_window:
        raise ValueError(
            f"clip.audio_window is {clip_config.audio_window}, but {sources[0].directory} holds the audio features of "
            f"only {layout.reach} frames beyond each end of a record; encode again"
        )
    return layout


class Motion(NamedTuple):
    """Motion data of the records of a source.

    Attributes:
        speed: mean rotation speed of the head in degrees per frame, (records,).
        landmarks: whether `motion_fields` can use the landmarks, (records,).
    """

    speed: np.ndarray
    landmarks: np.ndarray


_MOTION: weakref.WeakKeyDictionary[Source, Motion] = weakref.WeakKeyDictionary()


def motion_of(source: Source) -> Motion:
    """Returns the motion data of a source; the first call reads all of its records, later ones use a cache."""
    if source not in _MOTION:
        rows = []
        for record in (source[position] for position in range(len(source))):
            named = motion_fields.named_points(record["landmarks"]) if "landmarks" in record else None
            rows.append((np.abs(record["speed"]).mean(), named is not None))
        speed, landmarks = zip(*rows, strict=True)
        _MOTION[source] = Motion(np.array(speed), np.array(landmarks))
    return _MOTION[source]


def select_records(
    source: Source,
    clip_config: ConfigDict,
    needs_sound: bool = False,
    needs_speed: bool = False,
    max_speed: float = 0.0,
    without_sound: str = "none",
) -> np.ndarray:
    """Selects the records that are long enough for a clip and its motion frames, with landmarks for latents of flow.

    Args:
        source: records or latents.
        clip_config: `config.clip`.
        needs_sound: selects records with sound only.
        needs_speed: selects records with reliable head rotation speeds only; see `records.has_reliable_speed`.
        max_speed: leaves out records whose head rotates faster on average, in degrees per frame; 0 keeps all. See
            `motion_of`.
        without_sound: which records `needs_sound` nevertheless selects without sound: "none"; "videos"; "all", those of
            a single picture, too, of whatever speed.

    Returns:
        The positions (selected,) of these records.

    Raises:
        ValueError: if the frame rate of a record differs from clip.fps.
    """
    index = source.index()
    for fps in np.unique(index["fps"][index["frames"] > 1]):  # the frame rate of a single picture has no meaning
        if exact_fps(float(fps)) != exact_fps(clip_config.fps):
            raise ValueError(
                f"{source.directory} holds records at {fps:g} fps, but clip.fps is {clip_config.fps:g}: "
                "prepare the records at that rate, or change clip.fps"
            )
    keep = index["frames"] >= clip_config.frames + clip_config.motion_frames
    if needs_sound and without_sound == "none":
        keep &= index["sound"]
    if needs_speed:
        keep &= source.reliable_speed()
    if clip_config.get("flow_cell", 0):
        keep &= motion_of(source).landmarks
    if max_speed:
        keep &= motion_of(source).speed <= max_speed
    if needs_sound and without_sound == "all":
        keep |= index["frames"] == 1
    if not keep.all():
        logging.info("%s, split %s: %d of %d records fit.", source.directory, source.split, keep.sum(), len(keep))
    return np.flatnonzero(keep)

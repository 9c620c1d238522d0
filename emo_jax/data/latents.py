"""Latents of records, encoded once (`emo prepare latents`), which training reads in place of images and audio.

A directory of latents holds `latents.json` and ArrayRecord files. A record occupies several consecutive entries: its
fields; the latents of its frames, one entry per frame, for each crop window and (optionally) its mirror image; and the
audio features of its frames and of some frames beyond each end. A clip is read without the rest of its record.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource

from emo_jax import schema
from emo_jax.data import transforms
from emo_jax.data.record_files import INDEX_SCHEMA, MissingSplit, count_records
from emo_jax.media.moments import audio_moments

LATENTS_FILE = "latents.json"
DTYPE = np.float16
_FIELDS = ("boxes", "speed", "audio", "windows", "audio_moments")
_INDEX = ("frames", "fps", "sound")
_SIZE = schema.integer(1, 1 << 15)
_LAYOUT = schema.fields(
    dict(
        image_size=schema.array(_SIZE, 2),
        latent_shape=schema.array(_SIZE, 3),
        crop_scale=schema.array(schema.number(0, 1), 2),
        windows=_SIZE,
        mirrored=schema.boolean(),
    ),
    dict(
        layers=schema.array(schema.integer(0, 1000)), features=schema.integer(0, 1 << 20), reach=schema.integer(0, 1000)
    ),
)
_SCHEMA = schema.fields(
    dict(
        split=schema.text(),
        layout=_LAYOUT,
        files=schema.array(schema.text()),
        records=INDEX_SCHEMA,
        weights=schema.anything(),
    )
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes the entries of a directory of latents.

    Attributes:
        image_size: (height, width) of the images that were encoded.
        latent_shape: (height, width, channels) of the latents of one frame.
        crop_scale: range of the scale of the crop windows, as in `config.data`.
        windows: number of crop windows per record.
        mirrored: whether each window was encoded mirrored as well.
        layers: hidden states of wav2vec 2.0 in the audio features; () if the waveform is stored instead.
        features: width of each hidden state.
        reach: number of frames beyond each end of the record with audio features.
    """

    image_size: tuple[int, int]
    latent_shape: tuple[int, int, int]
    crop_scale: tuple[float, float]
    windows: int
    mirrored: bool
    layers: tuple[int, ...] = ()
    features: int = 0
    reach: int = 0

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Layout:
        """Builds a layout from its JSON object, in which tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    @property
    def audio_feature_shape(self) -> tuple[int, int]:
        """The shape (layers, features) of the audio features of one frame."""
        return len(self.layers), self.features

    def frame_entry(self, total: int, window: int, mirrored: bool, frame: int) -> int:
        """Returns the entry of a frame's latents, relative to the first entry of its record of `total` frames."""
        return 1 + (window * (1 + self.mirrored) + mirrored) * total + frame

    def audio_entry(self, total: int, frame: int) -> int:
        """Returns the entry of a frame's audio features, likewise; the first frame is -reach."""
        return self.frame_entry(total, self.windows, False, self.reach + frame)

    def num_entries(self, total: int) -> int:
        """Returns the number of entries of a record of `total` frames."""
        if self.layers:
            return self.audio_entry(total, total + self.reach)
        return self.frame_entry(total, self.windows, False, 0)


def pack_entries(
    fields: dict[str, np.ndarray], latents: Iterable[np.ndarray], features: Iterable[np.ndarray]
) -> Iterator[bytes]:
    """Serializes one record to its entries.

    Args:
        fields: boxes (frames, 4), speed (frames,), audio (samples,) int16, windows (windows, 4), audio_moments (20,
            10).
        latents: latents (frames, h, w, c) of each window, each followed by its mirror image if the layout has them.
        features: audio features (layers, features) of each frame and of the frames beyond each end.

    Yields:
        The entries in order.
    """
    file, arrays = io.BytesIO(), {name: fields[name] for name in _FIELDS}
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    yield file.getvalue()
    for window in latents:
        yield from (frame.tobytes() for frame in np.asarray(window, DTYPE))
    yield from (frame.tobytes() for frame in np.asarray(features, DTYPE))


class LatentSource:
    """Random access to the latents of one split.

    `source[i]` returns the fields of record i; `frames` and `features` read its latents and audio features. The source
    pickles as its directory and split, so that each worker process opens its own files.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        """Opens a directory of latents.

        Raises:
            ValueError: if it was encoded from another split, or files are missing or incomplete.
        """
        self.directory, self.split = os.fspath(directory), split
        metadata = schema.read_json(pathlib.Path(directory, LATENTS_FILE), _SCHEMA)
        if metadata["split"] != split:
            raise MissingSplit(f"{directory} has no split {split!r}; it has: {metadata['split']}")
        self.layout, self.weights = Layout.from_json(metadata["layout"]), metadata["weights"]
        self._index = {name: np.asarray(value) for name, value in metadata["records"].items()}
        lengths = [self.layout.num_entries(int(total)) for total in self._index["frames"]]
        self._first_entry = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        files = [os.path.join(self.directory, name) for name in metadata["files"]]
        missing = [name for name in files if not os.path.exists(name)]
        if missing:
            raise ValueError(f"{missing[0]} is missing ({LATENTS_FILE} lists it): copy it again, or encode again")
        count = sum(map(count_records, files))  # before the files are opened together, to name a damaged one
        self._entries = ArrayRecordDataSource(files)
        if count != self._first_entry[-1]:
            raise ValueError(
                f"{directory} has {count} entries, expected {self._first_entry[-1]}: copy it again, "
                "or encode again"
            )

    def __reduce__(self) -> tuple[type[LatentSource], tuple[str, str]]:
        return LatentSource, (self.directory, self.split)

    def __repr__(self) -> str:
        return f"LatentSource({self.directory!r}, {self.split!r})"

    def __len__(self) -> int:
        return len(self._index["frames"])

    def __getitem__(self, position: int) -> dict[str, Any]:
        (entry,) = self._read_entries(int(self._first_entry[position]), 1)
        with np.load(io.BytesIO(entry)) as file:
            fields = {name: file[name] for name in file}
        fields.setdefault("audio_moments", audio_moments(fields["audio"]))  # absent in older directories
        return {"position": int(position), **fields}

    def index(self) -> dict[str, np.ndarray]:
        """Returns `frames` (int), `fps` (float) and `sound` (bool) of all records, each (records,)."""
        return {name: self._index[name] for name in _INDEX}

    def reliable_speed(self) -> np.ndarray:
        """Returns whether the head rotation speeds of each record can be used, (records,) bool.

        Directories that were encoded before this was stored are assumed to be reliable.
        """
        if "reliable_speed" not in self._index:
            logging.warning("%s does not say which head rotation speeds are reliable; encode again.", self.directory)
            return np.ones(len(self), bool)
        return self._index["reliable_speed"]

    def frames(self, position: int, window: int, mirrored: bool, start: int, count: int) -> np.ndarray:
        """Returns the latents (count, h, w, c) float16 of the frames from `start` on, in one of the crop windows."""
        first = self.layout.frame_entry(self._total(position), window, mirrored, start)
        return self._read(position, first, count, self.layout.latent_shape)

    def features(self, position: int, start: int, count: int) -> np.ndarray:
        """Returns the audio features (count, layers, features) float16 of the frames from `start` on.

        Frames beyond the stored ones repeat the first or last stored frame.
        """
        total, reach = self._total(position), self.layout.reach
        stored = np.clip(np.arange(start, start + count), -reach, total + reach - 1)
        first = self.layout.audio_entry(total, stored[0])
        features = self._read(position, first, stored[-1] - stored[0] + 1, self.layout.audio_feature_shape)
        return features[stored - stored[0]]

    def _total(self, position: int) -> int:
        return int(self._index["frames"][position])

    def _read(self, position: int, first: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
        begin = int(self._first_entry[position]) + first
        return np.frombuffer(b"".join(self._read_entries(begin, count)), DTYPE).reshape(count, *shape)

    def _read_entries(self, begin: int, count: int) -> Sequence[bytes]:
        try:
            return self._entries.__getitems__(range(begin, begin + count))
        except RuntimeError as error:  # raised by ArrayRecord if a checksum does not match
            raise ValueError(str(error)) from error


def is_latent_directory(directory: str | os.PathLike) -> bool:
    """Returns whether a directory holds latents rather than records."""
    return pathlib.Path(directory, LATENTS_FILE).is_file()


def draw_windows(
    seed: int, position: int, frames: int, frame_size: tuple[int, int], layout: Layout
) -> Iterator[transforms.Window]:
    """Draws the crop windows of one record.

    The windows of a single picture differ in size, because the picture is its own reference.

    Args:
        seed: seed of all windows.
        position: position of the record.
        frames: number of frames of the record.
        frame_size: (height, width) of its frames.
        layout: the layout of the latents.

    Yields:
        The windows.
    """
    rng = np.random.default_rng([seed, position])
    for window in range(layout.windows):
        tight = frames == 1 and window > 0
        scale = transforms.tighter_scale(layout.crop_scale) if tight else layout.crop_scale
        yield transforms.choose_window(rng, frame_size, layout.image_size, scale)

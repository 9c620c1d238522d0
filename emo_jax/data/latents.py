"""Records encoded once (`emo prepare latents`): what training reads in place of pictures, and perhaps of sound.

A directory of latents holds `latents.json` and ArrayRecord files. Each record is several entries behind each other: its
fields, the latents of its frames, one entry each, seen through each of several crop windows (and perhaps mirrored), and
the audio features of its frames and of some beyond either end. So a clip is read without the rest of its record.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from emo_jax.data import transforms

LATENTS_FILE = "latents.json"
DTYPE = np.float16
_FIELDS = ("boxes", "speed", "audio", "windows")
_INDEX = ("frames", "fps", "sound")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the entries of a directory hold.

    Attributes:
      image_size: (height, width) of the pictures that were encoded.
      latent_shape: (h, w, c) of one frame.
      crop_scale: of the windows, as in `config.data`.
      windows: crop windows of each record.
      mirrored: whether each is there mirrored as well.
      layers: hidden states of wav2vec 2.0 in the audio features; () where there are none and the waveform serves.
      features: numbers in each of these.
      reach: frames beyond either end of the record whose audio features are there.
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
    def from_json(cls, found: dict[str, Any]) -> Layout:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})

    @property
    def heard_shape(self) -> tuple[int, int]:
        """(L, D) of the audio features of one frame."""
        return len(self.layers), self.features

    def picture(self, total: int, window: int, mirrored: bool, frame: int) -> int:
        """The entry of a frame, counted from that of the fields of its record of `total` frames."""
        return 1 + (window * (1 + self.mirrored) + mirrored) * total + frame

    def sound(self, total: int, frame: int) -> int:
        """The entry of a frame's audio features, counted alike; frame from -reach on."""
        return self.picture(total, self.windows, False, self.reach + frame)

    def entries(self, total: int) -> int:
        """How many entries a record of `total` frames takes."""
        return self.sound(total, total + self.reach) if self.layers else self.picture(total, self.windows, False, 0)


def pack(fields: dict[str, np.ndarray], pictures: Iterable[np.ndarray], features: Iterable[np.ndarray]):
    """Yields the entries of one record, bytes.

    fields: boxes (N, 4), speed (N,), audio (S,) int16 and windows (windows, 4). pictures: latents (N, h, w, c) of each
    window, each followed by its mirror image where there is one. features: (L, D) of each frame and those beyond.
    """
    file = io.BytesIO()
    np.savez(file, **{name: fields[name] for name in _FIELDS})
    yield file.getvalue()
    for latents in pictures:
        yield from (frame.tobytes() for frame in np.asarray(latents, DTYPE))
    yield from (heard.tobytes() for heard in np.asarray(features, DTYPE))


class LatentSource:
    """Random access to encoded records: `source[i]` has the fields of `pack`, `frames` and `features` the rest.

    Pickles as its directory, so that worker processes open their own files.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        self.directory, self.split = os.fspath(directory), split
        found = json.loads(pathlib.Path(directory, LATENTS_FILE).read_text())
        if found["split"] != split:
            raise ValueError(f"{directory} has no split {split!r}; it has: {found['split']}")
        self.layout, self.weights = Layout.from_json(found["layout"]), found["weights"]
        self._rows = {name: np.asarray(value) for name, value in found["records"].items()}
        lengths = [self.layout.entries(int(total)) for total in self._rows["frames"]]
        self._first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        files = [os.path.join(self.directory, name) for name in found["files"]]
        missing = [name for name in files if not os.path.exists(name)]
        if missing:
            raise ValueError(f"{missing[0]} is missing ({LATENTS_FILE} names it): copy it again, or encode anew")
        self._entries = ArrayRecordDataSource(files)
        if len(self._entries) != self._first[-1]:
            raise ValueError(
                f"{directory} has {len(self._entries)} entries, expected {self._first[-1]}: copy it again, "
                "or encode anew"
            )

    def __reduce__(self):
        return LatentSource, (self.directory, self.split)

    def __repr__(self) -> str:
        return f"LatentSource({self.directory!r}, {self.split!r})"

    def __len__(self) -> int:
        return len(self._rows["frames"])

    def __getitem__(self, position: int) -> dict[str, Any]:
        (entry,) = self._bytes(int(self._first[position]), 1)
        with np.load(io.BytesIO(entry)) as fields:
            return {"position": int(position), **{name: fields[name] for name in _FIELDS}}

    def index(self) -> dict[str, np.ndarray]:
        """`frames` (int), `fps` (float), `sound` (bool), each (len,)."""
        return {name: self._rows[name] for name in _INDEX}

    def frames(self, position: int, window: int, mirrored: bool, start: int, count: int) -> np.ndarray:
        """Latents (count, h, w, c) float16 of the frames from `start` on, seen through one of the windows."""
        first = self.layout.picture(self._total(position), window, mirrored, start)
        return self._read(position, first, count, self.layout.latent_shape)

    def features(self, position: int, start: int, count: int) -> np.ndarray:
        """Audio features (count, L, D) float16 of the frames from `start` on, which may lie beyond either end."""
        total, reach = self._total(position), self.layout.reach
        at = np.clip(np.arange(start, start + count), -reach, total + reach - 1)
        found = self._read(position, self.layout.sound(total, at[0]), at[-1] - at[0] + 1, self.layout.heard_shape)
        return found[at - at[0]]

    def _total(self, position: int) -> int:
        return int(self._rows["frames"][position])

    def _read(self, position: int, first: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
        begin = int(self._first[position]) + first
        return np.frombuffer(b"".join(self._bytes(begin, count)), DTYPE).reshape(count, *shape)

    def _bytes(self, begin: int, count: int) -> list[bytes]:
        try:
            return self._entries.__getitems__(range(begin, begin + count))
        except RuntimeError as error:  # ArrayRecord's, where bytes are not those that were written
            raise ValueError(str(error)) from error


def is_latents(directory: str | os.PathLike) -> bool:
    """Whether a directory holds latents, and not records."""
    return pathlib.Path(directory, LATENTS_FILE).is_file()


def draw_windows(seed: int, position: int, frame_size: tuple[int, int], layout: Layout) -> Iterator[transforms.Window]:
    """The crop windows of one record: those of its place and the seed, whoever encodes it."""
    rng = np.random.default_rng([seed, position])
    for _ in range(layout.windows):
        yield transforms.choose_window(rng, frame_size, layout.image_size, layout.crop_scale)

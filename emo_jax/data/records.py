"""Records on disk, stored as ArrayRecord by TFDS (without TensorFlow).

A directory of records is a TFDS dataset directory with one more file, `index.json`, which lists the length, frame rate
and presence of sound of each record, so that the pipeline can select records without reading the videos.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils, tqdm_utils

from emo_jax import schema
from emo_jax.data.record import BYTES_FIELDS, Record, has_reliable_speed, record_example, record_features
from emo_jax.data.record_files import INDEX_SCHEMA, MissingSplit, check_files, check_info, feature_error
from emo_jax.files import write_text
from emo_jax.media import mp4
from emo_jax.media.moments import audio_moments

INDEX_FILE = "index.json"
_INDEX = ("frames", "fps", "sound")
_LATER_FIELDS = (
    *("speed_confidence", "span", "analyzer", "flags", "landmarks"),  # absent in version 1.0.0
    "phonemes",  # absent before version 1.4.0
    "audio_moments",  # absent before version 1.5.0
)


class EmoRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder that writes the records that the given callables yield."""

    # 1.3.0: the loudness of a video's sound is normalized. 1.4.0: phonemes. 1.5.0: audio_moments; gaps of the sound are
    # filled, and its offset is removed.
    VERSION = tfds.core.Version("1.5.0")

    def __init__(self, *, splits: dict[str, Callable[[], Iterable[Record]]], data_dir: str):
        """Takes a callable that yields the records of each split."""
        self._sources = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(description="Talking heads for emo_jax.", features=record_features())

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {name: self._generate_examples(name) for name in self._sources}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:  # type: ignore[override]
        seen = set()
        for record in self._sources[split]():
            if record.id in seen:
                raise ValueError(f"split {split!r} holds two records with the id {record.id!r}; ids must be unique")
            seen.add(record.id)
            yield record.id, record_example(record)
        if not seen:
            raise ValueError(f"split {split!r} holds no records; leave the split out, or give it at least one")

    # TFDS would print these two messages to stdout.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


class _LimitedShardConfig(shard_utils.ShardConfig):
    """Limits the number of shards to the number of records; TFDS fails if there are more shards."""

    def get_number_shards(self, total_size: int, num_examples: int, uses_precise_sharding: bool = True) -> int:
        return max(1, min(super().get_number_shards(total_size, num_examples, uses_precise_sharding), num_examples))


class _DownloadConfig(tfds.download.DownloadConfig):
    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _LimitedShardConfig(num_shards=self.num_shards)


def write_records(
    directory: str | os.PathLike,
    splits: dict[str, Callable[[], Iterable[Record]]],
    *,
    shards: int = 4,
    progress: bool = True,
) -> None:
    """Writes records as a TFDS dataset of ArrayRecord files.

    The dataset is built in a hidden directory beside `directory` and renamed at the end, so that a failed run leaves
    nothing under the final name.

    Args:
        directory: directory of the dataset; must not exist, or be empty.
        splits: {split name: callable that yields its records}.
        shards: files per split (fewer if there are fewer records).
        progress: shows progress bars on stderr.

    Raises:
        ValueError: if the directory is not empty, there is no split, a split is empty, or a record is malformed.
    """
    target = pathlib.Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already: delete it, or choose another directory for the records")
    if not splits or shards < 1:
        raise ValueError(f"got splits={sorted(splits)}, shards={shards}; expected at least one of each")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with _progress_bars(progress):
            builder = EmoRecords(splits=splits, data_dir=str(partial))
            builder.download_and_prepare(download_config=_DownloadConfig(num_shards=shards))
        write_index(builder.data_dir)
        os.replace(builder.data_dir, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _progress_bars(enable: bool) -> Iterator[None]:
    before = tqdm_utils._active
    tfds.display_progress_bar(enable)
    try:
        yield
    finally:
        tfds.display_progress_bar(before)


class RecordSource:
    """Random access to the records of one split: `source[i]` is a dict with the fields of `Record`.

    The source pickles as its directory and split, so that each worker process opens its own files.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        """Opens a split; see `open_records`."""
        self.directory, self.split = str(directory), split
        self._open()
        check_files(self.directory, self._source.dataset_info.splits, {name for name, _, _ in self._parts})

    def _open(self) -> None:
        path = pathlib.Path(self.directory)
        if not self.directory:
            raise ValueError("data.directory is empty; set it to a folder of records (--config.data.directory=...)")
        if not path.is_dir():
            raise ValueError(
                f"{path} is not a directory: write records first (`emo prepare`), or change data.directory"
            )
        check_info(path)
        try:
            builder = tfds.builder_from_directory(path)
            features: Any = builder.info.features
        except Exception as error:
            raise ValueError(
                feature_error(path, record_features())
                or f"{path} holds no records (no TFDS dataset there): write them with `emo prepare`"
            ) from error
        missing = sorted(set(record_features()) - set(_LATER_FIELDS) - set(features or {}))
        if missing:
            raise ValueError(
                f"{path} holds another kind of dataset: the fields {', '.join(missing)} are missing; see `emo prepare`"
            )
        for name, expected in record_features().items():
            if name in features and repr(features[name]) != repr(expected):
                raise ValueError(f"{path}/features.json: {name} is {features[name]!r}; expected {expected!r}")
        file_format = getattr(builder.info.file_format, "value", None)
        if file_format != "array_record":
            raise ValueError(f"{path} is stored as {file_format}, expected array_record; see `emo prepare`")
        try:
            self._source = builder.as_data_source(self.split)  # pyright: ignore[reportCallIssue]
            parts = tfds.core.ReadInstruction.from_spec(self.split).to_absolute(builder.info.splits)
        except Exception as error:
            known = ", ".join(sorted(builder.info.splits)) or "none"
            raise MissingSplit(f"{path} has no split {self.split!r}; it has: {known}") from error
        lengths = {name: split.num_examples for name, split in builder.info.splits.items()}
        self._parts = [(part.splitname, slice(part.from_, part.to), lengths[part.splitname]) for part in parts]

    def __getstate__(self) -> dict[str, str]:
        return {"directory": self.directory, "split": self.split}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"RecordSource({self.directory!r}, {self.split!r})"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            stored = dict(self._source[int(index)])
        except RuntimeError as error:  # raised by ArrayRecord if a checksum does not match
            raise ValueError(str(error)) from error
        complete = all(name in stored for name in _LATER_FIELDS)
        example = stored if complete else _default_fields(stored["audio"]) | stored
        for name in BYTES_FIELDS:
            value = example[name]
            example[name] = value if name == "video" else value.decode()
        points, count = np.frombuffer(example["landmarks"], np.float16), len(example["boxes"])
        shape = (count, points.size // (2 * count)) if points.size else (0, 0)
        example["landmarks"] = points.reshape(*shape, 2).astype(np.float32)
        return example

    def index(self) -> dict[str, np.ndarray]:
        """Returns `frames` (int), `fps` (float) and `sound` (bool) of all records, each (records,).

        They come from `index.json`; if that does not cover the split, every record is read once.
        """
        return {name: self._index[name] for name in _INDEX}

    def reliable_speed(self) -> np.ndarray:
        """Returns whether the head rotation speeds of each record can be used, (records,) bool; see `index`."""
        if "reliable_speed" in self._index:
            return self._index["reliable_speed"]
        return self._scanned["reliable_speed"]

    def aspects(self) -> np.ndarray:
        """Returns width / height of the frames of each record, (records,); see `index`."""
        return self._index["aspect"] if "aspect" in self._index else self._scanned["aspect"]

    @functools.cached_property
    def _index(self) -> dict[str, np.ndarray]:
        path = pathlib.Path(self.directory) / INDEX_FILE
        stored = schema.read_json(path, schema.mapping(INDEX_SCHEMA)) if path.exists() else {}
        if all(name in stored and len(stored[name]["frames"]) == length for name, _, length in self._parts):
            parts = [(stored[name], rows) for name, rows, _ in self._parts]
            common = [name for name in parts[0][0] if all(name in part for part, _ in parts)]
            return {name: np.concatenate([part[name][rows] for part, rows in parts]) for name in common}
        return self._scanned

    @functools.cached_property
    def _scanned(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in _scan(self).items()}


@contextlib.contextmanager
def open_record(source: Any, position: int) -> Iterator[dict[str, Any]]:
    """Context manager that reads one record; a ValueError raised inside is extended by the record's place and id.

    Args:
        source: a `RecordSource` or `latents.LatentSource`.
        position: position in the source.

    Yields:
        The record.

    Raises:
        ValueError: if the record cannot be read, or the block raises one.
    """
    record: dict[str, Any] = {}
    try:
        record = source[position]
        yield record
    except ValueError as error:
        name = f" ({record['id']})" if "id" in record else ""
        raise ValueError(
            f"{source.directory}, split {source.split}, record {position}{name}: {' '.join(str(error).split())}; "
            "remove it or prepare it again"
        ) from error


def _default_fields(audio: np.ndarray) -> dict[str, Any]:
    """Returns the fields that records of older versions lack, as TFDS would return them."""
    return dict(
        speed_confidence=np.zeros(0, np.float32),
        span=np.zeros(2, np.float32),
        analyzer=b"",
        flags=b"",
        landmarks=b"",
        phonemes=b"",
        audio_moments=audio_moments(audio),
    )


def open_records(directory: str | os.PathLike, split: str) -> RecordSource:
    """Opens one split of a directory of records, or a slice of it such as 'train[:90%]'.

    Raises:
        ValueError: if the directory or the split is missing, or the directory holds something else.
    """
    return RecordSource(os.fspath(directory), split)


def write_index(directory: str | os.PathLike) -> None:
    """Reads every record once and writes `index.json`. Call it after building records in any other way as well."""
    path = pathlib.Path(directory)
    splits = tfds.builder_from_directory(path).info.splits
    index = {split: _scan(open_records(path, split)) for split in splits}
    write_text(path / INDEX_FILE, json.dumps(index))


def _scan(source: RecordSource) -> dict[str, list]:
    rows: dict[str, list] = {"frames": [], "fps": [], "sound": [], "reliable_speed": [], "aspect": []}
    for i in range(len(source)):
        with open_record(source, i) as record:
            rows["frames"].append(len(record["boxes"]))
            rows["fps"].append(float(record["fps"]))
            rows["sound"].append(bool(len(record["audio"])))
            rows["reliable_speed"].append(has_reliable_speed(record["speed_confidence"], record["flags"]))
            height, width = mp4.frame_size(record["video"])
            rows["aspect"].append(width / height)
    return rows

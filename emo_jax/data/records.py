"""Records on disk: one record is one continuous shot of one person; ArrayRecord through TFDS, without TensorFlow.

A directory of records is an ordinary TFDS dataset directory and one more file, `index.json`: for each record its
length, frame rate and whether it has sound, so that the pipeline can choose records without reading the videos.
"""

import contextlib
import dataclasses
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

from emo_jax.files import write_text
from emo_jax.media.mp4 import count_frames
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

INDEX_FILE = "index.json"
_BYTES_FIELDS = ("id", "source", "licence", "video", "analyzer", "flags")
_LATER_FIELDS = ("speed_confidence", "span", "analyzer", "flags", "landmarks")  # records of version 1.0.0 lack them


@dataclasses.dataclass
class Record:
    """One shot of N frames.

    Attributes:
      id: unique name within the split.
      source: where it comes from.
      licence: under which terms it may be used.
      video: mp4 file (H.264, GOP 16, no audio track), see `mp4.encode_video`.
      audio: (round(N / fps * 16000),) int16, 16 kHz mono; (0,) if the record has no sound.
      fps: frames per second.
      boxes: (N, 4) float32, face box (x0, y0, x1, y1) of each frame in pixels.
      rotation: (N, 3) float32, yaw, pitch and roll in degrees.
      speed: (N,) float32, smoothed head rotation speed in degrees per frame.
      mouth: (N, 2) float32, true opening and width in [0, 1] of a rendered head; (0, 2) for real video.
      appearance: (K,) float32, identity attributes of a rendered head, each roughly in [0, 1]; (0,) for real video.
      speed_confidence: (N,) float32 in [0, 1], how far `speed` can be trusted; (0,) where it is exact (rendered heads).
      span: (2,) float32, begin and end in the source, in seconds from its first frame; (0, 0) for a rendered head.
      analyzer: what found the face and what it can tell, such as "haar: box and roll"; "" for a rendered head.
      landmarks: (N, P, 2) points of the face in pixels, kept as float16, in the order of the analyzer's mesh
        (mediapipe's has 468); (0, 0, 2) where the analyzer has none, and for a rendered head.
      flags: words that warn of weak spots, separated by a space, such as "no-sound low-fps"; "" for none.
    """

    id: str
    source: str
    licence: str
    video: bytes
    audio: np.ndarray
    fps: float
    boxes: np.ndarray
    rotation: np.ndarray
    speed: np.ndarray
    mouth: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.float32))
    appearance: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    speed_confidence: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    span: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((2,), np.float32))
    analyzer: str = ""
    flags: str = ""
    landmarks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))


def record_features() -> tfds.features.FeaturesDict:
    """The TFDS schema of a `Record`; every builder of records must use it."""
    floats = {"boxes": (None, 4), "rotation": (None, 3), "speed": (None,), "mouth": (None, 2), "appearance": (None,)}
    floats |= {"speed_confidence": (None,), "span": (2,)}
    return tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in (*_BYTES_FIELDS, "landmarks")}  # bytes: lists of floats are slow
        | {"audio": tfds.features.Tensor(shape=(None,), dtype=np.int16), "fps": tfds.features.Scalar(np.float32)}
        | {name: tfds.features.Tensor(shape=shape, dtype=np.float32) for name, shape in floats.items()}
    )


def record_example(record: Record) -> dict[str, Any]:
    """Checks a `Record` and returns it as an example of `record_features`.

    Raises:
      ValueError: if a field has the wrong shape or type, or the fields disagree about the number of frames.
    """
    count = count_frames(record.video)
    if not record.fps > 0:
        raise ValueError(f"record {record.id!r}: fps is {record.fps}, expected more than 0")
    samples = round(count * SAMPLE_RATE / exact_fps(record.fps))
    audio = np.asarray(record.audio)
    if audio.dtype != np.int16 or audio.shape not in ((0,), (samples,)):
        raise ValueError(
            f"record {record.id!r}: audio is {audio.dtype}{audio.shape}, expected int16({samples},) for {count} frames "
            f"at {record.fps:g} fps, or int16(0,) for no sound; pad or trim it"
        )
    example = {name: getattr(record, name) for name in _BYTES_FIELDS} | {"audio": audio, "fps": np.float32(record.fps)}
    wanted = {"boxes": (count, 4), "rotation": (count, 3), "speed": (count,), "mouth": (count, 2)}
    wanted |= {"speed_confidence": (count,), "span": (2,)}
    for name, shape in wanted.items():
        value = np.asarray(getattr(record, name), np.float32)
        if value.shape != shape and not (name in ("mouth", "speed_confidence") and value.shape == (0, *shape[1:])):
            raise ValueError(
                f"record {record.id!r}: {name} has shape {value.shape}, expected {shape}: one row per video frame"
            )
        if not np.isfinite(value).all():
            raise ValueError(
                f"record {record.id!r}: {name} holds values that are not finite; drop or repair the record"
            )
        example[name] = value
    landmarks = np.asarray(record.landmarks, np.float16)
    fine = landmarks.ndim == 3 and landmarks.shape[::2] == (count, 2) and np.isfinite(landmarks).all()
    if landmarks.size and not fine:
        raise ValueError(
            f"record {record.id!r}: landmarks have shape {landmarks.shape}, expected ({count}, P, 2), finite: drop them"
        )
    example["landmarks"] = landmarks.tobytes()
    example["appearance"] = np.asarray(record.appearance, np.float32).reshape(-1)
    return example


class EmoRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder that writes what the given callables yield."""

    VERSION = tfds.core.Version("1.3.0")  # since then the sound of videos is levelled

    def __init__(self, *, splits: dict[str, Callable[[], Iterable[Record]]], data_dir: str):
        self._sources = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(description="Talking heads for emo_jax.", features=record_features())

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name) for name in self._sources}

    def _generate_examples(self, split):
        seen = set()
        for record in self._sources[split]():
            if record.id in seen:
                raise ValueError(f"split {split!r} holds two records with the id {record.id!r}; give each its own")
            seen.add(record.id)
            yield record.id, record_example(record)
        if not seen:
            raise ValueError(f"split {split!r} holds no record; leave the split out, or give it at least one")

    # TFDS prints these two to stdout.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


class _AtMostOnePerRecord(tfds.core.utils.shard_utils.ShardConfig):
    """TFDS fails when there are more shards than records."""

    def get_number_shards(self, total_size: int, num_examples: int, uses_precise_sharding: bool = True) -> int:
        return max(1, min(super().get_number_shards(total_size, num_examples, uses_precise_sharding), num_examples))


class _DownloadConfig(tfds.download.DownloadConfig):
    def get_shard_config(self):
        return _AtMostOnePerRecord(num_shards=self.num_shards)


def write_records(
    directory: str | os.PathLike,
    splits: dict[str, Callable[[], Iterable[Record]]],
    *,
    shards: int = 4,
    progress: bool = True,
) -> None:
    """Writes records as a TFDS dataset of ArrayRecord files.

    Everything is built in a hidden directory beside `directory` and renamed at the end: a run that fails leaves nothing
    under the final name.

    Args:
      directory: where the dataset will lie; must not exist, or be empty.
      splits: for each split name a callable that yields its records.
      shards: files per split (fewer if there are fewer records).
      progress: show progress bars on stderr.

    Raises:
      ValueError: if the directory is taken, there is no split or a split is empty, or a record is malformed.
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
    before = tfds.core.utils.tqdm_utils._active
    tfds.display_progress_bar(enable)
    try:
        yield
    finally:
        tfds.display_progress_bar(before)


class RecordSource:
    """Random access to the records of one split: `source[i]` is a dict with the fields of `Record`.

    Pickles as its directory and split, so that worker processes open their own files.
    """

    def __init__(self, directory: str, split: str):
        self.directory, self.split = str(directory), split
        self._open()

    def _open(self) -> None:
        path = pathlib.Path(self.directory)
        if not path.is_dir():
            raise ValueError(
                f"{path} is not a directory: write records first (`emo prepare`), or correct data.directory"
            )
        try:
            builder = tfds.builder_from_directory(path)
            features = builder.info.features
        except Exception as error:
            raise ValueError(
                f"{path} holds no records (no TFDS dataset there): write them with `emo prepare`"
            ) from error
        missing = sorted(set(record_features()) - set(_LATER_FIELDS) - set(features or {}))
        if missing:
            raise ValueError(
                f"{path} holds another dataset: the fields {', '.join(missing)} are missing; see `emo prepare`"
            )
        if str(builder.info.file_format.value) != "array_record":
            raise ValueError(
                f"{path} is stored as {builder.info.file_format.value}, expected array_record; see `emo prepare`"
            )
        try:
            self._source = builder.as_data_source(self.split)
            parts = tfds.core.ReadInstruction.from_spec(self.split).to_absolute(builder.info.splits)
        except Exception as error:
            known = ", ".join(sorted(builder.info.splits)) or "none"
            raise ValueError(f"{path} has no split {self.split!r}; it has: {known}") from error
        lengths = {name: split.num_examples for name, split in builder.info.splits.items()}
        self._parts = [(part.splitname, slice(part.from_, part.to), lengths[part.splitname]) for part in parts]

    def __getstate__(self):
        return {"directory": self.directory, "split": self.split}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"RecordSource({self.directory!r}, {self.split!r})"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index) -> dict[str, Any]:
        try:
            example = _later_fields() | dict(self._source[int(index)])
        except RuntimeError as error:  # ArrayRecord's, where bytes are not those that were written
            raise ValueError(str(error)) from error
        for name in _BYTES_FIELDS:
            value = example[name]
            example[name] = value if name == "video" else value.decode()
        marks, count = np.frombuffer(example["landmarks"], np.float16), len(example["boxes"])
        shape = (count, marks.size // (2 * count)) if marks.size else (0, 0)
        example["landmarks"] = marks.reshape(*shape, 2).astype(np.float32)
        return example

    def index(self) -> dict[str, np.ndarray]:
        """`frames` (int), `fps` (float), `sound` (bool), each (len,); from `index.json`, or by reading every record."""
        return self._index

    @functools.cached_property
    def _index(self) -> dict[str, np.ndarray]:
        path = pathlib.Path(self.directory) / INDEX_FILE
        stored = json.loads(path.read_text()) if path.exists() else {}
        if all(name in stored and len(stored[name]["frames"]) == length for name, _, length in self._parts):
            parts = [(stored[name], rows) for name, rows, _ in self._parts]
            return {name: np.concatenate([part[name][rows] for part, rows in parts]) for name in parts[0][0]}
        return {name: np.asarray(value) for name, value in _scan(self).items()}


@contextlib.contextmanager
def reading(source, position: int) -> Iterator[dict[str, Any]]:
    """The record at a position of a source; a ValueError about it, there or inside, names where it lies and its id."""
    record: dict[str, Any] = {}
    try:
        record = source[position]
        yield record
    except ValueError as error:
        name = f" ({record['id']})" if "id" in record else ""
        raise ValueError(
            f"{source.directory}, split {source.split}, record {position}{name}: {' '.join(str(error).split())}; "
            "take it out or prepare it anew"
        ) from error


def _later_fields() -> dict[str, Any]:
    """What records of version 1.0.0 lack, as TFDS would read it."""
    texts = dict(analyzer=b"", flags=b"", landmarks=b"")
    return dict(speed_confidence=np.zeros(0, np.float32), span=np.zeros(2, np.float32), **texts)


def open_records(directory: str | os.PathLike, split: str) -> RecordSource:
    """Opens one split (or a slice of it, as 'train[:90%]') of a directory of records.

    Raises:
      ValueError: if the directory or the split is missing, or holds something else.
    """
    return RecordSource(os.fspath(directory), split)


def write_index(directory: str | os.PathLike) -> None:
    """Reads every record once and writes `index.json`; to be called after any other builder of records, too."""
    path = pathlib.Path(directory)
    splits = tfds.builder_from_directory(path).info.splits
    index = {split: _scan(open_records(path, split)) for split in splits}
    write_text(path / INDEX_FILE, json.dumps(index))


def _scan(source: RecordSource) -> dict[str, list]:
    rows: dict[str, list] = {"frames": [], "fps": [], "sound": []}
    for i in range(len(source)):
        record = source[i]
        rows["frames"].append(len(record["boxes"]))
        rows["fps"].append(float(record["fps"]))
        rows["sound"].append(bool(len(record["audio"])))
    return rows

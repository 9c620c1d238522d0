"""Shards of records that are made from videos, and the TFDS dataset that they form together."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from emo_jax.data.record import record_features
from emo_jax.data.records import INDEX_FILE, EmoRecords
from emo_jax.faces.analyzers import make_analyzer
from emo_jax.files import remove_temporary_files, write_text
from emo_jax.preparation.shards import ShardedBuild, shard_names
from emo_jax.preparation.splits import HELD_OUT, TRAIN
from emo_jax.preparation.video_records import Outcome, Settings, video_records


@dataclasses.dataclass(frozen=True)
class VideoBuild(ShardedBuild):
    """A dataset of records from videos.

    Attributes:
        target: absolute path of the dataset directory.
        videos: (path, name) of each video, in the order of the names.
        settings: settings of `video_records`.
        max_shards: maximum number of shards of each split.
        held_out: names of the videos of the split validation; the others are of the split train.
    """

    target: pathlib.Path
    videos: tuple[tuple[pathlib.Path, str], ...]
    settings: Settings
    max_shards: int
    held_out: frozenset[str] = frozenset()

    differences: ClassVar[str] = "other options or videos"
    writer_options: ClassVar[str] = "group_size:1"

    @property
    def shards(self) -> int:
        """The number of shards."""
        return sum(self._shards(split) for split in (TRAIN, HELD_OUT))

    def split(self, index: int) -> str:
        """Returns the split of a shard."""
        return TRAIN if index < self._shards(TRAIN) else HELD_OUT

    def shard_videos(self, index: int) -> tuple[tuple[pathlib.Path, str], ...]:
        """Returns the videos of one shard."""
        split = self.split(index)
        videos, shards = self._videos(split), self._shards(split)
        place = index - (0 if split == TRAIN else self._shards(TRAIN))
        return videos[place * len(videos) // shards : (place + 1) * len(videos) // shards]

    def _videos(self, split: str) -> tuple[tuple[pathlib.Path, str], ...]:
        return tuple(video for video in self.videos if (video[1] in self.held_out) == (split == HELD_OUT))

    def _shards(self, split: str) -> int:
        held_out = len(self.held_out)
        return min(held_out if split == HELD_OUT else len(self.videos) - held_out, self.max_shards)

    def current(self, index: int) -> pathlib.Path:
        """Returns the file that names the video in progress, so that a video that crashes its process is known."""
        return self.work / f"shard-{index:05d}.current"

    def videos_done(self) -> int:
        """Returns the number of videos in complete shards."""
        return len(self.videos) - sum(len(self.shard_videos(index)) for index in self.missing())

    def describe(self) -> str:
        """Returns everything that the records depend on, as JSON."""
        description: dict[str, Any] = dict(
            version=str(EmoRecords.VERSION),
            settings=dataclasses.asdict(self.settings),
            videos=[(name, path.stat().st_size) for path, name in self.videos],
            shards=self.max_shards,
        )
        if self.held_out:  # absent otherwise, so that earlier builds are continued
            description["held_out"] = sorted(self.held_out)
        return json.dumps(description, indent=1)

    def begin(self) -> bool:
        """Begins or continues the build, see `ShardedBuild.begin`; removes what a killed run has left."""
        if not super().begin():
            return False
        remove_temporary_files(self.work)
        for path in self.work.glob("*.current"):
            path.unlink()
        return True


def make_shard(
    build: VideoBuild, index: int, skip: Mapping[str, str] | None = None, tick: Callable[[float], None] = lambda _: None
) -> None:
    """Makes the records of one shard.

    Args:
        build: the dataset.
        index: number of the shard.
        skip: {name: reason} of videos that have crashed a process before; they are rejected.
        tick: called with the number of videos (a fraction) that were processed since the last call.
    """
    build.write_shard(index, lambda writer: _write_records(writer, build, index, skip or {}, tick))
    build.current(index).unlink(missing_ok=True)


def _write_records(
    writer: ArrayRecordWriter, build: VideoBuild, index: int, skip: Mapping[str, str], tick: Callable[[float], None]
) -> dict[str, Any]:
    """Writes the records of a shard; returns the summary: size, report rows of the records, outcomes of the videos."""
    analyzer = make_analyzer(build.settings.faces, build.settings.face_models)
    features, rows, outcomes, size = record_features(), [], [], 0
    for path, name in build.shard_videos(index):
        if name in skip:
            outcomes.append(Outcome(name, reason=skip[name]))
            tick(1.0)
            continue
        write_text(build.current(index), name)
        progress = _VideoProgress(tick)
        videos = video_records(path, name, build.settings, analyzer, progress.add)
        while True:
            try:
                example, row = next(videos)
            except StopIteration as stop:
                outcomes.append(stop.value)
                break
            data = features.serialize_example(example)
            writer.write(data)
            rows.append(row)
            size += len(data)
        progress.complete()
    return dict(bytes=size, records=rows, videos=[dataclasses.asdict(outcome) for outcome in outcomes])


class _VideoProgress:
    """Reports the progress within one video, which adds up to 1."""

    def __init__(self, tick: Callable[[float], None]):
        self._tick, self._done = tick, 0.0

    def add(self, share: float) -> None:
        self._done += share
        self._tick(share)

    def complete(self) -> None:
        self._tick(1.0 - self._done)


def publish_records(build: VideoBuild, write_report: Callable[[pathlib.Path, list[dict]], None]) -> None:
    """Assembles the shards to a TFDS dataset under its final name.

    Args:
        build: the dataset; all of its shards are complete.
        write_report: writes further files, given the directory and the summaries of the shards.
    """
    summaries = build.read_summaries()
    filled: dict[str, list[int]] = {}
    for index, summary in enumerate(summaries):
        if summary["records"]:
            filled.setdefault(build.split(index), []).append(index)
    files = {}
    for split, shards in filled.items():
        files |= dict(zip(shard_names(f"{EmoRecords.name}-{split}", len(shards)), shards, strict=True))

    def write_metadata(directory: pathlib.Path) -> None:
        if filled:
            _write_tfds_metadata(directory, {s: [summaries[i] for i in shards] for s, shards in filled.items()})
        write_report(directory, summaries)

    build.publish(files, write_metadata)


def _write_tfds_metadata(directory: pathlib.Path, splits: dict[str, list[dict]]) -> None:
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=[len(summary["records"]) for summary in summaries],
            num_bytes=sum(summary["bytes"] for summary in summaries),
        )
        for name, summaries in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=record_features(),
        split_infos=infos,
        version=str(EmoRecords.VERSION),
        description="Talking heads for emo_jax.",
        check_data=False,
    )
    index = {}
    for name, summaries in splits.items():
        rows = [row for summary in summaries for row in summary["records"]]
        fields = ("frames", "fps", "sound", "reliable_speed", "aspect")
        # Rows of an earlier version, which a resumed run takes over, have no aspect.
        index[name] = {field: [row[field] for row in rows] for field in fields if all(field in row for row in rows)}
    write_text(directory / INDEX_FILE, json.dumps(index))

"""A data set in shards that can be made one by one, in any order, by any number of processes, and after a kill.

Until all shards are there they lie in a hidden folder beside the data set. A shard is done when its JSON file is: that
one is written last, holds what the report needs, and a shard that has it is never made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from emo_jax.data.records import INDEX_FILE, EmoRecords, record_features
from emo_jax.faces.analyzers import make_analyzer
from emo_jax.files import remove_leftovers, whole, write_text
from emo_jax.preparation.video_records import Outcome, Settings, video_records

SPLIT = "train"
PLAN_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which videos go into which shard, and where the work lies until it is done.

    videos: (path, name) in the order of names. target: directory of the data set to be. limit: shards at most.
    """

    target: pathlib.Path
    videos: tuple[tuple[pathlib.Path, str], ...]
    settings: Settings
    limit: int

    @property
    def work(self) -> pathlib.Path:
        return self.target.parent / f".{self.target.name}.partial"

    @property
    def shards(self) -> int:
        return min(len(self.videos), self.limit)

    def shard(self, index: int) -> tuple[tuple[pathlib.Path, str], ...]:
        """The videos of one shard: neighbours, in almost equal numbers."""
        count = len(self.videos)
        return self.videos[index * count // self.shards : (index + 1) * count // self.shards]

    def summary(self, index: int) -> pathlib.Path:
        return self.work / f"shard-{index:05d}.json"

    def data(self, index: int) -> pathlib.Path:
        return self.work / f"shard-{index:05d}.array_record"

    def current(self, index: int) -> pathlib.Path:
        """Names the video at work, so that one that takes its process down is known."""
        return self.work / f"shard-{index:05d}.current"

    def done(self) -> int:
        """Videos in the shards that are made."""
        return len(self.videos) - sum(len(self.shard(index)) for index in self.missing())

    def missing(self) -> list[int]:
        """The shards still to be made."""
        return [index for index in range(self.shards) if not self.summary(index).exists()]

    def describe(self) -> str:
        """What the result depends on, as JSON."""
        videos = [(name, path.stat().st_size) for path, name in self.videos]
        version = str(EmoRecords.VERSION)
        told = dict(version=version, settings=dataclasses.asdict(self.settings), videos=videos, shards=self.limit)
        return json.dumps(told, indent=1)

    def begin(self) -> bool:
        """Makes the folder of the work. False where the data set is there already, made from the same.

        Raises ValueError where the data set or unfinished work is there, from something else.
        """
        if not begin(self.target, self.work, self.describe(), "with other options or from other videos"):
            return False
        remove_leftovers(self.work)
        for path in self.work.glob("*.current"):
            path.unlink()  # left by a run that was killed
        return True


def begin(target: pathlib.Path, work: pathlib.Path, told: str, what: str) -> bool:
    """Makes the folder of the work; `told` is all that the result depends on, `what` how another may have been made.

    False where the result is there already, made from the same. Raises ValueError where it or unfinished work is there,
    made otherwise.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if _same(target / PLAN_FILE, told):
            return False
        raise ValueError(f"{target} exists already, made {what}: delete it, or choose another directory")
    if work.exists() and (work / PLAN_FILE).exists() and not _same(work / PLAN_FILE, told):
        raise ValueError(f"{work} holds a run that was begun {what}: finish it with those, or delete it")
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / PLAN_FILE, told)
    return True


def make_shard(plan: Plan, index: int, skip: Iterable[str] = (), tick: Callable[[float], None] = lambda _: None):
    """Writes one shard and its summary; `skip` names videos that took their process down before."""
    with whole(plan.data(index)) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        summary = _write_videos(writer, plan, index, skip, tick)
        writer.close()
    write_text(plan.summary(index), json.dumps(summary))
    plan.current(index).unlink(missing_ok=True)


def _write_videos(writer, plan, index, skip, tick):
    """The shard's summary: what its records hold, and how each video ended."""
    analyzer = make_analyzer(plan.settings.faces, plan.settings.face_model)
    features, rows, outcomes, size = record_features(), [], [], 0
    for path, name in plan.shard(index):
        if name in skip:
            outcomes.append(Outcome(name, reason="its decoder took the process down, or it needs too much memory"))
            tick(1.0)
            continue
        write_text(plan.current(index), name)
        done = 0.0

        def told(share):
            nonlocal done
            done += share
            tick(share)

        videos = video_records(path, name, plan.settings, analyzer, told)
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
        tick(1.0 - done)
    return dict(bytes=size, records=rows, videos=[dataclasses.asdict(outcome) for outcome in outcomes])


def finish(plan: Plan, extra: Callable[[pathlib.Path, list[dict]], None]) -> None:
    """Puts the shards together under the final name.

    extra(directory, summaries) may write more files before the directory gets its name.
    """
    summaries = [json.loads(plan.summary(index).read_text()) for index in range(plan.shards)]
    made = plan.work / "whole"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    filled = [index for index, summary in enumerate(summaries) if summary["records"]]
    if filled:
        for number, index in enumerate(filled):
            name = f"{EmoRecords.name}-{SPLIT}.array_record-{number:05d}-of-{len(filled):05d}"
            _link(plan.data(index), made / name)
        lengths = [len(summaries[index]["records"]) for index in filled]
        split = tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=lengths, num_bytes=sum(summaries[index]["bytes"] for index in filled)
        )
        tfds.folder_dataset.write_metadata(
            data_dir=made,
            features=record_features(),
            split_infos=[split],
            version=str(EmoRecords.VERSION),
            description="Talking heads for emo_jax.",
            check_data=False,
        )
        rows = [row for summary in summaries for row in summary["records"]]
        index = {field: [row[field] for row in rows] for field in ("frames", "fps", "sound")}
        write_text(made / INDEX_FILE, json.dumps({SPLIT: index}))
    extra(made, summaries)
    shutil.copyfile(plan.work / PLAN_FILE, made / PLAN_FILE)
    if plan.target.is_dir():
        plan.target.rmdir()  # empty, says `begin`
    os.replace(made, plan.target)
    shutil.rmtree(plan.work)


def _same(path: pathlib.Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A second name for the file, or a copy where file systems have no such thing; the first stays for another try."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""Directories that are built in shards: in any order, by any number of processes, and resumable after a kill.

A build is in a hidden directory beside its target until it is complete. A shard is complete once its summary, a JSON
file, exists: the summary is written last, and a shard that has one is never written again.
"""

from __future__ import annotations

import abc
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, ClassVar

from array_record.python.array_record_module import ArrayRecordWriter

from emo_jax.files import atomic_write, remove_temporary_files, write_text

PLAN_FILE = "plan.json"


class ShardedBuild(abc.ABC):
    """A directory that is built in shards.

    Attributes:
        target: absolute path of the finished directory.
        differences: what may differ in another build of the same target, for error messages.
        writer_options: options of the ArrayRecord writer.
    """

    target: pathlib.Path
    differences: ClassVar[str]
    writer_options: ClassVar[str]

    @property
    @abc.abstractmethod
    def shards(self) -> int:
        """The number of shards."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Returns everything that the result depends on, as JSON; it is stored in `plan.json`."""

    @property
    def work(self) -> pathlib.Path:
        """The directory of the unfinished build."""
        return self.target.parent / f".{self.target.name}.partial"

    def data(self, index: int) -> pathlib.Path:
        """Returns the path of a shard's ArrayRecord file."""
        return self.work / f"shard-{index:05d}.array_record"

    def summary(self, index: int) -> pathlib.Path:
        """Returns the path of a shard's summary."""
        return self.work / f"shard-{index:05d}.json"

    def bounds(self, index: int, count: int) -> range:
        """Returns which of `count` consecutive inputs belong to a shard; shards differ in size by at most one."""
        return range(index * count // self.shards, (index + 1) * count // self.shards)

    def missing(self) -> list[int]:
        """Returns the shards that are not complete."""
        return [index for index in range(self.shards) if not self.summary(index).exists()]

    def begin(self) -> bool:
        """Creates the directory of the unfinished build, or continues an earlier one.

        Returns:
            False if the target exists already and was built from the same inputs.

        Raises:
            ValueError: if the target or an unfinished build exists and differs in its inputs.
        """
        description, target, work = self.describe(), self.target, self.work
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            if _has_content(target / PLAN_FILE, description):
                return False
            raise ValueError(
                f"{target} exists already and was built with {self.differences}: delete it, or choose another directory"
            )
        if (work / PLAN_FILE).exists() and not _has_content(work / PLAN_FILE, description):
            raise ValueError(
                f"{work} holds an unfinished build with {self.differences}: finish it with the same ones, or delete it"
            )
        work.mkdir(parents=True, exist_ok=True)
        write_text(work / PLAN_FILE, description)
        return True

    def write_shard(self, index: int, write: Callable[[ArrayRecordWriter], dict[str, Any]]) -> None:
        """Writes a shard and then its summary.

        Args:
            index: number of the shard.
            write: writes the entries and returns the summary.
        """
        with atomic_write(self.data(index)) as partial:
            writer = ArrayRecordWriter(str(partial), self.writer_options)
            summary = write(writer)
            writer.close()
        write_text(self.summary(index), json.dumps(summary))

    def read_summaries(self) -> list[dict[str, Any]]:
        """Returns the summaries of all shards."""
        return [json.loads(self.summary(index).read_text()) for index in range(self.shards)]

    def publish(self, files: dict[str, int], write_metadata: Callable[[pathlib.Path], None]) -> None:
        """Assembles the finished directory under its final name and removes the unfinished one.

        Args:
            files: {file name: shard} of the finished directory.
            write_metadata: writes further files into the directory that it is given.
        """
        complete = self.work / "complete"
        remove_temporary_files(self.work)
        shutil.rmtree(complete, ignore_errors=True)
        complete.mkdir()
        for name, index in files.items():
            _link(self.data(index), complete / name)
        write_metadata(complete)
        shutil.copyfile(self.work / PLAN_FILE, complete / PLAN_FILE)
        if self.target.is_dir():
            self.target.rmdir()  # `begin` has checked that it is empty
        os.replace(complete, self.target)
        shutil.rmtree(self.work)


def shard_names(prefix: str, count: int) -> list[str]:
    """Returns the names of `count` ArrayRecord files of one dataset."""
    return [f"{prefix}.array_record-{index:05d}-of-{count:05d}" for index in range(count)]


def _has_content(path: pathlib.Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """Hard-links a file, or copies it if the file system has no hard links; the source is kept for another attempt."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

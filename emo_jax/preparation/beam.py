"""Builds the dataset of `emo prepare videos` on Apache Beam, on as many machines as its runner has.

TFDS has Beam builders, but these start again after a kill, do not keep the order of the records, and fail with the
first process that a decoder crashes. Here the elements of the pipeline are shards, made by the same code as without
Beam: files, records and report are the same, and an interrupted run resumes with or without Beam.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from emo_jax.preparation.video_shards import VideoBuild
from emo_jax.preparation.workers import MonotonicProgress, make_shard_isolated
from emo_jax.progress import Progress, call_periodically

POLL_SECONDS = 2.0
"""Seconds between two updates of the progress."""
_BUILD_FILE = "plan.pickle"


def make_beam_runner(runner: str, options: Sequence[str]) -> Callable[[VideoBuild, Progress], None]:
    """Returns a function that makes the missing shards on a Beam runner.

    The videos and the output must be on a file system that all workers can read and write.

    Args:
        runner: DirectRunner, PortableRunner, FlinkRunner, SparkRunner, DataflowRunner, or the full name of a class.
        options: options of the runner as documented by Beam, for example "--direct_num_workers=2".

    Returns:
        The function, which takes the build and the progress.

    Raises:
        ValueError: if Beam is missing, or does not accept the runner or an option.
    """
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("--runner needs Apache Beam: pip install -c constraints.txt -e '.[beam]'") from error
    # Beam's DirectRunner would first download Prism, which does not support --direct_num_workers.
    name = "FnApiRunner" if runner == "DirectRunner" else runner
    pipeline = apache_beam.Pipeline(options=_parse_options(name, options))
    return functools.partial(_make_on_beam, pipeline, runner)


def _parse_options(runner: str, options: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]

    parsed, usage = PipelineOptions([f"--runner={runner}", *options]), io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            known = set(parsed.get_all_options())
            given = set(parsed.get_all_options(retain_unknown_options=True))
    except SystemExit as error:
        raise ValueError(f"--runner-options: {usage.getvalue().rpartition('error: ')[2]}") from error
    if runner == "FnApiRunner" and given > known:  # other runners may have options that are not known here
        raise ValueError(f"--runner-options has --{min(given - known)}, which Beam's DirectRunner does not support")
    return parsed


def _make_on_beam(pipeline: Any, runner: str, build: VideoBuild, progress: Progress) -> None:
    import apache_beam  # pyright: ignore[reportMissingImports]

    missing = build.missing()
    print(f"{len(missing)} shards go to Beam's {runner}", file=sys.stderr)
    path = build.work / _BUILD_FILE
    path.write_bytes(pickle.dumps(build))  # in a file, because Dataflow limits the size of a pipeline
    shards = pipeline | apache_beam.Create(missing) | apache_beam.Reshuffle()
    _ = shards | "MakeShard" >> apache_beam.Map(_make_shard, str(path))
    monotonic = MonotonicProgress(progress)
    try:
        with call_periodically(lambda: monotonic.reach(build.videos_done()), POLL_SECONDS):
            pipeline.run().wait_until_finish()
    except Exception as error:  # each runner has its own exceptions, some without a message
        reason = str(error) or type(error).__name__
        raise OSError(f"Beam's {runner} failed; the same command resumes: {reason}") from error
    monotonic.reach(build.videos_done())
    if missing := build.missing():
        raise OSError(f"Beam's {runner} left {len(missing)} of {build.shards} shards; the same command resumes")


def _make_shard(index: int, path: str) -> None:
    make_shard_isolated(pickle.loads(pathlib.Path(path).read_bytes()), index, {})

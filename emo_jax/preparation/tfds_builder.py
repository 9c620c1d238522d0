"""The data set of `emo prepare videos` built on Apache Beam, by as many machines as its runner has.

TFDS can build on Beam by itself, but would begin anew after a kill, lose the order of the records, and end with the
first process that a decoder takes down. So the elements of the pipeline here are shards, made by the code that makes
them without Beam: files, records and report are the same, and a run that was killed goes on, on Beam or without.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import pickle
import sys
from collections.abc import Callable, Sequence

from emo_jax.preparation.shards import Plan
from emo_jax.preparation.workers import Shown, make_alone
from emo_jax.progress import Progress, meanwhile

LOOK_EVERY = 2.0  # seconds between looks at what is finished
_WHOLE_PLAN = "plan.pickle"


def beam_maker(runner: str, options: Sequence[str]) -> Callable[[Plan, Progress], None]:
    """What makes a plan's missing shards on a Beam runner; plan and videos must lie where all its workers see them.

    runner: DirectRunner, PortableRunner, FlinkRunner, SparkRunner, DataflowRunner, or a class's full name. options: as
    Beam documents them, such as "--direct_num_workers=2". Raises ValueError where Beam is missing or takes neither.
    """
    try:
        import apache_beam
    except ImportError as error:
        raise ValueError("--runner needs Apache Beam: pip install -c constraints.txt -e '.[beam]'") from error
    # Beam's DirectRunner would first download Prism, which knows no --direct_num_workers; this is its other half.
    name = "FnApiRunner" if runner == "DirectRunner" else runner
    pipeline = apache_beam.Pipeline(options=_checked_options(name, options))
    return functools.partial(_make_on_beam, pipeline, runner)


def _checked_options(runner: str, options: Sequence[str]):
    from apache_beam.options.pipeline_options import PipelineOptions

    found, usage = PipelineOptions([f"--runner={runner}", *options]), io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            known, given = (set(found.get_all_options(retain_unknown_options=more)) for more in (False, True))
    except SystemExit as error:
        raise ValueError(f"--runner-options: {usage.getvalue().rpartition('error: ')[2]}") from error
    if runner == "FnApiRunner" and given > known:  # others may know more options than this machine does
        raise ValueError(f"--runner-options has --{min(given - known)}, which Beam's DirectRunner does not know")
    return found


def _make_on_beam(pipeline, runner: str, plan: Plan, progress: Progress) -> None:
    import apache_beam

    missing = plan.missing()
    print(f"{len(missing)} shards go to Beam's {runner}", file=sys.stderr)
    path = plan.work / _WHOLE_PLAN
    path.write_bytes(pickle.dumps(plan))  # by file: Dataflow takes no large pipelines
    made = pipeline | apache_beam.Create(missing) | apache_beam.Reshuffle()
    made | "MakeShard" >> apache_beam.Map(_make_one, str(path))
    shown = Shown(progress)
    try:
        with meanwhile(lambda: shown.reach(plan.done()), LOOK_EVERY):
            pipeline.run().wait_until_finish()
    except Exception as error:  # each runner has its own, some without words
        told = str(error) or type(error).__name__
        raise OSError(f"Beam's {runner} failed; the same command goes on from here: {told}") from error
    shown.reach(plan.done())
    if left := plan.missing():
        raise OSError(f"Beam's {runner} left {len(left)} of {plan.shards} shards; the same command goes on from here")


def _make_one(index: int, path: str) -> None:
    make_alone(pickle.loads(pathlib.Path(path).read_bytes()), index, set())

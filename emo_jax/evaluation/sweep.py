"""Sweeps: the points of a sweep file, the commands that train and evaluate each, and their comparison."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from emo_jax import schema
from emo_jax.config import locate
from emo_jax.files import atomic_write, write_text
from emo_jax.tables import format_table
from emo_jax.training.stages import get_stage
from emo_jax.weights.presets import DEFAULT

FINISHED = "evaluation/report.json"
"""The last file that a point writes; it appears only once it is complete."""
_ROW = schema.fields({"property": schema.text(), "value": schema.number(-1e300, 1e300, nan=True)}, extra=True)
_RESULT = schema.fields({"rows": schema.array(_ROW)}, extra=True)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    Attributes:
        config: CONFIG, the config that the points vary.
        stages: STAGES, the stages that each point trains, in order.
        evaluate: EVALUATE, further arguments of `emo evaluate`.
        points: {name: {field: value}} from get_sweep().
    """

    config: str
    stages: tuple[str, ...]
    evaluate: tuple[str, ...]
    points: dict[str, dict]


def load_sweep(path: str | os.PathLike) -> Sweep:
    """Reads a sweep file.

    Raises:
        ValueError: the file does not exist, lacks a name, or yields a point twice.
    """
    path = locate(os.fspath(path), "sweeps")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader  # there is a loader for every .py file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in ("CONFIG", "STAGES", "get_sweep") if not hasattr(module, name)]
    if missing:
        raise ValueError(f"{path} has no {missing[0]}; expected CONFIG, STAGES and get_sweep(), see configs/sweeps/")
    points = list(module.get_sweep())
    names = [name for name, _ in points]
    for name in names:
        if names.count(name) > 1 or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{path} has a point {name!r}; expected names of folders, each once")
    return Sweep(module.CONFIG, tuple(module.STAGES), tuple(getattr(module, "EVALUATE", ())), dict(points))


def plan(
    sweep: Sweep, name: str, folder: Path, init_from: str = "", checkpoint: str = DEFAULT, common: Sequence[str] = ()
) -> list[tuple[list[str], Path | None]]:
    """Returns the commands of a point, each with the checkpoint that it ends with (None for the evaluation).

    Args:
        sweep: the sweep.
        name: the point.
        folder: the point's folder.
        init_from: the run or weights that the first stage starts from, or "".
        checkpoint: the weights to evaluate if the sweep trains nothing.
        common: arguments `--config.key=value` for every stage.

    Raises:
        ValueError: an override that the config does not take, parts that do not fit together, or a first stage without
            weights to start from.
    """
    overrides, steps, previous = sweep.points[name], [], init_from
    changes = [f"--config.{field}={value}" for field, value in overrides.items()]
    for field in overrides:
        if any(text.startswith(f"--config.{field}=") for text in common):
            raise ValueError(f"point {name} sets {field} itself; leave --config.{field} out")
    for stage in sweep.stages:
        arguments = [f"--config={sweep.config}:{stage}", *changes, *common]
        config, workdir = resolve(arguments, name), folder / stage
        before = get_stage(config.train.stage).after
        # emo train would only warn and start from fresh parameters.
        if before and not (previous or config.train.init_from):
            raise ValueError(f"stage {stage} comes first and starts from stage {before}; give its run as --init-from")
        command = ["train", *arguments, f"--workdir={workdir}"]
        command += [f"--config.train.init_from={previous}"] if previous else []
        steps.append((command, workdir / "checkpoints" / str(config.train.steps)))
        previous = workdir
    command = ["evaluate", "--checkpoint", str(previous if sweep.stages else checkpoint)]
    command += ["--output", str(folder / "evaluation"), *sweep.evaluate]
    if not sweep.stages:
        command += _sampling(sweep, name, common)
    return [*steps, (command, None)]


def resolve(arguments: list[str], name: str):
    """Parses the arguments of `emo train` and checks the config as training and sampling do before compiling.

    Raises:
        ValueError: the config is inconsistent; the message names the point.
    """
    import jax

    from emo_jax import config as config_lib
    from emo_jax.models.emo import build

    try:
        config = config_lib.parse(arguments)
        build(config)
        # Traced only: an array would occupy the accelerator, which the commands need.
        jax.eval_shape(lambda: _check_sampling(config))
    except ValueError as error:
        raise ValueError(f"point {name}: {error}") from error
    return config


def _check_sampling(config):
    from emo_jax.diffusion.schedule import make_schedule, timesteps
    from emo_jax.diffusion.solvers import make_solver

    schedule = make_schedule(config.diffusion)
    timesteps(schedule, config.sampling.steps, schedule.spacing)
    make_solver(config.sampling.solver, schedule, config.sampling.eta)


def _sampling(sweep, name, common):
    """Returns the overrides of a point that trains nothing, as arguments of `emo evaluate`."""
    fields = sweep.points[name]
    other = [field for field in fields if not field.startswith("sampling.")] + list(common)
    if other:
        raise ValueError(f"point {name}: {other[0]} needs training, but STAGES is empty; only sampling.* may be set")
    resolve([f"--config={sweep.config}", *(f"--config.{field}={value}" for field, value in fields.items())], name)
    return [f"--{field}={value}" for field, value in fields.items()]


def select_points(sweep: Sweep, names: list[str] | None) -> list[str]:
    """Returns the names of the points to run, by default all.

    Raises:
        ValueError: a name that the sweep does not have.
    """
    unknown = [name for name in names or () if name not in sweep.points]
    if unknown:
        raise ValueError(f"--points names {unknown[0]!r}; expected some of {', '.join(sweep.points)}")
    return names or list(sweep.points)


def _claim(folder, sweep, steps):
    """Writes a point's settings to its folder, or checks them against the settings already there.

    Raises:
        ValueError: the folder was started with other settings.
    """
    settings = {"overrides": sweep.points[folder.name], "commands": [shlex.join(command) for command, _ in steps]}
    settings = json.loads(json.dumps(settings))
    file = folder / "point.json"
    if file.exists():
        if schema.read_json(file, schema.anything()) != settings:
            raise ValueError(
                f"{folder} was started with other settings ({file}); choose another --output, or delete it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings, indent=1) + "\n")


def format_plans(plans: dict[str, list], output: Path) -> str:
    """Returns the commands of each point as lines of a shell script.

    Args:
        plans: the commands of each point, as `plan` returns them.
        output: the folder of the points, by which finished ones are marked.
    """
    lines = []
    for name, steps in plans.items():
        lines.append(f"# {name}{', finished' if (output / name / FINISHED).exists() else ''}")
        lines += [shlex.join(["emo", *command]) for command, _ in steps]
    return "\n".join(lines)


def run_points(sweep: Sweep, output: Path, plans: dict[str, list]) -> int:
    """Runs points one after the other, compares those that are finished, and prints the table.

    Args:
        sweep: the sweep.
        output: the folder of the points.
        plans: the commands of each point, as `plan` returns them.

    Returns:
        The exit status: 0, that of the failed points, or 1 if theirs differ.
    """
    failed = {}
    for count, (name, steps) in enumerate(plans.items(), 1):
        _claim(output / name, sweep, steps)
        status = _run_point(output / name, f"point {count}/{len(plans)} {name}", steps)
        if status in (130, 143):  # A signal ended the command; it is meant for the sweep as well.
            return status
        if status:
            failed[name] = status
    print(compare(sweep, output))
    if not failed:
        return 0
    print(f"emo sweep: failed: {', '.join(failed)}; the same command runs them again", file=sys.stderr)
    statuses = set(failed.values())
    return statuses.pop() if len(statuses) == 1 else 1


def _run_point(folder, title, steps):
    """Runs the commands that are not finished yet; returns the status of the first one that fails, else 0."""
    if (folder / FINISHED).exists():
        print(f"{title}: finished", flush=True)
        return 0
    for command, checkpoint in steps:
        if checkpoint is not None and _is_done(checkpoint):
            continue
        print(f"{title}: emo {shlex.join(command)}", flush=True)
        status = _run([sys.executable, "-m", "emo_jax.cli", *command])
        if status:
            return status
    return 0


def _is_done(checkpoint):
    """Returns whether a stage's last checkpoint is complete. A damaged one is reported and moved away."""
    if not checkpoint.exists():
        return False
    from emo_jax.weights.checkpoint import put_aside
    from emo_jax.weights.integrity import Damaged
    from emo_jax.weights.runs import check_checkpoint

    try:
        check_checkpoint(checkpoint)
    except Damaged as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
        put_aside(checkpoint)
        return False
    return True


def _run(command):
    """Runs a command and returns its exit status as a shell does. It is terminated when this process is."""
    process = None
    try:
        with _signals_held():  # One that came inside Popen would leave a started command that nobody ends.
            process = subprocess.Popen(command)
        status = process.wait()
        return status if status >= 0 else 128 - status
    except BaseException:
        if process is not None:
            process.terminate()
            process.wait()
        raise


@contextlib.contextmanager
def _signals_held():
    """Calls the handlers of SIGTERM and SIGINT after the block if one arrives in it.

    Ignored signals stay ignored, also in commands that are started in the block. Outside the main thread, which is the
    only one that runs handlers, it has no effect.
    """
    arrived, handlers = [], {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: h for n in (signal.SIGTERM, signal.SIGINT) if callable(h := signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)


def compare(sweep: Sweep, output: Path) -> str:
    """Writes sweep.csv and sweep.png for the points finished so far, and returns the table as text."""
    from emo_jax.evaluation.chart import save_bars

    found = {}
    for name in sweep.points:
        if (output / name / FINISHED).exists():
            rows = schema.read_json(output / name / FINISHED, _RESULT)["rows"]
            found[name] = {row["property"]: row["value"] for row in rows}
    measures = list(dict.fromkeys(measure for values in found.values() for measure in values))
    fields = list(dict.fromkeys(field for overrides in sweep.points.values() for field in overrides))
    lines = [["point", *fields, *measures]]
    for name, values in found.items():
        lines.append([name, *(str(sweep.points[name].get(field, "")) for field in fields),
                      *(f"{values[m]:.4f}" if m in values else "" for m in measures)])  # fmt: skip
    with atomic_write(output / "sweep.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    if found:
        save_bars(output / "sweep.png", {m: {name: values.get(m) for name, values in found.items()} for m in measures})
    return f"{format_table(lines)}\n{output}/sweep.csv, sweep.png"

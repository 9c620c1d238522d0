"""Reads changed inputs of every kind in subprocesses with limits, and keeps those that end in anything but one line.

A changed input fails if its process crashes or exceeds the limit of time or memory, if an error is none that the
command line prints as one line, or if the result is broken: not finite, empty, or of another shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emo_jax.benchmarks.fuzz_inputs import KINDS, make_inputs
from emo_jax.benchmarks.fuzz_mutations import mutate_file
from emo_jax.benchmarks.fuzz_worker import FAILED
from emo_jax.progress import Progress

START_SECONDS = 600
"""Seconds in which a process must have read the valid inputs; weights compile their programs there."""
_ROUND = {"config": 2, "weights": 2}
"""Mutants of a kind in a round of all kinds, 16 for the others: these two take a hundred times as long."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one changed input.

    Attributes:
        seconds: time to read it.
        gigabytes: memory beyond what its process uses for valid inputs.
    """

    seconds: float = 60.0
    gigabytes: float = 2.0


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A changed input.

    Attributes:
        number: its number in the sequence that the seed defines.
        kind: one of `fuzz_inputs.KINDS`.
        path: the file or folder.
    """

    number: int
    kind: str
    path: Path


def kind_of(number: int, kinds: tuple[str, ...] = KINDS) -> str:
    """Returns the kind of a mutant by its number."""
    turns = [kind for kind in kinds for _ in range(_ROUND.get(kind, 16))]
    return turns[number % len(turns)]


def make_mutant(inputs: dict[str, list[Path]], seed: int, number: int, kind: str, folder: Path) -> Mutant:
    """Writes the mutant of a number: it depends on the seed, the number and the kind only.

    Args:
        inputs: valid inputs of each kind.
        seed: seed of the sequence.
        number: the number.
        kind: its kind.
        folder: where to write it.
    """
    rng = np.random.default_rng([seed, number, KINDS.index(kind)])
    source = inputs[kind][rng.integers(len(inputs[kind]))]
    path = folder / f"{number:06d}-{kind}-{source.name}"
    if source.is_dir():
        shutil.copytree(source, path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        shutil.copyfile(source, path)
        files = [path]
    donors = [file.read_bytes() for file in inputs[kind] if file.is_file()]
    mutate_file(files[rng.integers(len(files))], rng, donors)
    return Mutant(number, kind, path)


class Worker:
    """A process that reads inputs of one kind; it is started again after it has died."""

    def __init__(self, kind: str, valid: list[Path], limits: Limits, log: Path):
        """Keeps what the process needs; see `Limits`. Its stderr is written to the file `log`."""
        self._kind, self._valid, self._limits, self._log = kind, valid, limits, log
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def read(self, path: Path) -> tuple[str, str]:
        """Returns the outcome of an input, one of `fuzz_worker`'s, and the reason."""
        self.wait()
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer(self._limits.seconds)
        return answer or (FAILED, self._end(f"no answer in {self._limits.seconds:g} s"))

    def close(self) -> int:
        """Ends the process, and returns its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written when the process died
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
        return status

    def start(self) -> None:
        """Starts the process, which reads the valid inputs."""
        command = [sys.executable, "-m", "emo_jax.benchmarks.fuzz_worker", self._kind, str(self._limits.gigabytes)]
        # The search path of this process, because the installed package may be another one.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *map(str, self._valid)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
            )  # fmt: skip
        self._ready = False

    def wait(self) -> None:
        """Waits until the process has read the valid inputs.

        Raises:
            RuntimeError: they cannot be read.
        """
        if self._process is None:
            self.start()
        if not self._ready and self._answer(START_SECONDS) is None:
            raise RuntimeError(f"valid inputs of kind {self._kind} cannot be read: {self._end('no answer')}")
        self._ready = True

    def _answer(self, seconds: float) -> tuple[str, str] | None:
        """Returns the next answer, or None if the process has died or does not answer in time."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        line = self._process.stdout.readline()
        return tuple(json.loads(line)) if line.endswith(b"\n") else None

    def _end(self, reason: str) -> str:
        """Ends the process and returns how it ended, with the last lines that it printed."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        status = self.close()
        if status != -signal.SIGKILL:
            reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return "\n".join([reason, *self._log.read_text(errors="replace").splitlines()[-20:]])


def run(
    seconds: float, seed: int, kept: Path, kinds: tuple[str, ...] = KINDS, only: int | None = None,
    limits: Limits | None = None,
) -> list[dict]:  # fmt: skip
    """Reads mutants for a time, or a single one.

    Args:
        seconds: time for reading mutants; making the valid inputs is not counted.
        seed: seed of the sequence of mutants.
        kept: folder to which failing mutants are copied.
        kinds: the kinds to read.
        only: number of the single mutant to read.
        limits: limits of each mutant.

    Returns:
        A row per kind: its mutants and how many were rejected, accepted and failed.
    """
    rows: dict[str, dict[str, Any]] = {
        kind: dict(kind=kind, mutants=0, rejected=0, accepted=0, failed=0, seconds=0.0) for kind in kinds
    }
    with tempfile.TemporaryDirectory(prefix="emo-fuzz-") as name:
        folder = Path(name)
        print("fuzz: makes the valid inputs", file=sys.stderr, flush=True)
        inputs = make_inputs(folder / "valid")
        workers = {kind: Worker(kind, inputs[kind], limits or Limits(), folder / f"{kind}.log") for kind in kinds}
        (folder / "mutants").mkdir()
        try:
            for worker in workers.values():
                worker.start()
            for kind, worker in workers.items():
                print(f"fuzz: reads the valid inputs of kind {kind}", file=sys.stderr, flush=True)
                worker.wait()
            with Progress(seconds, "fuzz", "second") as progress:
                for number, kind in _numbers(seconds, kinds, only, progress):
                    mutant = make_mutant(inputs, seed, number, kind, folder / "mutants")
                    started = time.monotonic()
                    state, reason = workers[kind].read(mutant.path)
                    row = rows[kind]
                    row["mutants"] += 1
                    row[state] += 1
                    row["seconds"] += time.monotonic() - started
                    if state == FAILED:
                        progress.say(_keep(mutant, reason, seed, kept, kinds))
                    _remove(mutant.path)
        finally:
            for worker in workers.values():
                worker.close()
    return list(rows.values())


def _numbers(seconds: float, kinds: tuple[str, ...], only: int | None, progress: Progress) -> Iterator[tuple[int, str]]:
    """Yields number and kind of the mutants until the time is over."""
    if only is not None:
        yield only, kind_of(only, kinds)
        return
    started, shown, number = time.monotonic(), 0.0, 0
    while shown < seconds:
        yield number, kind_of(number, kinds)
        number += 1
        passed = min(time.monotonic() - started, seconds)
        progress.add(passed - shown)
        shown = passed


def _keep(mutant: Mutant, reason: str, seed: int, kept: Path, kinds: tuple[str, ...]) -> str:
    """Copies a failing mutant, and returns what it is and how it is made again."""
    kept.mkdir(parents=True, exist_ok=True)
    target = kept / f"{seed}-{mutant.path.name}"
    _remove(target)
    (shutil.copytree if mutant.path.is_dir() else shutil.copyfile)(mutant.path, target)
    target.with_name(f"{target.name}.txt").write_text(reason + "\n")
    line = next((line for line in reversed(reason.splitlines()) if line.strip()), "")
    first = reason.splitlines()[0] if not reason.startswith("Traceback") else line
    selected = "" if kinds == KINDS else "".join(f" --kind {kind}" for kind in kinds)
    return f"FAILED {target}: {first}; again: emo bench fuzz --seed {seed} --mutant {mutant.number}{selected}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

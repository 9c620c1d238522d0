"""Checkpoints of training: orbax saves the state, the position in the data and the config together."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from emo_jax.distributed import processes
from emo_jax.weights.integrity import Damaged, check_files, write_manifest
from emo_jax.weights.runs import READ_ERRORS, VALIDATION, folder_of, read_scores


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/STEP/{state,data,config}`, some with `validation`.

    Saving is asynchronous and atomic: a killed run leaves complete checkpoints, and temporary folders that the next run
    removes. Each checkpoint holds checksums of its files (`weights/integrity.py`).

    Args:
        workdir: the folder of the run.
        keep: number of newest checkpoints to keep.
        keep_every: keep the checkpoints of all multiples of this step as well; 0 for none.
        keep_best: keep the checkpoint with the lowest score as well.
        measure: what the score measures, such as "loss"; scores of other measures in the folder are ignored.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep: int = 3,
        keep_every: int = 0,
        keep_best: bool = False,
        measure: str = "loss",
    ) -> None:
        policies = ocp.checkpoint_managers
        kept: list[Any] = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        self._keeps_best, self._measure = keep_best, measure
        kept += [_BestKept(self)] if keep_best else []
        self._manager = ocp.CheckpointManager(
            folder_of(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )

        steps = self._manager.all_steps()
        scores = read_scores(self._manager.directory, steps)
        self._scores = {step: score for step, (name, score) in scores.items() if name == measure}

    @property
    def latest(self) -> int | None:
        """The newest saved step, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, score) of the checkpoint with the lowest score; None if no checkpoint has one."""
        saved = {step: score for step, score in self._scores.items() if step in self._manager.all_steps()}
        return min(saved.items(), key=lambda item: item[1]) if saved else None

    def improves(self, score: float | None) -> bool:
        """Returns whether the best checkpoint is kept, and a score is below that of all checkpoints."""
        if score is None or not self._keeps_best or not math.isfinite(score):
            return False
        return self.best is None or score < self.best[1]

    def path(self, step: int) -> epath.Path:
        """Returns the folder of a checkpoint."""
        return self._manager.directory / str(step)

    def save(self, step: int, state: Any, iterator: Any, config: ConfigDict, score: float | None = None) -> None:
        """Starts to save a checkpoint.

        Args:
            step: the number of the checkpoint.
            state: the training state.
            iterator: the data iterator, whose place is saved.
            config: the config.
            score: its value of the measure, of which lower ones are better; None: it was not measured.

        Raises:
            OSError: this or the previous checkpoint could not be written; earlier ones are kept.
            JaxRuntimeError: the step failed, or another process is gone.
        """
        items: dict[str, Any] = {}
        if score is not None and math.isfinite(score):
            items[VALIDATION] = ocp.args.JsonSave({self._measure: score})
            self._scores[step] = score
        arguments = ocp.args.Composite(
            **items,
            state=ocp.args.StandardSave(state._asdict() if hasattr(state, "_asdict") else vars(state)),
            data=grain.checkpoint.CheckpointSave(iterator),
            config=ocp.args.JsonSave(json.loads(config.to_json_best_effort())),
        )
        with self._writing():
            self._manager.save(step, args=arguments)

    def check(self) -> None:
        """Raises as `save` does if the last save has failed, without waiting for one that is in progress."""
        if not self._manager.is_saving_in_progress():
            with self._writing():
                self._manager.wait_until_finished()

    def _write_manifest(self) -> None:
        """Writes checksums to a checkpoint that is about to get its final name."""
        for folder in self._manager.directory.iterdir() if processes.is_main() else ():
            if ocp.utils.is_tmp_checkpoint(folder):  # by its name, or in a bucket by a missing commit file
                write_manifest(folder)

    def restore_newest(self, shapes: Any, iterator: Any) -> Any:
        """Restores the newest checkpoint that can be read, as `restore` does.

        Prints a warning for each newer one, and moves it to workdir/damaged-STEP.

        Raises:
            ValueError: no checkpoint can be read, or one has other parameters than `shapes`.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, shapes, iterator)
            except Damaged as error:
                damaged.append(step)
                if processes.is_main():
                    print(f"warning: {error}", file=sys.stderr, flush=True)
                continue
            self._put_aside(damaged)
            return state
        raise ValueError(
            f"no checkpoint in {self._manager.directory} can be read; copy one back, or train in another --workdir"
        )

    def _put_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints away, so that their steps can be saved again."""
        if not steps:
            return
        for step in steps if processes.is_main() else ():
            put_aside(self._manager.directory / str(step))
        processes.max_over_processes(0)  # waits for the main process
        self._manager.reload()

    def restore(self, step: int, shapes: Any, iterator: Any) -> Any:
        """Restores a checkpoint, and moves the data iterator to its place.

        The processes and devices may differ from those that saved it. If one process cannot read its part, all raise.

        Args:
            step: the checkpoint.
            shapes: the state as ShapeDtypeStructs with shardings, as which the arrays are placed.
            iterator: the data iterator.

        Returns:
            The state.

        Raises:
            Damaged: the checkpoint cannot be read.
            ValueError: it has other parameters than `shapes`.
        """
        self._manager.wait_until_finished()
        error, folder = None, self._manager.directory / str(step)
        try:
            state, place = _read_state(folder, shapes), _read_place(folder, iterator)
        except ValueError as caught:
            error = caught
        kinds = (None, ValueError, Damaged)
        worst = kinds[processes.max_over_processes(0 if error is None else 2 if isinstance(error, Damaged) else 1)]
        if worst is not None:
            raise error if isinstance(error, worst) else worst(f"{folder} cannot be read by another process")
        iterator.set_state(place)
        iterator.start_prefetch()
        return shapes.replace(**state)

    def close(self) -> None:
        """Waits for the save in progress; raises as `save` does."""
        with self._writing(), contextlib.closing(self._manager) as manager:
            manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # from the file system, tensorstore or its threads
            for lost in (error, error.__cause__):  # a step that failed, or another process that is gone
                if isinstance(lost, jax.errors.JaxRuntimeError):
                    raise lost from None  # pyright: ignore[reportGeneralTypeIssues]
            raise OSError(
                f"a checkpoint could not be written to {self._manager.directory}; the newest complete one is of step "
                f"{self.latest}; make room and give the same command again ({' '.join(str(error).split())[:300]})"
            ) from error


class _BestKept(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the lowest score."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Returns whether to keep each of the checkpoints, as orbax asks."""
        best = self._checkpoints.best
        return [best is not None and info.step == best[0] for info in checkpoints]


def put_aside(folder: str | os.PathLike) -> None:
    """Moves a damaged checkpoint, workdir/checkpoints/STEP, to workdir/damaged-STEP, and prints a warning."""
    folder = epath.Path(folder)
    target = folder.parent.parent / f"damaged-{folder.name}"
    target.rmtree(missing_ok=True)
    folder.rename(target)
    print(f"warning: step {folder.name} is now in {target}", file=sys.stderr, flush=True)


def _read_state(folder: epath.Path, shapes: Any) -> dict[str, Any]:
    """Returns the fields of the state; raises as Checkpoints.restore does."""
    check_files(folder, contents=processes.is_main())  # One process computes the checksums; all raise with it.
    _check_shapes(folder, shapes)
    try:
        # By its handler: the manager's restore would have the other processes wait for one that cannot read.
        return ocp.StandardCheckpointHandler().restore(folder / "state", args=ocp.args.StandardRestore(vars(shapes)))
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        if not _readable(folder):
            raise Damaged(f"{folder} is damaged ({reason})") from error
        raise ValueError(f"{folder} does not fit this config (another model or optimizer?): {reason}") from error


def _readable(folder: epath.Path) -> bool:
    """Returns whether all arrays can be read with their own shapes."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        tree = handler.metadata(folder / "state").tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        handler.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=plain))
    except READ_ERRORS:
        return False
    return True


def _read_place(folder: epath.Path, iterator: Any) -> Any:
    """Returns the state of the data iterator. All processes are at the same place, so any file serves all."""
    try:
        text = min((folder / "data").glob("process_*-of-*.json")).read_text()
        return json.loads(text) if isinstance(iterator, grain.DatasetIterator) else text.encode()
    except (ValueError, OSError) as error:
        raise Damaged(f"{folder}/data is damaged ({' '.join(str(error).split())[:200]})") from error


def _check_shapes(folder: epath.Path, shapes: Any) -> None:
    """Compares the shapes of a checkpoint's arrays with the expected ones, before any array is read."""
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
    except READ_ERRORS as error:
        raise Damaged(f"{folder}/state is damaged ({' '.join(str(error).split())[:200]})") from error
    for name in ("trained", "frozen", "ema"):
        saved = {path: tuple(leaf.shape) for path, leaf in metadata.get(name, {}).items()}
        expected = {path: tuple(leaf.shape) for path, leaf in getattr(shapes, name).items()}
        differing = sorted(path for path in {**saved, **expected} if saved.get(path) != expected.get(path))
        if differing:
            path, more = differing[0], len(differing) - 1
            raise ValueError(
                f"{folder} does not fit this config: {path} has shape {saved.get(path)} there, {expected.get(path)} "
                f"here (and {more} more differ); train in another --workdir, or with the config of that run"
            )

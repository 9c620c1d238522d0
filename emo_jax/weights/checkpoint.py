"""Checkpoints: orbax saves the state, the data iterator and the resolved config together."""

import contextlib
import json
import sys

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from emo_jax.distributed import processes
from emo_jax.weights.runs import _READ_ERRORS, _SIZES, Damaged, _check_sizes, _sizes, folder_of


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/STEP/{state,data,config}`.

    Saving is asynchronous and atomic: a killed run leaves whole checkpoints only, and parts that the next one removes.

    Args:
        keep: how many of the newest stay. keep_every: of which steps the multiples stay too; 0: of none.
    """

    def __init__(self, workdir, keep=3, keep_every=0):
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        self._manager = ocp.CheckpointManager(
            folder_of(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._note_sizes),
            ),
        )

    @property
    def latest(self):
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step, state, iterator, config):
        """Saves the state, the place in the data and the config under `step`.

        Raises:
            OSError: this or the checkpoint before could not be written; those that were there still are.
            JaxRuntimeError: the step failed, or another process is gone.
        """
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict() if hasattr(state, "_asdict") else vars(state)),
            data=grain.checkpoint.CheckpointSave(iterator),
            config=ocp.args.JsonSave(json.loads(config.to_json_best_effort())),
        )
        with self._writing():
            self._manager.save(step, args=arguments)

    def check(self):
        """Raises as `save` does, once the last save has ended; does not wait for it. To be called between saves."""
        if not self._manager.is_saving_in_progress():
            with self._writing():
                self._manager.wait_until_finished()

    def _note_sizes(self):
        """Puts the sizes of a checkpoint's files beside them, before it counts as whole: later losses then show."""
        for folder in self._manager.directory.iterdir() if processes.is_main() else ():
            if ocp.utils.is_tmp_checkpoint(folder):  # by its name, or in a bucket by a file that is still missing
                (folder / _SIZES).write_text(json.dumps(_sizes(folder)))

    def restore_newest(self, shapes, iterator):
        """As `restore`, of the newest step that can be read; newer ones are told, and moved to workdir/damaged-STEP."""
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

    def _put_aside(self, steps):
        """Or else the steps that follow could not be saved under their numbers."""
        if not steps:
            return
        for step in steps if processes.is_main() else ():
            put_aside(self._manager.directory / str(step))
        processes.max_over_processes(0)  # all wait for the first
        self._manager.reload()

    def restore(self, step, shapes, iterator):
        """The state at `step`, placed as `shapes` (ShapeDtypeStructs with shardings) say; moves the iterator there.

        The number of processes, and their devices, may be another than when it was saved. If one of the processes
        cannot read its part, all raise.

        Raises:
            Damaged: the checkpoint cannot be read.
            ValueError: it holds other parameters than `shapes`.
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

    def close(self):
        """Waits until what is being saved is saved; raises as `save` does."""
        with self._writing(), contextlib.closing(self._manager) as manager:
            manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # of the file system, of tensorstore, of its threads
            for lost in (error, error.__cause__):  # a step that failed, or another process that is gone
                if isinstance(lost, jax.errors.JaxRuntimeError):
                    raise lost from None
            raise OSError(
                f"a checkpoint could not be written to {self._manager.directory}; the newest whole one is of step "
                f"{self.latest}; make room and give the same command again ({' '.join(str(error).split())[:300]})"
            ) from error


def put_aside(folder):
    """Moves a damaged checkpoint, workdir/checkpoints/STEP, to workdir/damaged-STEP, and tells it."""
    folder = epath.Path(folder)
    target = folder.parent.parent / f"damaged-{folder.name}"
    target.rmtree(missing_ok=True)
    folder.rename(target)
    print(f"warning: step {folder.name} is now in {target}", file=sys.stderr, flush=True)


def _read_state(folder, shapes):
    """The state's dict; raises as Checkpoints.restore does."""
    _check_sizes(folder)
    _check_shapes(folder, shapes)
    try:
        # By its handler: the manager's restore would have the other processes wait for one that cannot read.
        return ocp.StandardCheckpointHandler().restore(folder / "state", args=ocp.args.StandardRestore(vars(shapes)))
    except _READ_ERRORS as error:
        told = " ".join(str(error).split())[:200]
        if not _readable(folder):
            raise Damaged(f"{folder} is damaged ({told})") from error
        raise ValueError(f"{folder} does not fit this config (another model or optimizer?): {told}") from error


def _readable(folder):
    """Whether all arrays can be read, as what they are."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        tree = handler.metadata(folder / "state").tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        handler.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=plain))
    except _READ_ERRORS:
        return False
    return True


def _read_place(folder, iterator):
    """The state of the data iterator. All processes are at the same place, so any one's file serves all."""
    try:
        text = min((folder / "data").glob("process_*-of-*.json")).read_text()
        return json.loads(text) if isinstance(iterator, grain.DatasetIterator) else text.encode()
    except (ValueError, OSError) as error:
        raise Damaged(f"{folder}/data is damaged ({' '.join(str(error).split())[:200]})") from error


def _check_shapes(folder, shapes):
    """Before anything is read, as `_check_sizes`."""
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
    except _READ_ERRORS as error:
        raise Damaged(f"{folder}/state is damaged ({' '.join(str(error).split())[:200]})") from error
    for name in ("trained", "frozen", "ema"):
        found = {path: tuple(leaf.shape) for path, leaf in metadata.get(name, {}).items()}
        wanted = {path: tuple(leaf.shape) for path, leaf in getattr(shapes, name).items()}
        odd = sorted(path for path in {**found, **wanted} if found.get(path) != wanted.get(path))
        if odd:
            raise ValueError(
                f"{folder} does not fit this config: {odd[0]} has shape {found.get(odd[0])} there, "
                f"{wanted.get(odd[0])} here (and {len(odd) - 1} more differ); train in another --workdir, or with the "
                "config of that run"
            )

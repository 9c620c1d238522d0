"""Checkpoints: orbax saves the state, the data iterator and the resolved config together."""

import json
import pathlib

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from emo_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run, `workdir/checkpoints/STEP/{state,data,config}`.

    Saving is asynchronous and atomic: a killed run leaves whole checkpoints only.
    """

    def __init__(self, workdir, keep=3):
        self._manager = ocp.CheckpointManager(
            pathlib.Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        )

    @property
    def latest(self):
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step, state, iterator, config):
        """Saves the state, the place in the data and the config under `step`."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict() if hasattr(state, "_asdict") else vars(state)),
            data=grain.checkpoint.CheckpointSave(iterator),
            config=ocp.args.JsonSave(json.loads(config.to_json_best_effort())),
        )
        self._manager.save(step, args=arguments)

    def restore(self, step, shapes, iterator):
        """The state at `step`, placed as `shapes` (ShapeDtypeStructs with shardings) say; moves the iterator there.

        Raises:
            ValueError: the checkpoint holds other parameters than `shapes`.
        """
        self._check_shapes(step, shapes)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(vars(shapes)), data=grain.checkpoint.CheckpointRestore(iterator)
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._manager.directory}/{step} does not fit this config (another model or optimizer?): "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        return TrainState(**restored["state"])

    def _check_shapes(self, step, shapes):
        """Before anything is read: a read that orbax gives up half-way leaves tasks that complain on stderr later."""
        self._manager.wait_until_finished()
        folder = self._manager.directory / str(step) / "state"
        try:
            metadata = ocp.PyTreeCheckpointHandler().metadata(folder).tree
        except OSError as error:
            raise ValueError(f"{folder} is damaged ({error}); delete that step to go on from an older one") from error
        for name in ("trained", "frozen", "ema"):
            found = {path: tuple(leaf.shape) for path, leaf in metadata.get(name, {}).items()}
            wanted = {path: tuple(leaf.shape) for path, leaf in getattr(shapes, name).items()}
            odd = sorted(path for path in {**found, **wanted} if found.get(path) != wanted.get(path))
            if odd:
                raise ValueError(
                    f"{self._manager.directory}/{step} does not fit this config: {odd[0]} has shape "
                    f"{found.get(odd[0])} there, {wanted.get(odd[0])} here (and {len(odd) - 1} more differ); train in "
                    "another --workdir, or with the config of that run"
                )

    def close(self):
        """Waits until what is being saved is saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_weights_as_run(workdir, config, flat):
    """Writes flat params {path: array} as a run of no steps, which `train.init_from` and `load_run` take."""
    with ocp.CheckpointManager(pathlib.Path(workdir).absolute() / "checkpoints") as manager:
        frozen = {path: a for path, a in flat.items() if path.startswith("vae/")}
        state = dict(frozen=frozen, ema={path: a for path, a in flat.items() if path not in frozen})
        state = {name: {path: np.asarray(a) for path, a in tree.items()} for name, tree in state.items()}
        config = ocp.args.JsonSave(json.loads(config.to_json_best_effort()))
        manager.save(0, args=ocp.args.Composite(state=ocp.args.StandardSave(state), config=config))


def load_run(workdir, step=None):
    """The config and averaged weights {path: array} of a run's checkpoint, the newest by default.

    Raises:
        ValueError: there is no checkpoint.
    """
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise ValueError(f"{workdir} holds no checkpoints; expected a --workdir of emo train")
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "data": grain.checkpoint.CheckpointHandler(),
    }
    with ocp.CheckpointManager(directory, item_names=tuple(handlers), item_handlers=handlers) as manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise ValueError(f"{directory} has no finished checkpoint{'' if step is None else f' {step}'}")
        metadata = manager.item_metadata(step)["state"].tree
        wanted = {
            name: {path: jax.ShapeDtypeStruct(m.shape, m.dtype) for path, m in metadata[name].items()}
            for name in ("frozen", "ema")
        }
        # numpy: the mesh that the run was trained on need not exist here
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        state_args = ocp.args.PyTreeRestore(wanted, restore_args=plain, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(state=state_args, config=ocp.args.JsonRestore()))
    state = restored["state"]
    return ConfigDict(restored["config"]), {**state["frozen"], **state["ema"]}

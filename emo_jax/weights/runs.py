"""Checkpoints: orbax saves the state, the data iterator and the resolved config together."""

import contextlib
import importlib
import itertools
import json
import math
import os
import pathlib
import sys
import uuid
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from emo_jax.distributed import processes

T = TypeVar("T")
_SIZES = "sizes.json"
_GROUP = 2**28  # bytes
_READ_ERRORS = (ValueError, KeyError, TypeError, OSError)


class Damaged(ValueError):
    """A checkpoint that cannot be read."""


def folder_of(workdir):
    """The epath.Path of a run's directory: absolute, or in a bucket, gs://BUCKET/PATH.

    Raises:
        ValueError: another scheme, which orbax does not write to, or a bucket whose library is missing.
    """
    text = os.fspath(workdir)
    if "://" not in text:
        return epath.Path(pathlib.Path(text).absolute())
    if not text.startswith("gs://"):
        raise ValueError(f"{text} cannot be opened; expected a folder, or gs://BUCKET/PATH")
    try:
        importlib.import_module("gcsfs")  # brings what TensorBoard's writer needs as well
    except ImportError as error:
        raise ValueError(f"{text} is in a bucket, whose library is missing: pip install gcsfs ({error})") from error
    return epath.Path(text)


def check_workdir(workdir):
    """Makes the directory of a run and writes to it once, so that what is wrong with it shows before anything is done.

    Raises:
        ValueError: it is a file, cannot be written, or is of a scheme that cannot be opened; one line.
    """
    folder = folder_of(workdir)
    probe = folder / f".probe-{uuid.uuid4().hex}"  # of each process its own
    try:
        is_file = folder.exists() and not folder.is_dir()
        if not is_file:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
    except Exception as error:  # OSError here; of a bucket its library's own kinds
        told = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise ValueError(f"--workdir {workdir} cannot be written ({told}); choose another folder") from error
    if is_file:
        raise ValueError(f"--workdir {workdir} is a file; give a folder")


def check_whole(folder):
    """Checks a checkpoint, workdir/checkpoints/STEP, as far as that goes without its arrays and without a device.

    Raises:
        Damaged: a file is missing or cut, or there is no checkpoint.
    """
    folder = epath.Path(folder)
    _check_sizes(folder)
    try:
        json.loads((folder / "state" / "_METADATA").read_text())  # orbax's own reader would begin JAX's devices
    except (ValueError, OSError) as error:
        raise Damaged(f"{folder}/state is damaged ({' '.join(str(error).split())[:200]})") from error


def _sizes(folder):
    """{path: bytes} of the files of a checkpoint's items; those beside the items are orbax's own, and may change."""
    files = [path for item in folder.iterdir() if item.is_dir() for path in _files(item)]
    return {str(path.relative_to(folder)): path.stat().length for path in files}


def _files(folder):
    """All files in a folder; epath's own `walk` forgets the scheme of a bucket."""
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def _check_sizes(folder):
    """Before anything is read: a read that orbax gives up half-way leaves tasks that complain on stderr later."""
    if not (folder / _SIZES).exists():
        return  # of an earlier version
    try:
        sizes = json.loads((folder / _SIZES).read_text())
    except (ValueError, OSError) as error:
        raise Damaged(f"{folder} is damaged ({_SIZES}: {' '.join(str(error).split())[:200]})") from error
    found = _sizes(folder)
    for path, size in sizes.items():
        if found.get(path) != size:
            told = f"has {found[path]} bytes of {size}" if path in found else "is missing"
            raise Damaged(f"{folder} is damaged ({path} {told})")


def save_weights_as_run(workdir, config, flat):
    """Writes flat params {path: array} as a run of no steps, which `train.init_from` and `load_run` take.

    The arrays are written where they lie, one file each: with orbax's defaults, a copy of all of them and the whole
    database that they go to would be held in memory as well.
    """
    frozen = {path: np.asarray(a) for path, a in flat.items() if path.startswith("vae/")}
    state = dict(frozen=frozen, ema={path: np.asarray(a) for path, a in flat.items() if path not in frozen})
    in_place = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=in_place),
        "config": ocp.JsonCheckpointHandler(),
    }
    directory = folder_of(workdir) / "checkpoints"
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with (
        _only_errors(),
        ocp.CheckpointManager(
            directory, options=options, item_names=tuple(handlers), item_handlers=handlers
        ) as manager,
    ):
        config = ocp.args.JsonSave(json.loads(config.to_json_best_effort()))
        manager.save(0, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), config=config))


@contextlib.contextmanager
def _only_errors():
    """Keeps orbax from warning that there is no database to merge."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_run(workdir: str | os.PathLike, step: int | None = None) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """Reads a run's config and averaged weights.

    Args:
        workdir: the folder of the run.
        step: the checkpoint to read; None: the newest one that can be read.

    Returns:
        (config, {path: array}).

    Raises:
        ValueError: there is no checkpoint, or none that can be read.
    """
    return _read_newest(workdir, step, lambda folder: (_read_config(folder), _read_arrays(folder / "state")))


def load_run_config(workdir: str | os.PathLike) -> ConfigDict:
    """Reads the config of a run's newest checkpoint that can be read. Raises as `load_run` does."""
    return _read_newest(workdir, None, _read_config)


def _read_newest(workdir: str | os.PathLike, step: int | None, read: Callable[[epath.Path], T]) -> T:
    directory = folder_of(workdir) / "checkpoints"
    if not directory.is_dir():
        raise ValueError(f"{workdir} holds no checkpoints; expected a --workdir of emo train")
    with ocp.CheckpointManager(directory) as manager:
        steps = [found for found in sorted(manager.all_steps(), reverse=True) if step in (None, found)]
    if not steps:
        raise ValueError(f"{directory} has no finished checkpoint{'' if step is None else f' {step}'}")
    damaged = []
    for found in steps:
        try:
            result = _read_checked(directory / str(found), read)
        except Damaged as error:
            damaged.append(str(error))
            continue
        if damaged and processes.is_main():
            print(f"warning: {_first_of(damaged)}; step {found} is read", file=sys.stderr, flush=True)
        return result
    raise ValueError(f"no checkpoint can be read: {_first_of(damaged)}; copy one back, or give another run")


def _first_of(messages):
    return messages[0] + (f" (and {len(messages) - 1} more)" if len(messages) > 1 else "")


def _read_config(folder: epath.Path) -> ConfigDict:
    return ConfigDict(ocp.JsonCheckpointHandler().restore(folder / "config", args=ocp.args.JsonRestore()))


def _read_checked(folder: epath.Path, read: Callable[[epath.Path], T]) -> T:
    """Returns read(folder) of a checkpoint; raises Damaged if it cannot be read."""
    check_whole(folder)
    try:
        return read(folder)
    except _READ_ERRORS as error:
        raise Damaged(f"{folder} is damaged ({' '.join(str(error).split())[:200]})") from error


def _read_arrays(folder: epath.Path, names: tuple[str, ...] = ("frozen", "ema")) -> dict[str, np.ndarray]:
    """Returns {path: array} of parts of a state, read in groups because orbax holds each array more than once."""
    handler, flat = ocp.PyTreeCheckpointHandler(), {}
    metadata = handler.metadata(folder).tree
    leaves = [(name, path, leaf) for name in names for path, leaf in metadata[name].items()]
    ends = np.cumsum([math.prod(leaf.shape) * leaf.dtype.itemsize for _, _, leaf in leaves])
    for _, group in itertools.groupby(zip(ends // _GROUP, leaves, strict=True), key=lambda pair: pair[0]):
        wanted = {}
        for _, (name, path, leaf) in group:
            wanted.setdefault(name, {})[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        # numpy: the mesh that the run was trained on need not exist here
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        found = handler.restore(folder, args=ocp.args.PyTreeRestore(wanted, restore_args=plain, partial_restore=True))
        for part in found.values():
            flat |= part
    return flat

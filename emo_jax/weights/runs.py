"""Runs of `emo train`: the folder of a run, and its averaged weights.

`weights/checkpoint.py` writes a run's checkpoints, `workdir/checkpoints/STEP/{state,data,config}`. `emo convert`
writes a checkpoint without a place in the data, as a run of no steps.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
import os
import pathlib
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from emo_jax.distributed import processes
from emo_jax.models import lora
from emo_jax.models.config_schema import config_from_fields
from emo_jax.models.parts import is_of_teacher
from emo_jax.weights.integrity import Damaged, check_files, write_manifest

T = TypeVar("T")
READ_ERRORS = (ValueError, KeyError, TypeError, OSError, AttributeError, AssertionError, IndexError)
"""What orbax and tensorstore raise for damaged files."""
VALIDATION = "validation"
"""The item of a checkpoint that holds its score: {name of the measure: value}, of which lower values are better."""
_GROUP = 2**28
"""Bytes of arrays that are read at a time."""


def folder_of(workdir: str | os.PathLike) -> epath.Path:
    """Returns the absolute path of a run's folder, on this machine or in a bucket (gs://BUCKET/PATH).

    Raises:
        ValueError: another scheme, which orbax does not support, or a bucket without the library for it.
    """
    text = os.fspath(workdir)
    if "://" not in text:
        return epath.Path(pathlib.Path(text).absolute())
    if not text.startswith("gs://"):
        raise ValueError(f"{text} cannot be opened; expected a folder, or gs://BUCKET/PATH")
    try:
        importlib.import_module("gcsfs")  # also brings what TensorBoard's writer needs
    except ImportError as error:
        raise ValueError(f"{text} is in a bucket, whose library is missing: pip install gcsfs ({error})") from error
    return epath.Path(text)


def check_workdir(workdir: str | os.PathLike) -> None:
    """Creates the folder of a run and writes a file to it, so that a bad folder is an error before any work.

    Raises:
        ValueError: it is a file, cannot be written, or has an unsupported scheme.
    """
    folder = folder_of(workdir)
    probe = folder / f".probe-{uuid.uuid4().hex}"  # a different name in each process
    try:
        is_file = folder.exists() and not folder.is_dir()
        if not is_file:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
    except Exception as error:  # OSError, or an error of the bucket's library
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise ValueError(f"--workdir {workdir} cannot be written ({reason}); choose another folder") from error
    if is_file:
        raise ValueError(f"--workdir {workdir} is a file; give a folder")


def check_checkpoint(folder: str | os.PathLike, contents: bool = True) -> None:
    """Checks a checkpoint, workdir/checkpoints/STEP, without reading its arrays and without a device.

    Args:
        folder: the checkpoint.
        contents: whether to compute the checksums of its files, or to check their sizes only.

    Raises:
        Damaged: there is no checkpoint, or a file is missing, cut or changed.
    """
    folder = epath.Path(folder)
    check_files(folder, contents)
    try:
        json.loads((folder / "state" / "_METADATA").read_text())  # orbax's reader would initialise JAX's devices
    except (ValueError, OSError) as error:
        raise Damaged(f"{folder}/state is damaged ({' '.join(str(error).split())[:200]})") from error


def save_weights_as_run(workdir: str | os.PathLike, config: ConfigDict, flat: dict[str, Any]) -> None:
    """Writes params as a run of no steps, which `train.init_from` and `load_run` accept.

    Each array is written to a file, without a copy: with orbax's defaults, memory would also hold a copy of all arrays
    and the database that they are written to.

    Args:
        workdir: the folder of the run.
        config: the config of the networks.
        flat: the params {path: array}.
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
        fields = ocp.args.JsonSave(json.loads(config.to_json_best_effort()))
        manager.save(0, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), config=fields))
    write_manifest(directory / "0")


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Suppresses orbax's warning that there is no database to merge."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def read_scores(directory: epath.Path, steps: Iterable[int]) -> dict[int, tuple[str, float]]:
    """Returns {step: (measure, value)} of the checkpoints workdir/checkpoints/STEP that have a score."""
    scores = {}
    for step in steps:
        with contextlib.suppress(*READ_ERRORS):  # most have none
            [item] = json.loads((directory / str(step) / VALIDATION / "metadata").read_text()).items()
            scores[step] = str(item[0]), float(item[1])
    return scores


def best_step(workdir: str | os.PathLike) -> int:
    """Returns the step of the best checkpoint, by the measure (`train.validation.best_by`) of the newest with a score.

    Raises:
        ValueError: no checkpoint has a score.
    """
    directory = folder_of(workdir) / "checkpoints"
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    scores = read_scores(directory, steps)
    if not scores:
        raise ValueError(f"{directory} has no checkpoint with a validation loss; give a step, or train.validation")
    measure = scores[max(scores)][0]
    return min((step for step in scores if scores[step][0] == measure), key=lambda step: scores[step][1])


def load_run(
    workdir: str | os.PathLike, step: int | None = None, merged: bool = True
) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """Reads a run's config and averaged weights.

    Args:
        workdir: the folder of the run.
        step: the checkpoint to read; None: the newest one that can be read.
        merged: whether to return all parameters, adapters merged, or only the trained ones, with adapters apart.

    Returns:
        (config, {path: array}), without the teacher of stage distill.

    Raises:
        ValueError: there is no checkpoint, or none that can be read.
    """
    names = ("frozen", "ema") if merged else ("ema",)
    config, flat = _read_newest(workdir, step, lambda path: (_read_config(path), _read_arrays(path / "state", names)))
    return config, lora.merge(flat, precise=True) if merged else flat


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


def _first_of(messages: list[str]) -> str:
    return messages[0] + (f" (and {len(messages) - 1} more)" if len(messages) > 1 else "")


def _read_config(folder: epath.Path) -> ConfigDict:
    fields = ocp.JsonCheckpointHandler().restore(folder / "config", args=ocp.args.JsonRestore())
    return config_from_fields(fields, "config")


def _read_checked(folder: epath.Path, read: Callable[[epath.Path], T]) -> T:
    """Returns read(folder) of a checkpoint; raises Damaged if it cannot be read."""
    check_checkpoint(folder)
    try:
        return read(folder)
    except READ_ERRORS as error:
        raise Damaged(f"{folder} is damaged ({' '.join(str(error).split())[:200]})") from error


def _read_arrays(folder: epath.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns {path: array} of parts of a state, read in groups because orbax holds each array more than once."""
    handler, flat = ocp.PyTreeCheckpointHandler(), {}
    metadata = handler.metadata(folder).tree
    leaves = [(n, path, leaf) for n in names for path, leaf in metadata[n].items() if not is_of_teacher(path)]
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

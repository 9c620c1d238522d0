"""The parameters that a training run starts from, and the teacher of stage distill."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from emo_jax.distributed import processes
from emo_jax.models.emo import EMO
from emo_jax.models.parts import part_of
from emo_jax.training.distillation import teacher_of
from emo_jax.training.stages import get_stage, stages_before
from emo_jax.weights.store import adopt, load_weights, nest


def initial_params(config: ConfigDict, emo: EMO) -> dict[str, Any]:
    """Returns the params tree of step 0: freshly initialised, with the weights of `train.init_from` in place.

    Parts that earlier stages train must be present in `train.init_from`. Other parts may differ or be missing there,
    as in an ablation; they are initialised freshly, with a warning. The teacher of stage distill, a branch of the tree,
    is `train.distill.teacher` or `train.init_from`, and the other one of them if one is missing.

    Args:
        config: the full config.
        emo: the networks that it describes.

    Raises:
        ValueError: `train.init_from` cannot be read or lacks what earlier stages train, or there is no teacher that
            fits.
    """
    stage, origin, key = config.train.stage, config.train.init_from, jax.random.key(config.train.seed)
    distills = get_stage(stage).distills
    if distills:
        origin = origin or config.train.distill.teacher
        if not origin:
            raise ValueError("stage distill has no teacher; give a run or weights as --config.train.init_from")
    earlier = stages_before(stage)
    if not origin:
        if earlier:
            _warn(
                f"stage {stage} starts from random weights; it is meant to start from stage {earlier[-1]} "
                "(--config.train.init_from=RUN)"
            )
        return emo.init(key)
    origin_config, weights = load_weights(origin)
    if earlier and earlier[-1] not in (origin_config.train.stage, *stages_before(origin_config.train.stage)):
        _warn(
            f"stage {stage} is meant to start from stage {earlier[-1]}, but {origin} holds stage "
            f"{origin_config.train.stage}"
        )
    required = [part for name in earlier for part in get_stage(name).trains]
    flat, fresh = adopt(emo, weights, required, key, origin)
    if distills:  # a teacher without guidance inputs is usual
        fresh = [path for path in fresh if part_of(path) != "guidance_inputs"]
    if fresh:
        _warn(f"{len(fresh)} parameters are initialised freshly; {origin} has none of their shape: {fresh[0]}, ...")
    params = nest(emo, flat, origin)
    return params | {"teacher": _teacher(config, flat, weights, origin)} if distills else params


def _teacher(config: ConfigDict, flat: Mapping[str, Any], weights: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Returns the teacher's Backbone, a params tree.

    Args:
        config: the full config.
        flat: the student's parameters.
        weights: those of `origin`, as they were read.
        origin: the weights that the student starts from.
    """
    distill = config.train.distill
    name = distill.teacher or origin
    source = weights if name == origin else load_weights(name)[1]
    has_inputs = any(part_of(path) == "guidance_inputs" for path in source)
    if has_inputs != (distill.guidance == "inputs"):
        raise ValueError(
            f"train.distill.guidance is {distill.guidance!r}, but the teacher {name} has "
            f"{'' if has_inputs else 'no '}guidance inputs; expected {'inputs' if has_inputs else 'passes'!r}"
        )
    wanted = teacher_of(flat, distill.guidance)
    if name != origin:
        _check_shared(flat, source, name, origin)
        found = teacher_of(source, distill.guidance)
        wrong = [path for path, a in wanted.items() if path not in found or found[path].shape != a.shape]
        if wrong:
            raise ValueError(f"the teacher {name} is of another config: {wrong[0]} differs (and {len(wrong) - 1} more)")
        wanted = {path: found[path] for path in wanted}
    return unflatten_dict({path.removeprefix("teacher/"): a for path, a in wanted.items()}, sep="/")


def _check_shared(flat: Mapping[str, Any], source: Mapping[str, Any], name: str, origin: str) -> None:
    """Raises ValueError if the teacher has other encoders than the student: both get the results of the student's."""
    for path, a in flat.items():
        if path.startswith("backbone/") or path not in source:
            continue
        one, other = np.asarray(a, np.float32), np.asarray(source[path], np.float32)
        if one.shape != other.shape or not np.allclose(one, other, rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"train.distill.teacher {name} and train.init_from {origin} have different {path}; expected weights "
                "that differ in the Backbone alone, such as a student of this teacher"
            )


def _warn(text: str) -> None:
    if processes.is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)

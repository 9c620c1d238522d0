"""The parameters that a training run starts from."""

import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from emo_jax.distributed import processes
from emo_jax.models.emo import EMO
from emo_jax.training.stages import get_stage, stages_before
from emo_jax.weights.store import adopt, load_weights, nest


def initial_params(config: ConfigDict, emo: EMO) -> dict[str, Any]:
    """Returns the params tree of step 0: freshly initialised, with the weights of `train.init_from` in place.

    Parts that earlier stages train must be present in `train.init_from`. Other parts may differ or be missing there,
    as in an ablation; they are initialised freshly, with a warning.

    Args:
        config: the full config.
        emo: the networks that it describes.

    Raises:
        ValueError: `train.init_from` cannot be read or lacks what earlier stages train.
    """
    stage, origin, key = config.train.stage, config.train.init_from, jax.random.key(config.train.seed)
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
    if fresh:
        _warn(f"{len(fresh)} parameters are initialised freshly; {origin} has none of their shape: {fresh[0]}, ...")
    return nest(emo, flat, origin)


def _warn(text: str) -> None:
    if processes.is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)

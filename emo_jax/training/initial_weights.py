"""`emo train`: one stage of EMO's training on all devices.

emo train --config configs/tiny.py:video --workdir runs/video --config.data.directory=data/synthetic \\
    --config.train.init_from=runs/image

The order of side effects in a step is: next batch, step, log, save (state and place in the data together), sample.
Started once on every host (or GPU) of a cluster, the processes find each other: see launch/. A SIGTERM saves and ends
the run with exit status 143; the same command goes on from there.
"""

import sys

import jax

from emo_jax.distributed import processes
from emo_jax.training.stages import get_stage, stages_before
from emo_jax.weights.store import adopt, load_weights, nest


def _initial_params(config, emo):
    """Fresh parameters, and in their place what `train.init_from` holds.

    What the stages before have trained must all be there. Other parts may be of another kind or switched off there or
    here, as in an ablation: then they start fresh, which is told.
    """
    stage, origin, key = config.train.stage, config.train.init_from, jax.random.key(config.train.seed)
    done = stages_before(stage)
    if not origin:
        if done:
            _warn(f"stage {stage} starts from nothing; it is meant to start from stage {done[-1]} "
                  "(--config.train.init_from=RUN)")  # fmt: skip
        return emo.init(key)
    found_config, found = load_weights(origin)
    if done and done[-1] not in (found_config.train.stage, *stages_before(found_config.train.stage)):
        _warn(f"stage {stage} is meant to start from stage {done[-1]}, but {origin} is of {found_config.train.stage}")
    flat, fresh = adopt(emo, found, [part for name in done for part in get_stage(name).trains], key, origin)
    if fresh:
        _warn(f"{len(fresh)} parameters start fresh, as {origin} has none of their shape: {fresh[0]}, ...")
    return nest(emo, flat, origin)


def _warn(text):
    if processes.first():
        print(f"warning: {text}", file=sys.stderr, flush=True)

"""The optimizers: AdamW or Muon, with warm-up and clipping by the global norm."""

from collections.abc import Mapping
from typing import Any, cast

import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from emo_jax.models.parts import layer_of


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Returns the learning rate schedule of `train.optimizer`, a function of the step.

    Args:
        config: the `train.optimizer` config.
        steps: length of the run; a run shorter than twice the warm-up shortens it.

    Raises:
        ValueError: an unknown `schedule`.
    """
    rate, warmup = config.learning_rate, min(config.warmup, max(steps // 2, 1))
    if config.schedule == "constant":
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), optax.constant_schedule(rate)], [warmup])
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), end_value=rate * 0.02)
    raise ValueError(f"train.optimizer.schedule is {config.schedule!r}; expected 'constant' or 'cosine'")


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of `train.optimizer` over flat params {path: array}; only kernels decay.

    `adamw` is Loshchilov & Hutter 2019. `muon` is Jordan 2024 with the RMS of its updates matched to AdamW's (Liu et
    al. 2025, arXiv 2502.16982), so that one learning rate serves both. Muon updates the kernels between hidden
    features; biases, norms, embeddings and the first and last layers take Adam with Nesterov momentum and no decay.
    `models.parts.LAYERS` says which layer is updated how.

    Args:
        config: the `train.optimizer` config.
        steps: length of the run.

    Raises:
        ValueError: an unknown `name` or `schedule`.
    """
    rate = learning_rate(config, steps)
    if config.name == "adamw":
        inner = optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=_decay_mask)
    elif config.name == "muon":
        inner = muon(
            rate,
            consistent_rms=0.2,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=cast(Any, _muon_dimensions),  # optax types it for trees of arrays
        )
    else:
        raise ValueError(f"train.optimizer.name is {config.name!r}; expected 'adamw' or 'muon'")
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)


def _decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
    return {path: layer_of(path).update != "vector" for path in params}


def _muon_dimensions(params: Mapping[str, Any]) -> dict[str, MuonDimensionNumbers | None]:
    """Returns how Muon reshapes each kernel {path: dimensions}: all other axes by output features; None for Adam."""
    return {
        path: MuonDimensionNumbers(tuple(range(a.ndim - 1)), a.ndim - 1)
        if layer_of(path).update == "matrix"
        else None
        for path, a in params.items()
    }

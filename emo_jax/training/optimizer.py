"""The optimizers: AdamW or Muon, with warm-up and global-norm clipping."""


import optax
from optax.contrib import MuonDimensionNumbers, muon

from emo_jax.models.parts import layer_of


def learning_rate(config, steps):
    """The schedule of `train.optimizer` over that many steps: step -> learning rate."""
    rate, warmup = config.learning_rate, min(config.warmup, max(steps // 2, 1))
    if config.schedule == "constant":
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), optax.constant_schedule(rate)], [warmup])
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), end_value=rate * 0.02)
    raise ValueError(f"train.optimizer.schedule is {config.schedule!r}; expected 'constant' or 'cosine'")


def make_optimizer(config, steps):
    """The optimizer of `train.optimizer` over flat params {path: array}; weight decay on kernels only.

    `adamw` (Loshchilov & Hutter 2019), or `muon` (Jordan 2024) with the update's RMS matched to AdamW's (Liu et al.
    2025, arXiv 2502.16982), so that one learning rate serves both. Muon takes the kernels between hidden features;
    biases, norms, embeddings and the layers at the model's ends take Adam with Nesterov momentum and without decay.

    Raises:
        ValueError: an unknown name.
    """
    rate = learning_rate(config, steps)
    if config.name == "adamw":
        inner = optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=_kernels)
    elif config.name == "muon":
        inner = muon(
            rate,
            consistent_rms=0.2,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        raise ValueError(f"train.optimizer.name is {config.name!r}; expected 'adamw' or 'muon'")
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)


def _kernels(params):
    return {path: layer_of(path).update != "vector" for path in params}


def _matrices(params):
    """How Muon sees each kernel as a matrix: a convolution's taps and input channels against its output channels."""
    return {
        path: MuonDimensionNumbers(tuple(range(a.ndim - 1)), a.ndim - 1)
        if layer_of(path).update == "matrix"
        else None
        for path, a in params.items()
    }

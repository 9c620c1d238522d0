"""The optimizer: AdamW with warm-up and global-norm clipping."""

import optax


def learning_rate(config, steps):
    """The schedule of `train.optimizer` over that many steps: step -> learning rate."""
    rate, warmup = config.learning_rate, min(config.warmup, max(steps // 2, 1))
    if config.schedule == "constant":
        return optax.join_schedules(
            [optax.linear_schedule(0.0, rate, warmup), optax.constant_schedule(rate)], [warmup]
        )
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), end_value=rate * 0.02)
    raise ValueError(f"train.optimizer.schedule is {config.schedule!r}; expected 'constant' or 'cosine'")


def make_optimizer(config, steps):
    """AdamW (Loshchilov & Hutter 2019); weight decay on kernels only."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            config.beta1,
            config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: {path: path.endswith("/kernel") for path in params},
        ),
    )

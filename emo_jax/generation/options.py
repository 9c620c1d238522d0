"""Fields of `sampling`: their defaults for older weights, and their ranges."""

import math

from ml_collections import ConfigDict

from emo_jax.models.conditions import BRANCHES

SAMPLING_OPTIONS = dict(
    guidance_rescale=0.0, guidance_interval=(0.0, 1.0), hold_colors=False, stride=False, bank_tiling=False,
    reencode_motion=False, pose_weight=1.0, face_weight=1.0, lip_weight=1.0, strategy="clips", overlap=3, shift=2,
    deep_interval=1, portrait_return=0.0,
)  # fmt: skip
"""Fields of `sampling` that configs of older weights lack, with the values that leave sampling as it was."""


def check_sampling(sampling: ConfigDict, train_steps: int) -> None:
    """Checks the steps, clips and guidance options of a `sampling` config.

    Raises:
        ValueError: `steps` is not in 1..`train_steps`, `clips` is below 1, `guidance_rescale` is not in 0..1,
            `guidance_interval` is not an interval in 0..1, a branch's weight is negative or not finite, `shift` or
            `overlap` is negative, or `portrait_return` is not in 0..1; `deep_interval` is below 1, or above it beside a
            guidance interval or windows.
    """
    if not 1 <= sampling.steps <= train_steps:
        raise ValueError(
            f"sampling.steps is {sampling.steps}; expected 1 to {train_steps}, the number of training timesteps"
        )
    if sampling.clips < 1:
        raise ValueError(f"sampling.clips is {sampling.clips}; expected 1 or more")
    options = ConfigDict({**SAMPLING_OPTIONS, **sampling})
    if not 0 <= options.guidance_rescale <= 1:
        raise ValueError(f"sampling.guidance_rescale is {options.guidance_rescale}; expected 0 (off) to 1")
    for name in (f"{branch}_weight" for branch in BRANCHES):
        if not 0 <= options[name] < math.inf:
            raise ValueError(f"sampling.{name} is {options[name]}; expected a number of at least 0")
    if options.shift < 0 or options.overlap < 0:
        raise ValueError(f"sampling.shift, overlap are {options.shift}, {options.overlap}; expected at least 0 each")
    interval = tuple(options.guidance_interval)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(
            f"sampling.guidance_interval is {interval}; expected (low, high) with 0 <= low < high <= 1, such as (0, 1)"
        )
    if not 0 <= options.portrait_return < 1:
        raise ValueError(f"sampling.portrait_return is {options.portrait_return}; expected 0 (off) to below 1")
    if options.deep_interval < 1:
        raise ValueError(f"sampling.deep_interval is {options.deep_interval}; expected 1 (off) or more")
    if options.deep_interval > 1 and (interval != (0, 1) or options.strategy != "clips"):
        raise ValueError(
            f"sampling.deep_interval is {options.deep_interval}; expected 1 with sampling.guidance_interval {interval} "
            f"and sampling.strategy {options.strategy!r}, since only clips with guidance in all steps reuse features"
        )

"""Classifier-free guidance (Ho & Salimans 2022) with separate scales for the reference and the audio.

All passes of a step run as one batched call, pass-major: sample b of pass p is row p * batch + b.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from emo_jax.arrays import AnyArray

Denoiser = Callable[[Float[AnyArray, "batch ..."], Int[AnyArray, " batch"]], Float[Array, "batch ..."]]
"""Maps noisy samples and their timesteps to the network's prediction."""

Scale = float | Float[AnyArray, ""] | Float[AnyArray, "batch *ones"]
"""Guidance scale; may be traced. One for all samples, or one for each, with axes of size 1 behind."""

PASSES = {
    "none": ((True, True),),
    "joint": ((False, False), (True, True)),
    "audio": ((True, False), (True, True)),
    "separate": ((False, False), (True, False), (True, True)),
    "inputs": ((True, True),),
}
"""For each mode, (reference_on, audio_on) of each pass; once on, a condition is on in all passes that follow."""


def guidance_mode(reference_scale: float, audio_scale: float) -> str:
    """Returns the mode with the fewest passes that is exact for two scales: a key of PASSES."""
    if reference_scale == audio_scale:
        return "none" if reference_scale == 1 else "joint"
    return "audio" if reference_scale == 1 else "separate"


def guide(
    denoise: Callable[..., Any],
    mode: str,
    reference_scale: Scale,
    audio_scale: Scale,
    *,
    rescale: float = 0.0,
    interval: tuple[int, int] | None = None,
) -> Denoiser:
    """Returns a guided denoiser, which maps (x (batch, ...), t (batch,)) to a prediction (batch, ...).

    The predictions p_0 .. p_last of the passes combine as p_0 + sum_i s_i (p_i - p_(i-1)) (Brooks et al. 2023, Eq. 3):

        joint     off + s (on - off), s = reference_scale
        audio     ref + s_audio (both - ref)
        separate  off + s_reference (ref - off) + s_audio (both - ref)
        none      both; the scales are not used
        inputs    both; the network gets the scales as inputs (Meng et al. 2023, arXiv 2210.03142)

    Args:
        denoise: (x (P * batch, ...), t (P * batch,), reference_on (P * batch,) bool, audio_on (P * batch,) bool) ->
            prediction (P * batch, ...), for the P = len(PASSES[mode]) passes together; with an interval also for the
            last pass alone. It may return (prediction, features): then the guided denoiser returns its prediction and
            these features, and passes further arguments on.
        mode: a key of PASSES.
        reference_scale: scale of the reference. Scales may be traced, so that a new value does not recompile.
        audio_scale: scale of the audio.
        rescale: phi of guidance rescale (Lin et al. 2023, Eqs. 15 and 16): the guided prediction is moved by this share
            to the standard deviation of the last pass, which prevents overexposure at large scales.
        interval: timesteps (first, last) in which guidance is applied (Kynkaanniemi et al. 2024); in others only the
            last pass is computed. None: in all.

    Raises:
        ValueError: unknown mode, or mode 'joint' with two Python numbers that differ.
    """
    if mode not in PASSES:
        raise ValueError(f"guidance mode is {mode!r}; expected one of {', '.join(PASSES)}")
    numbers = isinstance(reference_scale, (int, float)) and isinstance(audio_scale, (int, float))
    if mode == "joint" and numbers and reference_scale != audio_scale:
        raise ValueError(
            f"reference_scale and audio_scale are {reference_scale} and {audio_scale}; expected equal scales in mode "
            "'joint': use mode 'separate'"
        )
    scales = {
        "none": (),
        "inputs": (),
        "joint": (reference_scale,),
        "audio": (audio_scale,),
        "separate": (reference_scale, audio_scale),
    }[mode]
    flags = jnp.asarray(PASSES[mode])  # (P, 2)
    passes = len(PASSES[mode])

    def guided(x: Float[AnyArray, "batch ..."], t: Int[AnyArray, " batch"], *reused: Any) -> Any:
        reference_on, audio_on = jnp.repeat(flags, x.shape[0], axis=0).T  # (P * batch,) each
        tiled = jnp.tile(x, (passes,) + (1,) * (x.ndim - 1))
        found = denoise(tiled, jnp.tile(t, passes), reference_on, audio_on, *reused)
        predictions, *features = found if isinstance(found, tuple) else (found,)
        predictions = rearrange(predictions, "(passes batch) ... -> passes batch ...", passes=passes)
        combined = predictions[0]
        for scale, before, after in zip(scales, predictions, predictions[1:], strict=False):
            combined = combined + scale * (after - before)
        combined = _rescale(combined, predictions[-1], rescale) if rescale and passes > 1 else combined
        return (combined, *features) if features else combined

    def conditional(x: Float[AnyArray, "batch ..."], t: Int[AnyArray, " batch"]) -> Float[Array, "batch ..."]:
        on = jnp.ones(x.shape[0], bool)
        return denoise(x, t, on, on)

    def guided_in_interval(x: Float[AnyArray, "batch ..."], t: Int[AnyArray, " batch"]) -> Float[Array, "batch ..."]:
        assert interval is not None
        return jax.lax.cond((interval[0] <= t[0]) & (t[0] <= interval[1]), guided, conditional, x, t)

    return guided if interval is None or passes == 1 else guided_in_interval


def _rescale(guided: Array, conditional: Array, share: float) -> Array:
    """Moves each sample of the guided prediction towards the standard deviation of the conditional one."""
    axes = tuple(range(1, guided.ndim))
    factor = conditional.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
    return share * factor * guided + (1 - share) * guided

"""Classifier-free guidance (Ho & Salimans 2022) with one scale for the reference and one for the audio.

All passes of a step run as one batched call, pass-major: sample b of pass p is row p * B + b.
"""

from collections.abc import Callable

import jax.numpy as jnp

# Per mode, the (reference_on, audio_on) of each pass; the last pass has everything on.
PASSES = {
    "none": ((True, True),),
    "joint": ((False, False), (True, True)),
    "audio": ((True, False), (True, True)),
    "separate": ((False, False), (True, False), (True, True)),
}


def guidance_mode(reference_scale: float, audio_scale: float) -> str:
    """The cheapest mode that is exact for these Python floats: a key of PASSES."""
    if reference_scale == audio_scale:
        return "none" if reference_scale == 1 else "joint"
    return "audio" if reference_scale == 1 else "separate"


def guide(denoise: Callable, mode: str, reference_scale, audio_scale) -> Callable:
    """Makes the guided denoiser (x (B, ...), t (B,)) -> prediction (B, ...) from P = len(PASSES[mode]) passes.

    denoise(x (P*B, ...), t (P*B,), reference_on bool (P*B,), audio_on bool (P*B,)) -> prediction (P*B, ...). The passes
    p_0 .. p_last combine as p_0 + sum_i s_i (p_i - p_(i-1)), as in Brooks et al. 2023, eq. 3:
        joint     off + s (on - off), s = reference_scale
        audio     ref + s_audio (both - ref)
        separate  off + s_reference (ref - off) + s_audio (both - ref)
        none      both; the scales are not read
    The mode is static. The scales may be traced, so that other values do not recompile.

    Raises: ValueError for an unknown mode, and for 'joint' with two Python numbers that differ.
    """
    if mode not in PASSES:
        raise ValueError(f"guidance mode is {mode!r}, expected one of {', '.join(PASSES)}")
    numbers = isinstance(reference_scale, (int, float)) and isinstance(audio_scale, (int, float))
    if mode == "joint" and numbers and reference_scale != audio_scale:
        raise ValueError(
            f"reference_scale and audio_scale are {reference_scale} and {audio_scale}, expected "
            "equal scales in mode joint: use mode separate"
        )
    scales = {
        "none": (),
        "joint": (reference_scale,),
        "audio": (audio_scale,),
        "separate": (reference_scale, audio_scale),
    }[mode]
    flags = jnp.asarray(PASSES[mode])  # (P, 2)
    passes = len(PASSES[mode])

    def guided(x, t):
        reference_on, audio_on = jnp.repeat(flags, x.shape[0], axis=0).T  # (P*B,) each
        tiled = jnp.tile(x, (passes,) + (1,) * (x.ndim - 1))
        out = denoise(tiled, jnp.tile(t, passes), reference_on, audio_on)
        out = out.reshape(passes, *x.shape[:1], *out.shape[1:])
        guided_out = out[0]
        for scale, before, after in zip(scales, out, out[1:], strict=False):
            guided_out = guided_out + scale * (after - before)
        return guided_out

    return guided

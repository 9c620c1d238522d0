"""Latents of the reference and of the last motion frame at the Backbone's input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.models.conditions import LATENTS, mask_conditions
from emo_jax.models.emo import build
from tests.small import small_config


def draw(emo, seed, frames):
    return jax.random.normal(jax.random.key(seed), (2, frames, *emo.latent_shape))


@pytest.fixture(scope="module")
def shown():
    """(networks with image inputs, their params, latents, timesteps)."""
    emo = build(small_config("video", image_inputs=True))
    return emo, emo.init(jax.random.key(0)), draw(emo, 1, 4), jnp.array([3, 700])


@pytest.mark.slow
def test_the_backbone_reads_the_reference_and_the_null_condition_is_zeros(shown):
    emo, params, x, t = shown
    given = emo.conditions(params, reference=draw(emo, 2, 1), temporal=False)
    changed = dict(given.reference)
    changed[LATENTS] = changed[LATENTS].at[0].add(1)
    outputs = [emo.denoise(params, x, t, dataclasses.replace(given, reference=r)) for r in (given.reference, changed)]
    assert np.abs(outputs[0][0] - outputs[1][0]).max() > 0.01
    np.testing.assert_array_equal(outputs[0][1], outputs[1][1])
    masked = mask_conditions(given, jnp.array([False, True]), jnp.array([True, True]))
    assert not masked.reference[LATENTS][0].any()
    np.testing.assert_array_equal(masked.reference[LATENTS][1], given.reference[LATENTS][1])


@pytest.mark.slow
def test_the_backbone_reads_the_last_motion_frame(shown):
    emo, params, x, t = shown
    reference, motion = draw(emo, 2, 1), draw(emo, 3, emo.config.clip.motion_frames)
    constants = emo.conditions(params, reference=reference)
    given = emo.conditions(params, base=constants, motion=motion, has_motion=jnp.array([True, False]))
    np.testing.assert_array_equal(given.motion[LATENTS][0], motion[0, -1:])
    assert not given.motion[LATENTS][1].any()
    other = dict(given.motion)
    other[LATENTS] = other[LATENTS] + 1
    outputs = [emo.denoise(params, x, t, dataclasses.replace(given, motion=m)) for m in (given.motion, other)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


@pytest.mark.parametrize("mode", ["shared", "off"])
def test_modes_of_reference_attention_without_image_inputs(mode):
    with pytest.raises(ValueError, match="reference_attention"):
        build(small_config("video", image_inputs=True, reference_attention=mode))

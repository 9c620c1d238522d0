"""Clips and segments: carry, keys and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.clips import clip_keys, first_carry, scan_clips, segments

B, F, LATENT = 2, 3, (2, 2, 1)


def make_clip(carry, inputs):
    """Returns frames that depend on the noise, the audio, the motion frames and has_motion."""
    motion, has_motion = carry
    audio, key = inputs
    past = motion.sum(axis=1, keepdims=True) + 10 * has_motion.reshape(B, 1, 1, 1, 1)
    return jax.random.normal(key, (B, F, *LATENT)) + audio + 0.5 * past


def video(clips, K, n):
    """Generates clips in segments of K; also counts the traces."""
    traces = 0

    @jax.jit
    def segment(carry, first, audio):
        nonlocal traces
        traces += 1
        return scan_clips(make_clip, carry, (audio, clip_keys(jax.random.key(7), first, K)))

    carry, out = first_carry(B, n, LATENT), []
    for first in range(0, clips, K):
        carry, latents = segment(carry, first, jnp.arange(first, first + K, dtype=jnp.float32))
        out.append(latents)
    return np.concatenate(out), carry, traces


@pytest.mark.parametrize("n", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_segment_size_does_not_change_the_video(n):
    full, carry, _ = video(6, 6, n)
    assert full.shape == (6, B, F, *LATENT)
    for K in (1, 3):
        parts, _, traces = video(6, K, n)
        np.testing.assert_allclose(parts, full, rtol=1e-5, atol=1e-5)
        assert traces == 1


@pytest.mark.parametrize("n", [0, 2])
def test_the_carry_holds_the_last_frames(n):
    latents, (motion, has_motion), _ = video(2, 2, n)
    np.testing.assert_array_equal(motion, latents[-1][:, F - n :])
    assert has_motion.all() and not first_carry(B, n, LATENT)[1].any()


def test_clips_get_the_motion_frames_and_the_first_gets_zeros():
    def depends_on_carry(carry, _):
        return jnp.full((B, F, *LATENT), 1.0) + carry[0].sum() + 100 * carry[1].all()

    _, latents = scan_clips(depends_on_carry, first_carry(B, 1, LATENT), jnp.arange(2))
    assert (latents[0] == 1).all() and (latents[1] == 1 + B * np.prod(LATENT) + 100).all()


def test_clip_keys_depend_on_the_absolute_index_and_differ():
    data = jax.random.key_data(clip_keys(jax.random.key(0), 0, 5))
    assert len(np.unique(data, axis=0)) == 5
    np.testing.assert_array_equal(jax.random.key_data(clip_keys(jax.random.key(0), 3, 2)), data[3:])


@pytest.mark.parametrize("frames, first, expected", [
    (1, None, [1]), (12, None, [1]), (24, None, [2]), (25, None, [2, 1]), (48, None, [2, 2]), (49, None, [2, 2, 1]),
    (1, 1, [1]), (24, 1, [1, 1]), (25, 1, [1, 2]), (48, 1, [1, 2, 1]),
])  # fmt: skip
def test_segments_cover_every_frame_with_as_few_clips_as_possible(frames, first, expected):
    assert segments(frames, 12, 2, first) == expected


def test_one_program_generates_any_number_of_clips():
    full, _, _ = video(6, 6, 2)
    traces = 0

    @jax.jit
    def segment(carry, first, count, audio):
        nonlocal traces
        traces += 1
        return scan_clips(make_clip, carry, (audio, clip_keys(jax.random.key(7), first, 3)), count=count)

    carry, out, first = first_carry(B, 2, LATENT), [], 0
    for count in (1, 3, 2):
        carry, latents = segment(carry, first, count, jnp.arange(first, first + 3, dtype=jnp.float32))
        assert latents.shape == (3, B, F, *LATENT) and not latents[count:].any()
        out.append(latents[:count])
        first += count
    np.testing.assert_allclose(np.concatenate(out), full, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(carry[0], out[-1][-1][:, F - 2 :])
    assert traces == 1


def test_bad_input_raises():
    with pytest.raises(ValueError, match="motion_frames"):
        scan_clips(make_clip, first_carry(B, F + 1, LATENT), (jnp.zeros(1), clip_keys(jax.random.key(0), 0, 1)))
    with pytest.raises(ValueError, match="at least 1"):
        segments(0, 12, 2)
    with pytest.raises(ValueError, match="first"):
        segments(12, 12, 2, 3)

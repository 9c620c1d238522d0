"""Work that is left out of the Backbone without changing its result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.generation import guided
from emo_jax.models.attention import Attention, TransformerBlock
from emo_jax.models.audio_module import AudioBlock
from emo_jax.models.conditions import Conditions
from emo_jax.models.emo import build
from emo_jax.models.temporal import TemporalBlock
from emo_jax.training.flops import count_flops
from tests.small import as_hallo, small_config
from tests.steps import random_params


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables_of(module, *inputs):
    """Returns random parameters, also where the initial ones are zeros."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([drawn(*a.shape, seed=i) * 0.5 for i, a in enumerate(leaves)])


def assert_saves(full, saving, least):
    """Compares two functions without arguments; the second must need at most a share of the first's FLOPs."""
    results, flops = [np.asarray(f()) for f in (full, saving)], [count_flops(f) for f in (full, saving)]
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)
    assert results[0].std() > 0.1 and flops[1] <= least * flops[0]


def test_motion_frames_leave_the_block_after_the_second_attention():
    block, x = TemporalBlock(heads=2), drawn(1, 3, 6, 16)
    variables = variables_of(block, x)
    assert_saves(lambda: block.apply(variables, x)[:, :, 4:], lambda: block.apply(variables, x, None, 4), 0.6)


def test_a_constant_speed_is_one_token():
    block, x, speed = TemporalBlock(heads=2, speed=True), drawn(2, 3, 6, 16), drawn(2, 1, 8, seed=1)
    variables = variables_of(block, x, speed)
    repeated = np.repeat(speed, 4, axis=1)
    assert_saves(lambda: block.apply(variables, x, repeated, 2), lambda: block.apply(variables, x, speed, 2), 0.97)


@pytest.mark.slow
def test_keys_and_values_of_speeds_are_computed_once_for_all_places():
    layer, x, speed = Attention(heads=2), drawn(2, 5, 4, 16), drawn(2, 1, 4, 8, seed=1)
    variables = variables_of(layer, x, speed)
    of_each_place = np.repeat(speed, 5, axis=1)
    assert_saves(lambda: layer.apply(variables, x, of_each_place), lambda: layer.apply(variables, x, speed), 0.7)

    def loss(variables, context):
        return (layer.apply(variables, x, context) ** 2).sum()

    full, saving = (jax.grad(loss)(variables, context) for context in (of_each_place, speed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3), full, saving)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cross", "shared"])
def test_samples_without_reference_and_audio_cost_nothing_for_them(mode):
    block, x = TransformerBlock(heads=2, reference=mode, audio=True), drawn(3, 2, 12, 16)
    reference, audio = drawn(1, 1, 12, 16, seed=1), drawn(2, 2, 5, 8, seed=2)
    variables = variables_of(block, x, drawn(3, 1, 12, 16), drawn(3, 2, 5, 8))
    on = np.array([False, False, True])
    tiled = np.where(on.reshape(3, 1, 1, 1), reference, 0)
    heard = np.concatenate([np.zeros_like(audio[:1]), audio])
    flags = on if mode == "shared" else None
    full, saving = (tiled, heard, None, flags), (reference, audio)
    assert_saves(lambda: block.apply(variables, x, *full)[0], lambda: block.apply(variables, x, *saving)[0], 0.9)


@pytest.mark.slow
def test_samples_without_audio_cost_nothing_in_audio_modules():
    block, x, audio = AudioBlock(heads=2), drawn(2, 2, 12, 16), drawn(1, 2, 5, 8, seed=1)
    regions, weights = np.abs(drawn(2, 12, 3, seed=2)), np.abs(drawn(2, 3, seed=3))
    full = np.concatenate([np.zeros_like(audio), audio])
    variables = variables_of(block, x, full, regions, weights)
    least = 0.9
    assert_saves(
        lambda: block.apply(variables, x, full, regions, weights),
        lambda: block.apply(variables, x, audio, regions, weights), least,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["joint", "separate", "audio"])
@pytest.mark.parametrize("variant", ["emo", "hallo", "positions", "concat"])
def test_guidance_gives_conditions_to_the_passes_that_have_them(mode, variant, monkeypatch):
    """With the networks replaced by their inputs: each pass sees the conditions that masking would give it."""
    config = small_config("speed", reference_positions=variant == "positions")
    config = as_hallo(config) if variant == "hallo" else config
    config.model.reference_attention = "concat" if variant == "concat" else config.model.reference_attention
    emo, seen = build(config), []
    conditions = Conditions(reference={"layer": drawn(2, 1, 2, 2, 4)}, audio=drawn(2, 4, 2, 8), location=drawn(2, 1, 2))
    monkeypatch.setattr(
        type(emo), "denoise", lambda self, params, x, t, conditions: (seen.append(conditions), jnp.asarray(x))[1]
    )
    x, t = drawn(2, 4, 2, 2, 4), np.zeros(2, np.int32)
    guided.guided_denoiser(emo, {}, conditions, mode, (2.0, 2.0))(x, t)
    monkeypatch.setattr(guided, "_given_conditions", lambda *_: {})
    guided.guided_denoiser(emo, {}, conditions, mode, (2.0, 2.0))(x, t)
    given, masked = seen
    keeps_zeros = variant in ("positions", "concat")
    for short, full in ((given.reference["layer"], masked.reference["layer"]), (given.audio, masked.audio)):
        missing = len(full) - len(short)
        np.testing.assert_array_equal(short, full[missing:])
        assert not np.any(full[:missing])
    assert len(masked.audio) - len(given.audio) == {"joint": 2, "separate": 4, "audio": 2}[mode]
    off = 0 if keeps_zeros else {"joint": 2, "separate": 2, "audio": 0}[mode]
    assert len(masked.reference["layer"]) - len(given.reference["layer"]) == off
    np.testing.assert_array_equal(given.location, masked.location)


@pytest.mark.slow
def test_a_guided_step_is_the_same_and_cheaper():
    config = small_config("speed", reference_positions=False)
    emo, f = build(config), config.clip.frames
    params, (h, w, c) = random_params(emo), emo.latent_shape
    margin = config.clip.audio_window
    x, known = drawn(1, f, h, w, c), drawn(1, 3, h, w, c, seed=1)
    sound = drawn(1, (f + 2 * margin) * 640 + 512, seed=2) * 0.1

    def predict(params, given, x, known, sound, speed):
        conditions = emo.conditions(
            params, reference=known[:, :1], motion=known[:, 1:], speed=speed,
            audio=emo.audio_features(params, sound, f + 2 * margin),
        )  # fmt: skip
        original, guided._given_conditions = guided._given_conditions, given
        try:
            return guided.guided_denoiser(emo, params, conditions, "joint", (3.0, 3.0))(x, jnp.full(1, 500))
        finally:
            guided._given_conditions = original

    functions = [
        jax.jit(lambda *a, given=given: predict(a[0], given, *a[1:]))
        for given in (lambda *_: {}, guided._given_conditions)
    ]
    speeds = [np.full((1, frames + 2 * margin), 0.7, np.float32) for frames in (f, 1)]
    inputs = [(params, x, known, sound, speed) for speed in speeds]
    full, saving = (np.asarray(run(*a)) for run, a in zip(functions, inputs, strict=True))
    np.testing.assert_allclose(saving, full, rtol=1e-5, atol=1e-5)
    counts = [count_flops(run, *a) for run, a in zip(functions, inputs, strict=True)]
    assert counts[1] < 0.97 * counts[0]

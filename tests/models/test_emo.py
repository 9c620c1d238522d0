"""The networks together: what reaches the prediction, what a new part changes (nothing), and what is left out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.models.attention import Conditions, SpatialTransformer
from emo_jax.models.emo import build, mask_features, switch
from emo_jax.models.layers import grid_positions
from emo_jax.models.temporal import MotionModule
from emo_jax.training.step import make_loss
from tests.small import small_config
from tests.steps import FAST, fixed_batch, fresh_params, random_params, training_config

B, F, N = 2, 4, 2
VIDEO_PARTS = re.compile(r"motion_modules|audio_attn|norm_audio|audio_projector|speed_")
SPEED_PARTS = re.compile(r"speed_attn|norm_speed|speed_encoder")


class World:
    """A small EMO, inputs of every kind, and its compiled functions, by which conditions are there."""

    def __init__(self, **model):
        self.emo = build(small_config(**model))
        rng = np.random.default_rng(0)
        h, w, c = self.emo.latent_shape
        self.noisy = rng.normal(size=(B, F, h, w, c)).astype(np.float32)
        self.times = np.array([100, 800], np.int32)
        self.inputs = dict(
            known=rng.normal(size=(B, 1 + N, h, w, c)).astype(np.float32),
            audio=rng.uniform(-0.3, 0.3, (B, (F + 4) * 640 + 512)).astype(np.float32),
            speed=rng.uniform(0, 2, (B, F + 4)).astype(np.float32),
            mask=(np.arange(64 * 64).reshape(1, 64, 64, 1) % 64 > [[[[20]]], [[[40]]]]).astype(np.uint8),
        )
        self._compiled = {}

    def run(self, function, *args):
        key = function.__name__, str(jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), args))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function).lower(*args).compile(compiler_options=FAST)
        return self._compiled[key](*args)

    def conditions(self, params, **changes):
        return self.run(self._conditions, params, self.inputs | changes)

    def _conditions(self, params, inputs):
        emo, features = self.emo, self.emo.reference_features(params, inputs["known"])
        return Conditions(
            reference=jax.tree.map(lambda a: a[:, :1], features),
            motion=jax.tree.map(lambda a: a[:, 1:], features),
            audio=emo.audio_tokens(params, emo.audio_features(params, inputs["audio"], F + 4)),
            speed=emo.speed_features(params, inputs["speed"]),
            location=emo.location(params, inputs["mask"]),
        )

    def predict(self, params, conditions, noisy=None, times=None):
        noisy, times = self.noisy if noisy is None else noisy, self.times if times is None else times
        return np.asarray(self.run(self.emo.denoise, params, noisy, times, conditions))

    def predict_frames(self, params, conditions):
        """Each frame by itself, as stage 1 sees it: no temporal modules, no sound."""
        reference = jax.tree.map(lambda a: jnp.repeat(a, F, axis=0), conditions.reference)
        location = jnp.repeat(conditions.location, F, axis=0)
        still = Conditions(reference=reference, location=location, temporal=False)
        noisy = self.noisy.reshape(B * F, 1, *self.noisy.shape[2:])
        return self.predict(params, still, noisy, np.repeat(self.times, F)).reshape(self.noisy.shape)


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def params(world):
    return random_params(world.emo)


def test_every_condition_reaches_every_sample_that_it_is_for(world, params):
    full = world.predict(params, world.conditions(params))
    assert full.shape == world.noisy.shape and full.dtype == np.float32
    known = world.inputs["known"]
    changes = {
        "reference": ("known", np.concatenate([known[:, :1] + 1, known[:, 1:]], axis=1)),
        "motion": ("known", np.concatenate([known[:, :1], 1 - known[:, 1:]], axis=1)),
        "audio": ("audio", world.inputs["audio"][:, ::-1]),
        "speed": ("speed", world.inputs["speed"] + 1),
        "location": ("mask", 1 - world.inputs["mask"]),
    }
    for part, (name, value) in changes.items():
        one = np.concatenate([value[:1], world.inputs[name][1:]])  # of the first sample alone
        moved = np.abs(world.predict(params, world.conditions(params, **{name: one})) - full).max(axis=(1, 2, 3, 4))
        assert moved[0] > 1e-3 and moved[1] < 1e-5, part


def test_null_conditions_hide_the_portrait_and_the_voice(world, params):
    here, there = (world.conditions(params, **c) for c in ({}, {
        "known": np.concatenate([1 - world.inputs["known"][:, :1], world.inputs["known"][:, 1:]], axis=1),
        "audio": world.inputs["audio"][::-1].copy(),
    }))  # fmt: skip
    full = world.predict(params, here)
    off, first = np.array([False, False]), np.array([True, False])
    none = world.predict(params, switch(here, off, off))
    np.testing.assert_allclose(none, world.predict(params, switch(there, off, off)), atol=1e-5)
    mixed = world.predict(params, switch(here, first, first))
    np.testing.assert_allclose(mixed[0], full[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], none[1], atol=1e-5)
    assert np.abs(none - full).max() > 1e-3
    without_sound = world.predict(params, switch(here, ~off, off))
    assert np.abs(without_sound - none).max() > 1e-3 and np.abs(without_sound - full).max() > 1e-3


def test_without_motion_frames_their_features_are_zeros(world, params):
    conditions = world.conditions(params)
    first = mask_features(conditions.motion, np.array([True, False]))
    assert all(not a[1].any() and a[0].any() for a in first.values())
    moved = np.abs(world.predict(params, conditions.replace(motion=first)) - world.predict(params, conditions))
    moved = moved.max(axis=(1, 2, 3, 4))
    assert moved[0] < 1e-5 and moved[1] > 1e-3


def test_stage_2_begins_where_stage_1_ended(world, params):
    new = random_params(world.emo, fresh=VIDEO_PARTS)  # stage 1's weights, and new temporal modules and audio layers
    conditions = world.conditions(new).replace(speed=None)
    frames = world.predict_frames(new, conditions)
    np.testing.assert_allclose(world.predict(new, conditions), frames, atol=2e-5)
    assert frames.std() > 0.1
    assert np.abs(world.predict(params, conditions) - world.predict_frames(params, conditions)).max() > 1e-2


def test_stage_3_begins_where_stage_2_ended(world, params):
    new = random_params(world.emo, fresh=SPEED_PARTS)
    conditions = world.conditions(new)
    video = world.predict(new, conditions.replace(speed=None))
    np.testing.assert_allclose(world.predict(new, conditions), video, atol=2e-5)
    there = world.conditions(params)
    assert np.abs(world.predict(params, there) - world.predict(params, there.replace(speed=None))).max() > 1e-3


def test_bfloat16_stays_near_float32(world, params):
    half = World(dtype="bfloat16")
    exact = world.predict(params, world.conditions(params))
    conditions = half.conditions(params)
    assert {a.dtype for a in jax.tree.leaves((conditions.reference, conditions.audio))} == {jnp.dtype(jnp.bfloat16)}
    near = half.predict(params, conditions)
    assert near.dtype == np.float32
    difference = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-5 < difference < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves(half.emo.abstract_params())} == {jnp.dtype(jnp.float32)}


def still(world, params, known):
    """A prediction of stage 1 from a portrait."""
    features = world.run(world.emo.reference_features, params, known) if world.emo.reference_net else None
    return world.predict(params, Conditions(reference=features, temporal=False))


@pytest.mark.parametrize("mode", ["concat", "off"])
def test_the_other_reference_modes(mode):
    world = World(reference_attention=mode, temporal_modules=False, speed_layers=False, audio_attention=False)
    paths = set(flatten_dict(world.emo.abstract_params(), sep="/"))
    assert not any("attn2" in path for path in paths)
    assert any("norm_reference" in path for path in paths) == (mode == "concat")
    assert (world.emo.reference_net is None) == (mode == "off")
    assert any(path.startswith("reference_net") for path in paths) == (mode == "concat")
    if mode == "concat":
        params, known = random_params(world.emo), world.inputs["known"][:, :1]
        one, other = still(world, params, known), still(world, params, known[::-1].copy())
        assert np.abs(one - other).max() > 1e-3 and one.shape == world.noisy.shape


OFF = {
    "audio_attention": (dict(audio_attention=False), r"audio_attn|norm_audio|audio_projector"),
    "temporal_modules": (dict(temporal_modules=False, speed_layers=False), r"motion_modules|speed_"),
    "speed_layers": (dict(speed_layers=False), r"speed_attn|norm_speed|speed_encoder"),
    "face_locator": (dict(face_locator=False), r"face_locator"),
    "reference_attention": (dict(reference_attention="off"), r"attentions_\d+/\w+/(attn2|norm2)/|norm_reference"),
}


@pytest.mark.parametrize("part", OFF)
def test_a_part_that_is_off_has_no_parameters_and_the_rest_runs(part):
    changes, pattern = OFF[part]
    config = training_config("speed")
    config.model.update(changes)
    emo = build(config)
    params = emo.abstract_params()
    paths, every = (set(flatten_dict(tree, sep="/")) for tree in (params, build(small_config()).abstract_params()))
    assert not [path for path in paths if re.search(pattern, path)]
    assert paths < every and any(re.search(pattern, path) for path in every)
    loss, _ = jax.eval_shape(make_loss(emo, config), params, fixed_batch(config), jax.random.key(0))
    assert loss.shape == ()


def test_no_motion_frames():
    config = training_config("video")
    config.clip.motion_frames = 0
    emo, batch = build(config), fixed_batch(config)
    assert batch["motion"].shape == (2, 0, 64, 64, 3)
    loss, _ = jax.eval_shape(make_loss(emo, config), emo.abstract_params(), batch, jax.random.key(0))
    assert loss.shape == ()


def test_a_parameter_does_not_depend_on_which_parts_are_there(world):
    whole = flatten_dict(build(small_config()).init(jax.random.key(5)), sep="/")
    less = flatten_dict(build(small_config(audio_attention=False, face_locator=False)).init(jax.random.key(5)), sep="/")
    assert set(less) < set(whole)
    for path, value in less.items():
        np.testing.assert_array_equal(value, whole[path], err_msg=path)
    other = fresh_params(world.emo)["backbone"]["conv_in"]["kernel"]
    assert not np.array_equal(whole["backbone/conv_in/kernel"], other)


def test_spatial_attention_treats_all_places_alike():
    """Turning the image turns the result: nothing may take the height for the width."""
    module = SpatialTransformer(heads=2, groups=4, reference="cross")
    x, reference = (jax.random.normal(jax.random.key(k), (1, 2 - k, 4, 6, 8)) for k in (0, 1))
    variables, run = jax.jit(module.init)(jax.random.key(2), x, reference), jax.jit(module.apply)
    out, feature = run(variables, x, reference)
    turned, feature_turned = run(variables, x.swapaxes(2, 3), reference.swapaxes(2, 3))
    np.testing.assert_allclose(turned, out.swapaxes(2, 3), atol=1e-5)
    np.testing.assert_allclose(feature_turned, feature.swapaxes(2, 3), atol=1e-5)
    assert np.abs(out - x).max() > 1e-2


@pytest.mark.parametrize("told", [False, True])
def test_places_of_the_reference_count_where_positions_are_told(told):
    layer = SpatialTransformer(heads=2, groups=8, reference="cross", positions=told)
    x, reference = np.random.default_rng(0).normal(size=(2, 1, 1, 4, 4, 16)).astype(np.float32)
    params = layer.init(jax.random.key(0), x, reference)
    seen = [layer.apply(params, x, r)[0] for r in (reference, reference[:, :, ::-1])]
    assert (np.abs(seen[0] - seen[1]).max() > 1e-3) == told


def test_a_fresh_reference_attention_looks_near_by():
    """What is told of places is alike near by, and queries and keys start alike."""
    emo, where = build(small_config()), grid_positions(6, 5, 32)
    rows, columns = np.divmod(np.arange(30), 5)
    distance = np.hypot(rows - rows[:, None], columns - columns[:, None])
    path = "backbone/down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_{}/kernel"
    query, key = (where @ emo.fresh(path.format(name), (32, 32), jax.random.key(1)) for name in "qk")
    assert float((where**2).mean()) == pytest.approx(1)
    for head in (slice(0, 16), slice(16, 32)):
        scores = np.asarray(query[:, head] @ key[:, head].T)
        assert np.mean([np.corrcoef(s, d)[0, 1] for s, d in zip(scores, distance, strict=True)]) < -0.5


def test_temporal_modules_mix_frames_of_one_place_and_drop_the_motion_frames():
    module = MotionModule(heads=2, groups=4)
    x, motion = (jax.random.normal(jax.random.key(k), (1, 3 - k, 4, 6, 8)) for k in (0, 1))
    variables, run = jax.jit(module.init)(jax.random.key(2), x, motion), jax.jit(module.apply)
    out = run(variables, x, motion)
    assert out.shape == x.shape
    # Two places swapped: the norm's statistics stay.
    swapped = x.at[:, 1, 0, 0].set(x[:, 1, 0, 1]).at[:, 1, 0, 1].set(x[:, 1, 0, 0])
    moved = np.abs(run(variables, swapped, motion) - out).max(axis=(0, 4))  # (f, h, w)
    assert moved[:, 0, :2].min() > 1e-4  # all frames of the two places
    assert moved[:, 1:].max() < 1e-5 and moved[:, 0, 2:].max() < 1e-5
    before = motion.at[:, 1, 2, 3].set(motion[:, 1, 2, 4]).at[:, 1, 2, 4].set(motion[:, 1, 2, 3])
    moved = np.abs(run(variables, x, before) - out).max(axis=(0, 4))
    assert moved[:, 2, 3:5].min() > 1e-5 and moved[:, 0].max() < 1e-6


def test_temporal_modules_give_each_frame_its_own_result():
    """With its attention and feed-forward silenced a module works on each frame alone: none comes out for another."""
    module = MotionModule(heads=2, groups=4)
    x, motion = (jax.random.normal(jax.random.key(k), (1, 3 - k, 2, 2, 8)) for k in (0, 1))
    flat = flatten_dict(jax.jit(module.init)(jax.random.key(2), x, motion), sep="/")
    silent = {path: a * (not re.search("to_out_0|net_2", path)) for path, a in flat.items()}
    variables, run = unflatten_dict(silent, sep="/"), jax.jit(module.apply)
    out = run(variables, x, motion)
    assert np.abs(out - x).min(axis=(0, 2, 3, 4)).max() > 0
    np.testing.assert_allclose(run(variables, x, -motion), out, atol=1e-6)
    moved = np.abs(run(variables, x.at[:, 1].multiply(-2.0), motion) - out).max(axis=(0, 2, 3, 4))
    assert moved[1] > 0.1 and moved[0] < 1e-6 and moved[2] < 1e-6

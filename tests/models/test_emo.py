"""The networks together: which conditions reach the prediction, new parts, and parts that are switched off."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emo_jax.configs import base
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.models.attention import SpatialTransformer
from emo_jax.models.conditions import Conditions, mask_conditions, mask_features
from emo_jax.models.emo import build
from emo_jax.models.initializers import ZEROS
from emo_jax.models.layers import grid_positions
from emo_jax.models.temporal import MotionModule
from emo_jax.training.step import make_loss
from tests.small import small_config
from tests.steps import FAST, fixed_batch, fresh_params, random_params, training_config

B, F, N = 2, 4, 2
VIDEO_PARTS = re.compile(r"motion_modules|audio_attn|norm_audio|audio_projector|speed_")
SPEED_PARTS = re.compile(r"speed_attn|norm_speed|speed_encoder")


class World:
    """A small EMO, inputs of all conditions, and its compiled functions."""

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
        return self.emo.conditions(
            params,
            reference=inputs["known"][:, :1],
            motion=inputs["known"][:, 1:],
            audio=self.emo.audio_features(params, inputs["audio"], F + 4),
            speed=inputs["speed"],
            mask=inputs["mask"],
        )

    def predict(self, params, conditions, noisy=None, times=None):
        noisy, times = self.noisy if noisy is None else noisy, self.times if times is None else times
        return np.asarray(self.run(self.emo.denoise, params, noisy, times, conditions))

    def predict_frames(self, params, conditions):
        """Predicts each frame independently, as in stage 1: without temporal modules and audio."""
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


def test_each_condition_changes_its_own_sample_only(world, params):
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
        one = np.concatenate([value[:1], world.inputs[name][1:]])  # changes the first sample only
        moved = np.abs(world.predict(params, world.conditions(params, **{name: one})) - full).max(axis=(1, 2, 3, 4))
        assert moved[0] > 1e-3 and moved[1] < 1e-5, part


def test_null_conditions_remove_reference_and_audio(world, params):
    here, there = (world.conditions(params, **c) for c in ({}, {
        "known": np.concatenate([1 - world.inputs["known"][:, :1], world.inputs["known"][:, 1:]], axis=1),
        "audio": world.inputs["audio"][::-1].copy(),
    }))  # fmt: skip
    full = world.predict(params, here)
    off, first = np.array([False, False]), np.array([True, False])
    none = world.predict(params, mask_conditions(here, off, off))
    np.testing.assert_allclose(none, world.predict(params, mask_conditions(there, off, off)), atol=1e-5)
    mixed = world.predict(params, mask_conditions(here, first, first))
    np.testing.assert_allclose(mixed[0], full[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], none[1], atol=1e-5)
    assert np.abs(none - full).max() > 1e-3
    without_sound = world.predict(params, mask_conditions(here, ~off, off))
    assert np.abs(without_sound - none).max() > 1e-3 and np.abs(without_sound - full).max() > 1e-3


def test_samples_without_motion_frames_have_zero_features(world, params):
    conditions = world.conditions(params)
    first = mask_features(conditions.motion, np.array([True, False]))
    assert all(not a[1].any() and a[0].any() for a in first.values())
    moved = np.abs(world.predict(params, conditions.replace(motion=first)) - world.predict(params, conditions))
    moved = moved.max(axis=(1, 2, 3, 4))
    assert moved[0] < 1e-5 and moved[1] > 1e-3


@pytest.mark.slow
def test_stage_2_starts_from_the_predictions_of_stage_1(world, params):
    new = random_params(world.emo, fresh=VIDEO_PARTS)  # weights of stage 1 with new temporal modules and audio layers
    conditions = world.conditions(new).replace(speed=None)
    frames = world.predict_frames(new, conditions)
    np.testing.assert_allclose(world.predict(new, conditions), frames, atol=2e-5)
    assert frames.std() > 0.1
    assert np.abs(world.predict(params, conditions) - world.predict_frames(params, conditions)).max() > 1e-2


def test_stage_3_starts_from_the_predictions_of_stage_2(world, params):
    new = random_params(world.emo, fresh=SPEED_PARTS)
    conditions = world.conditions(new)
    video = world.predict(new, conditions.replace(speed=None))
    np.testing.assert_allclose(world.predict(new, conditions), video, atol=2e-5)
    there = world.conditions(params)
    assert np.abs(world.predict(params, there) - world.predict(params, there.replace(speed=None))).max() > 1e-3


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(world, params):
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
    """Returns a prediction of stage 1 from a reference image."""
    features = world.run(world.emo.reference_features, params, known) if world.emo.reference_net else None
    return world.predict(params, Conditions(reference=features, temporal=False))


@pytest.mark.parametrize("mode", [pytest.param("concat", marks=pytest.mark.slow), "off"])
def test_reference_modes_concat_and_off(mode):
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


@pytest.mark.slow
@pytest.mark.parametrize("part", OFF)
def test_a_part_that_is_off_has_no_parameters_and_training_runs(part):
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


@pytest.mark.slow
def test_training_without_motion_frames():
    config = training_config("video")
    config.clip.motion_frames = 0
    emo, batch = build(config), fixed_batch(config)
    assert batch["motion"].shape == (2, 0, 64, 64, 3)
    loss, _ = jax.eval_shape(make_loss(emo, config), emo.abstract_params(), batch, jax.random.key(0))
    assert loss.shape == ()


def test_initial_parameters_do_not_depend_on_other_parts(world):
    all_parts = flatten_dict(build(small_config()).init(jax.random.key(5)), sep="/")
    fewer = build(small_config(audio_attention=False, face_locator=False)).init(jax.random.key(5))
    fewer = flatten_dict(fewer, sep="/")
    assert set(fewer) < set(all_parts)
    for path, value in fewer.items():
        np.testing.assert_array_equal(value, all_parts[path], err_msg=path)
    other = fresh_params(world.emo)["backbone"]["conv_in"]["kernel"]
    assert not np.array_equal(all_parts["backbone/conv_in/kernel"], other)


@pytest.mark.slow
def test_modules_declare_the_initialisers(world):
    """`Module.init` (JAX) and `EMO.init` (NumPy) give zeros and ones to the same parameters."""
    module = MotionModule(heads=2, groups=4, speed=True, added_init=ZEROS)
    x, speed = jnp.zeros((1, 2, 2, 2, 8)), jnp.zeros((1, 2, 4))
    flat = flatten_dict(module.init(jax.random.key(0), x, None, speed)["params"], sep="/")
    drawn = flatten_dict(fresh_params(world.emo)["backbone"]["down_blocks_0"]["motion_modules_0"], sep="/")
    assert set(flat) == set(drawn)
    for path, value in flat.items():
        constant = [{0.0: "zeros", 1.0: "ones"}.get(float(a.mean())) for a in (value, drawn[path])]
        assert constant[0] == constant[1], path
    silent = {"proj_out", "speed_attn/to_out_0"}
    assert all(not flat[path].any() for path in flat if any(f"{name}/kernel" in path for name in silent))


def test_the_config_is_frozen_once_networks_are_built():
    config = small_config()
    emo = build(config)
    with pytest.raises(AttributeError, match="immutable"):
        emo.config.clip.frames = 3
    config.clip.frames = 3
    assert emo.config.clip.frames == 4


@pytest.mark.slow
def test_encoded_conditions_are_not_encoded_again(world, params):
    """A video's reference and location are encoded once; the other conditions once per clip."""
    latents = world.inputs["known"]
    base = world.emo.conditions(params, reference=latents[:, :1], mask=world.inputs["mask"])
    assert base.motion is base.audio is base.speed is None
    clip = world.emo.conditions(params, motion=latents[:, 1:], speed=world.inputs["speed"], base=base)
    assert clip.reference is base.reference and clip.location is base.location and clip.audio is None
    both = world.emo.conditions(params, reference=latents[:, :1], motion=latents[:, 1:])
    for layer, features in both.motion.items():
        np.testing.assert_allclose(features, clip.motion[layer], atol=1e-5)


@pytest.mark.slow
def test_spatial_attention_commutes_with_transposing_the_image():
    """Height and width must not be confused."""
    module = SpatialTransformer(heads=2, groups=4, reference="cross")
    x, reference = (jax.random.normal(jax.random.key(k), (1, 2 - k, 4, 6, 8)) for k in (0, 1))
    variables, run = jax.jit(module.init)(jax.random.key(2), x, reference), jax.jit(module.apply)
    out, feature = run(variables, x, reference)
    transposed, feature_transposed = run(variables, x.swapaxes(2, 3), reference.swapaxes(2, 3))
    np.testing.assert_allclose(transposed, out.swapaxes(2, 3), atol=1e-5)
    np.testing.assert_allclose(feature_transposed, feature.swapaxes(2, 3), atol=1e-5)
    assert np.abs(out - x).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("positions", [False, True])
def test_reference_attention_depends_on_places_only_with_positions(positions):
    layer = SpatialTransformer(heads=2, groups=8, reference="cross", positions=positions)
    x, reference = np.random.default_rng(0).normal(size=(2, 1, 1, 4, 4, 16)).astype(np.float32)
    params = layer.init(jax.random.key(0), x, reference)
    outputs = [layer.apply(params, x, r)[0] for r in (reference, reference[:, :, ::-1])]
    assert (np.abs(outputs[0] - outputs[1]).max() > 1e-3) == positions


def test_new_reference_attention_prefers_nearby_places():
    """Encodings of nearby places are similar, and queries and keys start aligned."""
    emo, encodings = build(small_config()), grid_positions(6, 5, 32)
    rows, columns = np.divmod(np.arange(30), 5)
    distance = np.hypot(rows - rows[:, None], columns - columns[:, None])
    path = "backbone/down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_{}/kernel"
    query, key = (encodings @ emo.init_param(path.format(name), (32, 32), jax.random.key(1)) for name in "qk")
    assert float((encodings**2).mean()) == pytest.approx(1)
    for head in (slice(0, 16), slice(16, 32)):
        scores = np.asarray(query[:, head] @ key[:, head].T)
        assert np.mean([np.corrcoef(s, d)[0, 1] for s, d in zip(scores, distance, strict=True)]) < -0.5


@pytest.mark.slow
def test_temporal_modules_attend_over_the_frames_of_a_place_and_drop_motion_frames():
    module = MotionModule(heads=2, groups=4)
    x, motion = (jax.random.normal(jax.random.key(k), (1, 3 - k, 4, 6, 8)) for k in (0, 1))
    variables, run = jax.jit(module.init)(jax.random.key(2), x, motion), jax.jit(module.apply)
    out = run(variables, x, motion)
    assert out.shape == x.shape
    # Swapping two places keeps the norm's statistics.
    swapped = x.at[:, 1, 0, 0].set(x[:, 1, 0, 1]).at[:, 1, 0, 1].set(x[:, 1, 0, 0])
    moved = np.abs(run(variables, swapped, motion) - out).max(axis=(0, 4))  # (f, h, w)
    assert moved[:, 0, :2].min() > 1e-4  # all frames of the two places
    assert moved[:, 1:].max() < 1e-5 and moved[:, 0, 2:].max() < 1e-5
    before = motion.at[:, 1, 2, 3].set(motion[:, 1, 2, 4]).at[:, 1, 2, 4].set(motion[:, 1, 2, 3])
    moved = np.abs(run(variables, x, before) - out).max(axis=(0, 4))
    assert moved[:, 2, 3:5].min() > 1e-5 and moved[:, 0].max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("positions", [False, True])
def test_speed_layers_distinguish_the_order_of_speeds_only_with_positions(positions):
    """Rising and falling speeds are the same set; motion frames shift the positions of both queries and context."""
    module = MotionModule(heads=2, groups=4, speed=True, speed_positions=positions)
    rng = np.random.default_rng(0)
    x, motion, speed = (rng.normal(size=s).astype(np.float32) for s in ((1, 4, 2, 2, 8), (1, 2, 2, 2, 8), (1, 4, 6)))
    variables, run = module.init(jax.random.key(2), x, motion, speed), jax.jit(module.apply)
    for frames in (motion, None):
        rising, falling = (run(variables, x, frames, s) for s in (speed, speed[:, ::-1]))
        assert (np.abs(rising - falling).max() > 1e-2) == positions
        assert (np.abs(rising - falling).max() < 1e-5) != positions


def test_weights_without_the_field_of_speed_positions_keep_their_meaning():
    config = small_config(speed_positions=True)
    assert build(config).backbone.config.speed_positions
    del config.model["speed_positions"]
    assert not build(config).backbone.config.speed_positions
    assert base.get_config().model.speed_positions and not small_config().model.speed_positions


@pytest.mark.slow
def test_temporal_modules_keep_the_order_of_frames():
    """Without attention and feed-forward network, each output frame depends on its own input frame only."""
    module = MotionModule(heads=2, groups=4)
    x, motion = (jax.random.normal(jax.random.key(k), (1, 3 - k, 2, 2, 8)) for k in (0, 1))
    flat = flatten_dict(jax.jit(module.init)(jax.random.key(2), x, motion), sep="/")
    without = {path: a * (not re.search("to_out_0|net_2", path)) for path, a in flat.items()}
    variables, run = unflatten_dict(without, sep="/"), jax.jit(module.apply)
    out = run(variables, x, motion)
    assert np.abs(out - x).min(axis=(0, 2, 3, 4)).max() > 0
    np.testing.assert_allclose(run(variables, x, -motion), out, atol=1e-6)
    moved = np.abs(run(variables, x.at[:, 1].multiply(-2.0), motion) - out).max(axis=(0, 2, 3, 4))
    assert moved[1] > 0.1 and moved[0] < 1e-6 and moved[2] < 1e-6

"""Eight defects found in the code of EMO's relatives, each with a test that this project does not have it.

The second is also tested by gradients, where steps are compiled: test_trap_2_... in training/test_first_steps.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.schedule import make_schedule
from emo_jax.generation import sampler as sampling
from emo_jax.generation.sampler import VideoSampler
from emo_jax.media.timing import frame_count
from emo_jax.models.emo import build
from emo_jax.training.step import make_loss
from tests.echo import RecordingRule, echo, oracle
from tests.small import small_config
from tests.steps import FAST, fixed_batch, training_config

GREY = 200  # brightness of the videos below; as a latent of EchoEMO 200 / 127.5 - 1


def sampler_of(config, rule, **options):
    config.sampling.update(options)
    return VideoSampler(echo(config, rule), {}, config.sampling)


def stream(sampler, samples, size=1):
    side = sampler.emo.config.clip.image_size
    sound = np.random.default_rng(0).uniform(-0.2, 0.2, (size, samples)).astype(np.float32)
    portraits, masks = np.full((size, *side, 3), 90, np.uint8), np.ones((size, *side, 1), np.uint8)
    return sampler.stream(portraits, masks, sound, key=jax.random.key(0))


def loss_of(emo, config, batch):
    """Returns the loss of the config's stage, compiled as one program."""
    arguments = {}, batch, jax.random.key(3)
    return jax.jit(make_loss(emo, config)).lower(*arguments).compile(FAST)(*arguments)[0]


@pytest.mark.parametrize("changes", [
    dict(),
    pytest.param(dict(beta_schedule="linear", zero_terminal_snr=False, prediction="eps"), marks=pytest.mark.slow),
    pytest.param(dict(beta_end=0.03, zero_terminal_snr=False), marks=pytest.mark.slow),
])  # fmt: skip
def test_trap_1_one_schedule_serves_training_and_sampling(changes):
    """An oracle that knows the clean latents and the config's schedule has loss 0, and samples those latents."""
    config = training_config("video")
    config.diffusion.update(changes)
    rule = oracle(make_schedule(config.diffusion), GREY / 127.5 - 1)
    batch = fixed_batch(config)
    batch["frames"][:] = GREY
    assert loss_of(echo(config, rule), config, batch) < 1e-6
    frames = next(stream(sampler_of(config, rule, steps=4), 5120))
    np.testing.assert_allclose(frames, GREY, atol=1)

    config.diffusion.beta_start = 0.01  # another schedule than the oracle's must show in both
    assert loss_of(echo(config, rule), config, batch) > 1e-4
    frames = next(stream(sampler_of(config, rule, steps=4), 5120))
    assert np.abs(frames.astype(float) - GREY).max() > 1


@pytest.mark.slow
def test_trap_2_remat_skips_nothing():
    def count_primitives(**unet):
        config = training_config("speed")
        config.model.unet.update(unet)
        emo = build(config)
        loss, batch = make_loss(emo, config), fixed_batch(config)
        jaxpr = jax.make_jaxpr(loss)(emo.abstract_params(), batch, jax.random.key(0))
        return {name: count(jaxpr, name) for name in ("dot_general", "conv_general_dilated", "remat2", "checkpoint")}

    plain, *rematted = (count_primitives(remat=remat) for remat in ("none", "blocks", "dots"))
    checkpoints = [counts.pop("remat2") + counts.pop("checkpoint") for counts in (plain, *rematted)]
    assert checkpoints[0] == 0 and min(checkpoints[1:]) > 0
    assert rematted == [plain, plain] and plain["dot_general"] > 100


def count(jaxpr, primitive):
    """Counts a primitive in a jaxpr and the jaxprs inside it."""
    jaxpr, total = getattr(jaxpr, "jaxpr", jaxpr), 0
    for eqn in jaxpr.eqns:
        total += eqn.primitive.name == primitive
        inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"))
        total += sum(count(v, primitive) for v in inner if hasattr(getattr(v, "jaxpr", v), "eqns"))
    return total


def test_trap_3_first_clip_is_conditioned_as_in_training():
    config = training_config("speed")
    config.diffusion.prediction = "x0"
    sampled, trained = RecordingRule(0.25), RecordingRule()
    list(stream(sampler_of(config, sampled), 16 * 640))  # two segments of two clips of four frames, two steps each
    motion = [inputs["motion"]["layer"] for inputs in sampled.calls]
    assert len(motion) == 8
    assert not motion[0].any() and not motion[1].any()
    for later in motion[2:]:
        np.testing.assert_allclose(later, 0.25, rtol=1e-5)  # the frames before, also across segments

    batch = fixed_batch(config)  # its second sample starts a video; its motion frames are noise and must be ignored
    loss_of(echo(config, trained), config, batch)
    jax.effects_barrier()
    (inputs,) = trained.calls
    assert inputs["motion"]["layer"][0].any()
    np.testing.assert_array_equal(inputs["motion"]["layer"][1], motion[0][0])
    assert inputs["motion"].keys() == sampled.calls[0]["motion"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("size, mode", [((64, 128), "cross"), ((128, 64), "concat")])
def test_trap_4_height_and_width_may_differ(size, mode):
    config = training_config("speed")
    config.model.reference_attention = mode
    config.clip.image_size = size
    emo, batch = build(config), fixed_batch(config)
    loss, _ = jax.eval_shape(make_loss(emo, config), emo.abstract_params(), batch, jax.random.key(0))
    assert loss.shape == ()
    assert _video_shape(emo, config) == (1, 8, *size, 3)


def _video_shape(emo, config):
    """Returns the shape of a segment's frames without computing them."""
    sampler, clip = VideoSampler(emo, {}, config.sampling), config.clip
    samples = fixed_batch(config, 1)["audio"].shape[1] + 640 * clip.frames

    def segment(params, portrait, mask, audio, motion, key):
        known, held, carry = sampler._prepare_fn(params, portrait, mask, None, None, None, jnp.ones(3))
        assert carry[0].shape == motion.shape
        speed = jnp.zeros((1, sampler.frames_per_segment + 2 * clip.audio_window))
        carry, latents = sampler._segment_fn(params, known, carry, (audio, speed, key, 0, 2), (1.0, 1.0), held)
        assert carry[0].shape == motion.shape
        return sampler._decode_fn(params, latents, 2)

    return jax.eval_shape(
        segment, emo.abstract_params(), np.zeros((1, *clip.image_size, 3), np.uint8),
        np.zeros((1, *clip.image_size, 1), np.uint8), np.zeros((1, samples), np.float32),
        np.zeros((1, clip.motion_frames, *emo.latent_shape), np.float32), jax.random.key(0),
    ).shape  # fmt: skip


def test_trap_5_video_is_as_long_as_the_sound():
    sampler = sampler_of(training_config("speed"), RecordingRule())
    for samples in (640, 641, 3200, 5120, 5121, 9000, 12801):
        frames = np.concatenate(list(stream(sampler, samples)), axis=1)
        assert frames.shape[1] == -(-samples * 25 // 16000) == frame_count(samples, 25)
    assert sampler.compilations() == 1


def test_a_video_has_no_more_clips_than_its_sound():
    """Two seconds are 50 frames, 13 clips of four."""
    config = training_config("speed")
    config.sampling.update(clips=8, steps=1)
    rule = RecordingRule()
    list(stream(sampler_of(config, rule), 32000))
    jax.effects_barrier()
    assert len(rule.calls) == 13


@pytest.mark.parametrize("pixels", [1, 2**10, 5 * 2**10, 2**20])
def test_trap_6_frames_are_decoded_in_order_for_any_chunk_size(monkeypatch, pixels):
    sampler = sampler_of(training_config("speed"), RecordingRule())
    counts = []

    def decode(emo, params, latents, references):
        counts.append(latents.shape[1])
        return latents + 0.5

    monkeypatch.setattr(sampling, "_DECODED_PIXELS", pixels * 4)
    monkeypatch.setattr(sampling, "decode_frames", decode)
    latents = np.random.default_rng(0).normal(size=(3, 2, 4, 1, 1, 5)).astype(np.float32)  # K, B, f
    assert not np.any(sampler._decode_fn({}, latents, 2)[:, 8:])
    frames = sampler._decode_fn({}, latents, 3)
    np.testing.assert_array_equal(frames, np.moveaxis(latents, 0, 1).reshape(2, 12, 1, 1, 5) + np.float32(0.5))
    assert 12 % counts[0] == 0 and counts[0] * 2 * 64 * 64 <= max(pixels * 4, 2 * 64 * 64)


def test_trap_6_segments_are_decoded_as_they_are_finished():
    sampler = sampler_of(training_config("speed"), RecordingRule())
    events = []
    for name in ("_segment", "_decode"):
        setattr(sampler, name, _logged(events, name, getattr(sampler, name)))
    finished = stream(sampler, 40 * 640)
    for taken in range(6):
        frames = next(finished)
        assert frames.shape == (1, 4 if taken in (0, 5) else 8, 64, 64, 3)  # of ten clips: one, then two at a time
        wanted = min(taken + 2, 6)  # exactly one segment is computed ahead
        assert events.count("_segment") == events.count("_decode") == wanted
    assert next(finished, None) is None
    assert events == ["_segment", "_decode"] * 6


def _logged(events, name, function):
    def call(*args):
        events.append(name)
        return function(*args)

    return call


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_trap_7_snr_weights_are_applied_to_each_sample_before_the_mean(prediction):
    config = training_config("video")
    config.diffusion.update(min_snr_gamma=5.0, zero_terminal_snr=False, prediction=prediction)
    config.train.update(drop_reference=0.0, drop_audio=0.0)
    recorder, batch = RecordingRule(0.0), fixed_batch(config, 16)
    emo, schedule = echo(config, recorder), make_schedule(config.diffusion)
    loss = loss_of(emo, config, batch)
    jax.effects_barrier()
    (inputs,) = recorder.calls
    alpha, sigma = (np.asarray(a, np.float64)[inputs["timesteps"]] for a in (schedule.alphas, schedule.sigmas))
    x0 = np.asarray(emo.encode({}, batch["frames"]), np.float64)
    a, s = (c.reshape(-1, 1, 1, 1, 1) for c in (alpha, sigma))
    target = x0 if prediction == "x0" else a * (inputs["latents"] - a * x0) / s - s * x0
    error = (target**2).mean(axis=(1, 2, 3, 4))
    snr = (alpha / sigma) ** 2
    weight = np.minimum(snr, 5) / (1 if prediction == "x0" else snr + 1)
    np.testing.assert_allclose(loss, (weight * error).mean(), rtol=1e-3)
    assert abs(weight.mean() * error.mean() / (weight * error).mean() - 1) > 5e-3  # the defect would show


def test_trap_8_frames_are_decoded_as_one_batch():
    emo = build(small_config())
    params = emo.abstract_params()

    def program(frames):
        latents = jnp.zeros((1, frames, *emo.latent_shape))
        return jax.make_jaxpr(emo.decode)(params, latents)

    one, many = program(1), program(12)
    convolutions = count(one, "conv_general_dilated")
    assert convolutions > 10
    for primitive in ("conv_general_dilated", "dot_general", "scan", "while"):
        assert count(one, primitive) == count(many, primitive)
    assert count(many, "scan") + count(many, "while") == 0
    assert many.out_avals[0].shape == (1, 12, 64, 64, 3)

"""The losses, against formulas, with networks that are formulas themselves (tests/echo.py)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.schedule import make_schedule
from emo_jax.models.emo import build
from emo_jax.models.vae import VAE
from emo_jax.training.loop import train
from emo_jax.training.losses import denoising_loss, drop_patches, face_weights, weigh_motion
from emo_jax.training.stages import get_stage
from emo_jax.training.vae_losses import vae_loss
from tests.echo import RecordingRule, echo
from tests.steps import FAST, fixed_batch, training_config


def conditions_of(stage, size=2, batch=None, **train):
    """Returns the Backbone's inputs in one loss of a stage, the metrics, the batch and the networks."""
    config = training_config(stage)
    config.diffusion.min_snr_gamma = 0.0
    config.train.update(dict(drop_reference=0.0, drop_audio=0.0, motion_noise=0.0) | train)
    recorder = RecordingRule()
    emo = echo(config, recorder)
    batch = fixed_batch(config, size) if batch is None else batch
    schedule = make_schedule(config.diffusion)
    loss_fn = jax.jit(functools.partial(denoising_loss, emo, schedule, get_stage(stage), config.train))
    loss, metrics = loss_fn.lower({}, batch, jax.random.key(0)).compile(FAST)({}, batch, jax.random.key(0))
    jax.effects_barrier()
    (inputs,) = recorder.calls
    return inputs, dict(metrics, loss=loss, temporal=recorder.temporal), batch, emo


@pytest.mark.parametrize("stage, parts, temporal", [
    ("image", {"reference", "location"}, False),
    ("video", {"reference", "location", "motion", "audio"}, True),
    ("speed", {"reference", "location", "motion", "audio", "speed"}, True),
])  # fmt: skip
def test_conditions_of_each_stage(stage, parts, temporal):
    inputs, metrics, batch, emo = conditions_of(stage)
    assert set(inputs) == parts | {"latents", "timesteps"} and metrics["temporal"] == temporal
    np.testing.assert_allclose(inputs["reference"]["layer"], emo.encode({}, batch["reference"][:, None]), atol=1e-6)
    np.testing.assert_array_equal(inputs["location"][:, 0], batch["mask"])
    if temporal:
        motion = np.array(emo.encode({}, batch["motion"])) * batch["has_motion"][:, None, None, None, None]
        np.testing.assert_allclose(inputs["motion"]["layer"], motion, atol=1e-6)
        assert inputs["audio"].shape[:2] == (2, 4)


def dropped(inputs):
    """Returns (reference dropped, audio dropped), each (64,) bool."""
    return [(values.reshape(64, -1) == 0).all(1) for values in (inputs["reference"]["layer"], inputs["audio"])]


@pytest.mark.slow
def test_conditions_are_dropped_per_sample_at_the_given_rates():
    inputs, *_ = conditions_of("video", size=64, drop_reference=0.5, drop_audio=0.25)
    for values, rate in ((inputs["reference"]["layer"], 0.5), (inputs["audio"], 0.25)):
        flat = values.reshape(64, -1)
        zero = (flat == 0).all(axis=1)
        assert ((flat == 0).any(axis=1) == zero).all()
        assert abs(zero.mean() - rate) < 0.16
    reference_dropped, audio_dropped = dropped(inputs)
    assert (reference_dropped != audio_dropped).any()  # two draws, not one
    inputs, *_ = conditions_of("video", size=64, drop_both=0.3)
    reference_dropped, audio_dropped = dropped(inputs)
    assert (reference_dropped == audio_dropped).all() and abs(audio_dropped.mean() - 0.3) < 0.16
    kept, *_ = conditions_of("video", size=64)
    assert kept["reference"]["layer"].reshape(64, -1).any(axis=1).all() and kept["motion"]["layer"][::2].any()


def test_audio_of_samples_without_sound_is_null():
    batch = fixed_batch(training_config("video"), 2) | {"has_sound": np.array([True, False])}
    batch["audio"][1] = 0  # normalization must not make a silent sample infinite
    inputs, metrics, *_ = conditions_of("video", batch=batch)
    assert inputs["audio"][0].any() and not inputs["audio"][1].any() and np.isfinite(metrics["loss"])
    assert inputs["reference"]["layer"][1].any()


def test_motion_noise_does_not_change_the_reference():
    clean, *_ = conditions_of("video")
    noisy, *_ = conditions_of("video", motion_noise=0.3)
    np.testing.assert_array_equal(clean["reference"]["layer"], noisy["reference"]["layer"])
    moved = (noisy["motion"]["layer"] - clean["motion"]["layer"])[0]
    assert 0.2 < moved.std() < 0.4
    assert not noisy["motion"]["layer"][1].any()  # the first clip of a video


def test_loss_of_each_third_of_the_timesteps():
    inputs, metrics, batch, emo = conditions_of("video", size=64)
    schedule = make_schedule(emo.config.diffusion)
    t = inputs["timesteps"]
    assert t.min() >= 0 and t.max() < 1000 and len(set(t.tolist())) > 50
    alpha, sigma = (np.asarray(a)[t].reshape(-1, 1, 1, 1, 1) for a in (schedule.alphas, schedule.sigmas))
    x0 = np.asarray(emo.encode({}, batch["frames"]))
    noise = (inputs["latents"] - alpha * x0) / sigma
    error = ((alpha * noise - sigma * x0 - 0.5) ** 2).mean(axis=(1, 2, 3, 4))  # v-prediction, always 0.5
    np.testing.assert_allclose(metrics["loss"], error.mean(), rtol=1e-3)
    for band in range(3):
        inside = (t >= band * 1000 / 3) & (t < (band + 1) * 1000 / 3)
        total, count = metrics[f"loss_t{band}"]
        np.testing.assert_allclose(total / count, error[inside].mean(), rtol=1e-3)
        np.testing.assert_allclose(count, inside.mean(), rtol=1e-6)


def test_face_weight_scales_the_error_in_the_face():
    batch = fixed_batch(training_config("video"), 2)
    face = np.s_[..., 16:32, 16:48, :]
    batch["mask"][:] = 0
    batch["mask"][face], batch["frames"][face] = 1, 255
    metrics = [conditions_of("video", batch=batch, face_weight=w)[1] for w in (1.0, 4.0)]
    inputs, _, _, emo = conditions_of("video", batch=batch)
    schedule = make_schedule(emo.config.diffusion)
    alpha, sigma = (np.asarray(a)[inputs["timesteps"], *[None] * 4] for a in (schedule.alphas, schedule.sigmas))
    x0 = np.asarray(emo.encode({}, batch["frames"]))
    error = (alpha * (inputs["latents"] - alpha * x0) / sigma - sigma * x0 - 0.5) ** 2  # v-prediction, always 0.5
    weight = np.asarray(face_weights(batch["mask"], x0.shape[2:4], 4.0))
    np.testing.assert_allclose(metrics[1]["loss"], (error * weight).mean(), rtol=1e-3)
    assert abs(metrics[1]["loss"] / metrics[0]["loss"] - 1) > 1e-2


def test_face_weights_of_a_partly_covered_position():
    mask = np.zeros((2, 8, 8, 1), np.uint8)
    mask[0, :4, :2] = 1  # half of the upper left of 2 x 2 positions
    weights = np.asarray(face_weights(mask, (2, 2), 5.0))
    np.testing.assert_allclose(weights[:, 0, :, :, 0], [np.array([[3, 1], [1, 1]]) / 1.5, np.ones((2, 2))])


def test_the_mouth_of_a_face_weighs_more():
    mask = np.zeros((1, 40, 40, 1), np.uint8)
    mask[0, 10:30, 4:24] = 1
    weights = np.asarray(face_weights(mask, (20, 20), 2.0, 3.0))[0, 0, :, :, 0]
    expected = np.ones((20, 20))
    expected[5:15, 2:12] = 2
    expected[11:15, 3:11] = [[4], [6], [6], [4]]  # rows 23 to 28, columns 6 to 21, by conditions.LIP_REGION
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)
    nobody = np.asarray(face_weights(np.zeros_like(mask), (20, 20), 2.0, 3.0))
    np.testing.assert_array_equal(nobody, np.ones_like(nobody))


def test_motion_weight_counts_deviations_from_the_mean_of_the_clip():
    rng = np.random.default_rng(0)
    error = jnp.asarray(rng.normal(size=(2, 5, 2, 2, 3)), jnp.float32)
    mean, deviation = error.mean(1), error - error.mean(1, keepdims=True)
    weighed = weigh_motion(error, 4.0)
    np.testing.assert_allclose((weighed**2).mean(), (mean**2).mean() + 4 * (deviation**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(weigh_motion(error, 1.0), error, rtol=1e-6)


def test_vae_loss():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, 8, 8, 3)).astype(np.uint8)
    mean, logvar = rng.normal(size=(2, 2, 1, 2, 2, 4)).astype(np.float32)
    decoded = rng.normal(size=images.shape).astype(np.float32)
    latents = []

    class FormulaVAE(VAE):
        @nn.nowrap
        def apply(self, variables, x, method):
            assert variables == {"params": {"conv_in": "weights"}}
            if method == "moments":
                np.testing.assert_allclose(x, images / 127.5 - 1, atol=1e-6)
                return mean, logvar
            latents.append(x)
            return jnp.asarray(decoded)

    config = training_config("vae")
    config.train.update(kl_weight=0.1, face_weight=3.0)
    emo = build(config)
    emo = dataclasses.replace(emo, vae=FormulaVAE(emo.vae.config))
    batch = {"frames": images, "mask": np.zeros((2, 8, 8, 1), np.uint8)}
    batch["mask"][:, 2:4, :4] = 1
    losses = [vae_loss(emo, config.train, {"vae": {"conv_in": "weights"}}, batch, jax.random.key(k)) for k in (0, 1)]
    (loss, metrics), _ = losses
    error = decoded - (images / 127.5 - 1)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], -10 * np.log10((error**2).mean() / 4), rtol=1e-4)
    weight = (1 + 2 * batch["mask"][:, None]) / (1 + 2 / 8)
    wanted = (np.abs(error) * weight).mean() + (error**2 * weight).mean() + 0.1 * kl
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    assert "gradient" not in metrics

    config.train.gradient_weight = 2.0
    loss, metrics = vae_loss(emo, config.train, {"vae": {"conv_in": "weights"}}, batch, jax.random.key(0))
    columns, rows = (np.abs(np.diff(error, axis=axis)) for axis in (2, 3))
    gradient = (columns * weight[:, :, 1:]).mean() + (rows * weight[:, :, :, 1:]).mean()
    np.testing.assert_allclose(metrics["gradient"], gradient, rtol=1e-4)
    np.testing.assert_allclose(loss, wanted + 2 * gradient, rtol=1e-4)
    latents = latents[:2]

    draws = [(np.asarray(z) - mean) / np.exp(0.5 * logvar) for z in latents]
    assert not np.allclose(*draws) and 0.5 < np.std(draws) < 1.5  # another z for another key


@pytest.mark.parametrize("size", [1, 2, 3])
def test_drop_patches_zeroes_a_share_of_each_frame_in_squares(size):
    latents = jnp.ones((4, 3, 8, 12, 2))
    dropped = np.asarray(drop_patches(jax.random.key(0), latents, 0.25, size))
    assert set(np.unique(dropped)) == {0, 1}
    np.testing.assert_array_equal(dropped[..., 0], dropped[..., 1])
    assert abs(dropped.mean() - 0.75) < 0.1
    corners = dropped[:, :, ::size, ::size]
    expected = corners.repeat(size, axis=2).repeat(size, axis=3)[:, :, :8, :12]
    np.testing.assert_array_equal(dropped, expected)
    assert not np.array_equal(dropped[0, 0], dropped[0, 1]) and not np.array_equal(dropped[0], dropped[1])


def test_patches_are_dropped_from_motion_frames_only():
    plain, *_ = conditions_of("video")
    dropped, *_ = conditions_of("video", motion_patch_drop=0.25)
    reference, motion = (dropped[name]["layer"] for name in ("reference", "motion"))
    np.testing.assert_array_equal(reference, plain["reference"]["layer"])
    kept = motion == plain["motion"]["layer"]
    assert (kept | (motion == 0)).all() and 0 < (~kept).mean() < 0.5


@pytest.mark.parametrize(
    "field, value", [("motion_patch_drop", 1.0), ("motion_patch_drop", -0.1), ("motion_patch_size", 0)]
)
def test_patch_drop_out_of_range_raises(field, value, tmp_path):
    config = training_config("video")
    config.train[field] = value
    with pytest.raises(ValueError, match=field):
        train(config, tmp_path)

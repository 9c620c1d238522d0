"""The losses, against formulas, with networks that are formulas too (tests/echo.py)."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax.diffusion.schedule import make_schedule
from emo_jax.models.emo import EMO
from emo_jax.training.losses import denoising_loss, face_weights, vae_loss
from emo_jax.training.stages import get_stage
from tests.echo import Listener, echo
from tests.steps import fixed_batch, training_config


def conditions_of(stage, size=2, batch=None, **train):
    """What the Backbone is handed in one loss of a stage, and the loss's metrics."""
    config = training_config(stage)
    config.diffusion.min_snr_gamma = 0.0
    config.train.update(dict(drop_reference=0.0, drop_audio=0.0, motion_noise=0.0) | train)
    listener = Listener()
    emo = echo(config, listener)
    batch = fixed_batch(config, size) if batch is None else batch
    loss, metrics = denoising_loss(
        emo, make_schedule(config.diffusion), get_stage(stage), config.train, {}, batch, jax.random.key(0)
    )
    jax.effects_barrier()
    (seen,) = listener.seen
    return seen, dict(metrics, loss=loss, temporal=listener.temporal), batch, emo


@pytest.mark.parametrize("stage, parts, temporal", [
    ("image", {"reference", "location"}, False),
    ("video", {"reference", "location", "motion", "audio"}, True),
    ("speed", {"reference", "location", "motion", "audio", "speed"}, True),
])  # fmt: skip
def test_each_stage_is_fed_its_conditions(stage, parts, temporal):
    seen, told, batch, emo = conditions_of(stage)
    assert set(seen) == parts | {"latents", "timesteps"} and told["temporal"] == temporal
    np.testing.assert_allclose(seen["reference"]["layer"], emo.encode({}, batch["reference"][:, None]), atol=1e-6)
    np.testing.assert_array_equal(seen["location"][:, 0], batch["mask"])
    if temporal:
        motion = np.array(emo.encode({}, batch["motion"])) * batch["has_motion"][:, None, None, None, None]
        np.testing.assert_allclose(seen["motion"]["layer"], motion, atol=1e-6)
        assert seen["audio"].shape[:2] == (2, 4)


def test_dropped_conditions_are_zeros_for_whole_samples_at_the_rate():
    seen, *_ = conditions_of("video", size=64, drop_reference=0.5, drop_audio=0.25)
    for values, rate in ((seen["reference"]["layer"], 0.5), (seen["audio"], 0.25)):
        flat = values.reshape(64, -1)
        dropped = (flat == 0).all(axis=1)
        assert ((flat == 0).any(axis=1) == dropped).all()
        assert abs(dropped.mean() - rate) < 0.16
    reference_gone, audio_gone = ((v.reshape(64, -1) == 0).all(1) for v in (seen["reference"]["layer"], seen["audio"]))
    assert (reference_gone != audio_gone).any()  # two draws, not one
    seen, *_ = conditions_of("video", size=64, drop_both=0.3)
    reference_gone, audio_gone = ((v.reshape(64, -1) == 0).all(1) for v in (seen["reference"]["layer"], seen["audio"]))
    assert (reference_gone == audio_gone).all() and abs(audio_gone.mean() - 0.3) < 0.16
    kept, *_ = conditions_of("video", size=64)
    assert kept["reference"]["layer"].reshape(64, -1).any(axis=1).all() and kept["motion"]["layer"][::2].any()


def test_noise_on_motion_frames_leaves_the_reference_alone():
    clean, *_ = conditions_of("video")
    noisy, *_ = conditions_of("video", motion_noise=0.3)
    np.testing.assert_array_equal(clean["reference"]["layer"], noisy["reference"]["layer"])
    moved = (noisy["motion"]["layer"] - clean["motion"]["layer"])[0]
    assert 0.2 < moved.std() < 0.4
    assert not noisy["motion"]["layer"][1].any()  # the first clip of a video


def test_the_loss_of_each_third_of_the_timesteps():
    seen, told, batch, emo = conditions_of("video", size=64)
    schedule = make_schedule(emo.config.diffusion)
    t = seen["timesteps"]
    assert t.min() >= 0 and t.max() < 1000 and len(set(t.tolist())) > 50
    alpha, sigma = (np.asarray(a)[t].reshape(-1, 1, 1, 1, 1) for a in (schedule.alphas, schedule.sigmas))
    x0 = np.asarray(emo.encode({}, batch["frames"]))
    noise = (seen["latents"] - alpha * x0) / sigma
    error = ((alpha * noise - sigma * x0 - 0.5) ** 2).mean(axis=(1, 2, 3, 4))  # v-prediction, always 0.5
    np.testing.assert_allclose(told["loss"], error.mean(), rtol=1e-3)
    for band in range(3):
        inside = (t >= band * 1000 / 3) & (t < (band + 1) * 1000 / 3)
        total, count = told[f"loss_t{band}"]
        np.testing.assert_allclose(total / count, error[inside].mean(), rtol=1e-3)
        np.testing.assert_allclose(count, inside.mean(), rtol=1e-6)


def test_the_face_counts_more_in_the_loss():
    batch = fixed_batch(training_config("video"), 2)
    face = np.s_[..., 16:32, 16:48, :]
    batch["mask"][:] = 0
    batch["mask"][face], batch["frames"][face] = 1, 255
    told = [conditions_of("video", batch=batch, face_weight=w)[1] for w in (1.0, 4.0)]
    seen, _, _, emo = conditions_of("video", batch=batch)
    schedule = make_schedule(emo.config.diffusion)
    alpha, sigma = (np.asarray(a)[seen["timesteps"], *[None] * 4] for a in (schedule.alphas, schedule.sigmas))
    x0 = np.asarray(emo.encode({}, batch["frames"]))
    error = (alpha * (seen["latents"] - alpha * x0) / sigma - sigma * x0 - 0.5) ** 2  # v-prediction, always 0.5
    weight = np.asarray(face_weights(batch["mask"], x0.shape[2:4], 4.0))
    np.testing.assert_allclose(told[1]["loss"], (error * weight).mean(), rtol=1e-3)
    assert abs(told[1]["loss"] / told[0]["loss"] - 1) > 1e-2


def test_weights_of_a_region_that_covers_places_in_part():
    mask = np.zeros((2, 8, 8, 1), np.uint8)
    mask[0, :4, :2] = 1  # half of the upper left place of 2 x 2
    weights = np.asarray(face_weights(mask, (2, 2), 5.0))
    np.testing.assert_allclose(weights[:, 0, :, :, 0], [np.array([[3, 1], [1, 1]]) / 1.5, np.ones((2, 2))])


def test_the_vaes_loss_is_its_formula():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, 8, 8, 3)).astype(np.uint8)
    mean, logvar = rng.normal(size=(2, 2, 1, 2, 2, 4)).astype(np.float32)
    decoded = rng.normal(size=images.shape).astype(np.float32)
    latents = []

    def apply(variables, x, method):
        assert variables == {"params": {"conv_in": "weights"}}
        if method == "moments":
            np.testing.assert_allclose(x, images / 127.5 - 1, atol=1e-6)
            return mean, logvar
        latents.append(x)
        return jnp.asarray(decoded)

    emo = mock.create_autospec(EMO, instance=True, vae=SimpleNamespace(apply=apply))
    config = ConfigDict(dict(kl_weight=0.1, face_weight=3.0))
    batch = {"frames": images, "mask": np.zeros((2, 8, 8, 1), np.uint8)}
    batch["mask"][:, 2:4, :4] = 1
    losses = [vae_loss(emo, config, {"vae": {"conv_in": "weights"}}, batch, jax.random.key(k)) for k in (0, 1)]
    (loss, told), _ = losses
    error = decoded - (images / 127.5 - 1)
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean()
    np.testing.assert_allclose(told["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(told["psnr"], -10 * np.log10((error**2).mean() / 4), rtol=1e-4)
    weight = (1 + 2 * batch["mask"][:, None]) / (1 + 2 / 8)
    wanted = (np.abs(error) * weight).mean() + (error**2 * weight).mean() + 0.1 * kl
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    draws = [(np.asarray(z) - mean) / np.exp(0.5 * logvar) for z in latents]
    assert not np.allclose(*draws) and 0.5 < np.std(draws) < 1.5  # z is drawn, anew for each key

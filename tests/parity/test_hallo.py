"""hallo's networks against its own code, recorded for small random weights in shared/reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.generation.guided import guided_denoiser
from emo_jax.models.conditions import mask_conditions
from emo_jax.models.emo import build
from tests.parity import relatives
from tests.parity.relatives import banks, layer_of, needs_reference, relative_error, video

pytestmark = [needs_reference, pytest.mark.slow]  # make test compares with test_hallo_modules.py
TOLERANCE = 1e-5
TIMES = (999, 499)


@pytest.fixture(scope="module")
def truth():
    return relatives.load("hallo_small_truth")


@pytest.fixture(scope="module")
def model():
    """The networks, and their params from the tensors by the names of net.pth."""
    emo = build(relatives.hallo_config())
    params, report = relatives.hallo_params(emo)
    assert report.used["hallo"] == 2464 and len(report.unused["hallo"]) == 192
    return emo, params


@pytest.fixture(scope="module")
def encoded(model, truth):
    """The conditions without guidance and, as hallo tiles them, with guidance."""
    emo, params = model
    latents = np.moveaxis(truth["in.ref_latents"], 1, -1)[None]
    inputs = dict(
        reference=latents[:, :1],
        motion=latents[:, 1:],
        audio=truth["in.audio_emb"][np.clip(np.arange(-2, 5), 0, 2)][None],
        mask=np.moveaxis(truth["in.face_region"], 1, -1)[..., :1],
        face=truth["in.face_emb"],
        regions=relatives.regions(truth),
        branch_weights=np.array([[0.7, 1.3, 1.1]], np.float32),
    )

    @jax.jit
    def compute(params, inputs):
        return [emo.conditions(params, **inputs, tiled=tiled) for tiled in (False, True)]

    return compute(params, inputs)


@pytest.fixture(scope="module")
def denoise(model):
    emo, params = model
    jitted = jax.jit(emo.denoise)
    return lambda x, times, conditions: jitted(params, x, jnp.asarray(times), conditions)


def test_projections_and_locator(encoded, truth):
    plain, _ = encoded
    assert relative_error(plain.audio, truth["audio.tokens"]) < TOLERANCE
    assert relative_error(plain.face[:, 0], truth["face.tokens"]) < TOLERANCE
    assert relative_error(plain.null.face[:, 0], truth["face.null_tokens"]) < TOLERANCE
    assert relative_error(np.repeat(plain.location, 3, axis=1), video(truth["location"])) < TOLERANCE


def test_features_of_the_reference_net(encoded, truth):
    plain, tiled = encoded
    assert len(banks(truth, "unguided.bank.")) == 16
    for path, expected in banks(truth, "unguided.bank."):
        found = np.concatenate([plain.reference[layer_of(path)], plain.motion[layer_of(path)]], axis=1)
        assert relative_error(found.reshape(expected.shape), expected) < TOLERANCE, path
    for path, expected in banks(truth, "guided.bank."):  # null half: portrait, motion frames; then the other half
        images = tiled.reference[layer_of(path)], tiled.null.motion[layer_of(path)], tiled.motion[layer_of(path)]
        portraits, null, motion = (np.asarray(a)[0] for a in images)
        found = np.concatenate([portraits[:1], null, portraits[1:], motion])
        assert relative_error(found.reshape(expected.shape), expected) < TOLERANCE, path


@pytest.mark.parametrize("time", TIMES)
def test_predictions(model, encoded, denoise, truth, time):
    emo, params = model
    x, (plain, tiled), on = video(truth["in.latents"]), encoded, jnp.array([False, True])
    assert relative_error(denoise(x, [time], plain), video(truth[f"unguided.v.{time}"])) < TOLERANCE
    both = jax.tree.map(lambda a: jnp.tile(a, (2,) + (1,) * (a.ndim - 1)), tiled)
    found = denoise(np.tile(x, (2, 1, 1, 1, 1)), [time, time], mask_conditions(both, on, on))
    assert relative_error(found, video(truth[f"guided.v.{time}"])) < TOLERANCE
    guided = jax.jit(lambda c, x, t: guided_denoiser(emo, params, c, "joint", (3.5, 3.5))(x, t))
    combined = guided(tiled, x, jnp.array([time]))
    assert relative_error(combined, video(truth[f"guided.v35.{time}"])) < TOLERANCE


def test_the_tiling_of_the_bank_matters(encoded, denoise, truth):
    """Ignoring it must not pass: then conditioned frames of odd number would see the same reference as even ones."""
    x, (plain, tiled), on = video(truth["in.latents"]), encoded, jnp.array([False, True])
    reference = jax.tree.map(lambda a: jnp.concatenate([a, a], axis=1), plain.reference)
    tiled = tiled.replace(reference=reference, motion=plain.motion, null=tiled.null.replace(motion=plain.motion))
    both = jax.tree.map(lambda a: jnp.tile(a, (2,) + (1,) * (a.ndim - 1)), tiled)
    found = denoise(np.tile(x, (2, 1, 1, 1, 1)), [999, 999], mask_conditions(both, on, on))
    assert relative_error(found, video(truth["guided.v.999"])) > 0.01

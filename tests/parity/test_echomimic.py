"""EchoMimic's networks and steps against its own code, recorded for small random weights in shared/reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import make_schedule, strided, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.generation.guided import guided_denoiser
from emo_jax.models.conditions import mask_conditions
from emo_jax.models.emo import build
from tests.parity import relatives
from tests.parity.relatives import banks, layer_of, needs_reference, relative_error, video

pytestmark = [needs_reference, pytest.mark.slow]  # make test compares with test_echomimic_modules.py
TOLERANCE = 1e-5
TIMES = (999, 499)


@pytest.fixture(scope="module")
def truth():
    return relatives.load("echomimic_small_truth")


@pytest.fixture(scope="module")
def model():
    """The networks, and their params from the tensors by the names of the four files."""
    emo = build(relatives.echomimic_config())
    params, report = relatives.echomimic_params(emo)
    assert report.used["echomimic"] == 1805 and len(report.unused["echomimic"]) == 55
    return emo, params


@pytest.fixture(scope="module")
def conditions(model, truth):
    emo, params = model
    inputs = dict(
        reference=np.moveaxis(truth["in.ref_latents"], 1, -1)[None],
        audio=truth["in.context"],
        mask=np.moveaxis(truth["in.condition"][:, :, 0], 1, -1),
    )
    return jax.jit(lambda params, inputs: emo.conditions(params, **inputs))(params, inputs)


@pytest.fixture(scope="module")
def denoise(model):
    emo, params = model
    jitted = jax.jit(emo.denoise)
    return lambda x, times, conditions: jitted(params, x, jnp.asarray(times), conditions)


def test_location_and_audio_tokens(conditions, truth):
    assert relative_error(conditions.location, video(truth["location"])) < TOLERANCE
    np.testing.assert_array_equal(conditions.audio, truth["in.context"])


def test_features_of_the_reference_net(conditions, truth):
    assert len(banks(truth, "unguided.bank.")) == 16
    for path, expected in banks(truth, "unguided.bank."):
        assert relative_error(conditions.reference[layer_of(path)].reshape(expected.shape), expected) < TOLERANCE, path


@pytest.mark.parametrize("time", TIMES)
def test_predictions(model, conditions, denoise, truth, time):
    emo, params = model
    x, on = video(truth["in.latents"]), jnp.array([False, True])
    assert relative_error(denoise(x, [time], conditions), video(truth[f"unguided.v.{time}"])) < TOLERANCE
    both = jax.tree.map(lambda a: jnp.tile(a, (2,) + (1,) * (a.ndim - 1)), conditions)
    found = denoise(np.tile(x, (2, 1, 1, 1, 1)), [time, time], mask_conditions(both, on, on))
    assert relative_error(found, video(truth[f"guided.v.{time}"])) < TOLERANCE
    guided = jax.jit(lambda c, x, t: guided_denoiser(emo, params, c, "joint", (2.5, 2.5))(x, t))
    combined = guided(conditions, x, jnp.array([time]))
    assert relative_error(combined, video(truth[f"guided.combined.{time}"])) < TOLERANCE


def test_the_gain_of_audio_attention_matters(model, conditions, denoise, truth):
    """Without it, and with it on the tokens, the prediction must differ."""
    x = video(truth["in.latents"])
    found = denoise(x, [999], conditions.replace(audio=conditions.audio * 3))
    assert relative_error(found, video(truth["unguided.v.999"])) > 0.01
    _, params = model
    config = relatives.echomimic_config()
    config.model.audio.gain = 1.0
    found = jax.jit(build(config).denoise)(params, x, jnp.array([999]), conditions)
    assert relative_error(found, video(truth["unguided.v.999"])) > 0.01


@pytest.mark.parametrize("time", TIMES)
def test_steps(truth, time):
    """DDIM goes to t - 1000 // 30, which is not the next of the 30 timesteps everywhere."""
    schedule = make_schedule(relatives.echomimic_config().diffusion)
    times = timesteps(schedule, 30, schedule.spacing)
    assert (strided(schedule, times)[:-1] != times[1:]).any()
    nexts = strided(schedule, np.full(30, time, np.int32))[:1]
    v = video(truth[f"guided.combined.{time}"])
    run = functools.partial(sample, lambda *_: v, schedule, make_solver("ddim", schedule), video(truth["in.latents"]))
    found = run(np.array([time]), jax.random.key(0), t_nexts=nexts)
    assert relative_error(found, video(truth[f"guided.next.{time}"])) < 1e-6

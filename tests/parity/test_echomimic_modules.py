"""EchoMimic's spatial transformer against a torch reference of diffusers' modules (`record_echomimic`)."""

import numpy as np
import pytest

from emo_jax.models.attention import SpatialTransformer
from tests.parity import cases
from tests.parity.test_parity import close, compiled, filled, recorded  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def inputs(recorded):  # noqa: F811
    """The module's inputs for both halves of guidance, and the recorded weights and output."""
    arrays = recorded("echomimic")
    x, voice = arrays["x"][None], arrays["voice"][None]
    halves = np.concatenate([x, x]), np.repeat(arrays["reference"][None], 2, axis=0), np.concatenate([0 * voice, voice])
    weights = {n.replace("attn2.", "audio_attn.").replace("norm2.", "norm_audio."): a
               for n, a in recorded("echomimic/weights").items()}  # fmt: skip
    return halves, weights, arrays["out"].reshape(halves[0].shape)


def outputs(inputs, **fields):
    halves, weights, _ = inputs
    module = SpatialTransformer(cases.HEADS, cases.GROUPS, "shared", audio=True, norm_feature=True, **fields)
    params = filled(module, weights, *halves)
    return compiled(module.apply)({"params": params}, *halves, None, np.array([False, True]))[0]


def test_both_halves_of_guidance(inputs):
    close(outputs(inputs, audio_gain=3.0), inputs[2])


def test_the_gain_matters(inputs):
    with pytest.raises(AssertionError, match="relative error"):
        close(outputs(inputs), inputs[2], 0.01)

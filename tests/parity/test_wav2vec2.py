"""wav2vec 2.0 against transformers' torch implementation, as recorded by record.py, and the import of its weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from emo_jax.weights.wav2vec2 import from_json, from_transformers, load_wav2vec2, to_transformers
from tests.parity import cases
from tests.parity.test_parity import close, compiled, recorded  # noqa: F401, the fixture

TOLERANCE = 3e-5
OLD = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", cases.WAV2VEC2)
def test_all_hidden_states(recorded, name, padded):  # noqa: F811
    r, prefix = recorded(f"wav2vec2_{name}"), "padded_" if padded else ""
    net, params = filled(recorded, name)
    audio, lengths = r["audio"], None
    if padded:
        lengths = jnp.array(cases.WAV2VEC2_LENGTHS)
        audio = audio * (np.arange(audio.shape[1]) < lengths[:, None])
    states, last = compiled(net.apply)({"params": params}, audio, lengths)
    assert len(states) == len(r["states"])
    for ours, theirs in zip([*states, last], [*r[f"{prefix}states"], r[f"{prefix}last"]], strict=True):
        close(ours, theirs, TOLERANCE)


def filled(recorded, name):  # noqa: F811
    config = from_json(cases.WAV2VEC2[name])
    flat, unused = from_transformers(config, recorded(f"wav2vec2_{name}/weights"))
    assert not unused
    return Wav2Vec2(config), unflatten_dict(flat, sep="/")

"""wav2vec 2.0 against transformers' torch implementation, as recorded by record.py, and the import of its weights."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from emo_jax.weights import state_dicts
from emo_jax.weights import wav2vec2 as weights
from tests.parity import cases
from tests.parity.test_parity import close, compiled, recorded  # noqa: F401, the fixture

HEADS = {
    "wav2vec2.masked_spec_embed": "stands for masked steps in training",
    "lm_head.weight": "a head for letters (CTC)",
    "quantizer.codevectors": "a head of pretraining",
    "project_q.bias": "a head of pretraining",
}


@pytest.fixture(params=cases.WAV2VEC2)
def torch_weights(request, recorded):  # noqa: F811
    """(transformers' config, {name: array}) of base and of large."""
    return cases.WAV2VEC2[request.param], recorded(f"wav2vec2_{request.param}/weights")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", cases.WAV2VEC2)
def test_all_hidden_states(recorded, name, padded):  # noqa: F811
    r, prefix, lengths = recorded(f"wav2vec2_{name}"), "padded_" if padded else "", None
    config = weights.from_transformers_config(cases.WAV2VEC2[name])
    flat, unused = weights.from_transformers(config, recorded(f"wav2vec2_{name}/weights"))
    audio = r["audio"]
    if padded:
        lengths = jnp.array(cases.WAV2VEC2_LENGTHS)
        audio = audio * (np.arange(audio.shape[1]) < lengths[:, None])
    states, last = compiled(Wav2Vec2(config).apply)({"params": unflatten_dict(flat, sep="/")}, audio, lengths)
    assert not unused and len(states) == len(r["states"]) == config.num_hidden_layers + 1
    for ours, theirs in zip([*states, last], [*r[f"{prefix}states"], r[f"{prefix}last"]], strict=True):
        close(ours, theirs)


def test_the_defaults_are_wav2vec2_base():
    config = Wav2Vec2Config()
    assert (config.stride, config.field) == (320, 400)
    assert [config.length(samples) for samples in (400, 719, 720, 16000)] == [1, 1, 2, 49]
    shapes = state_dicts.shapes_of(Wav2Vec2(config))
    assert sum(math.prod(shape) for shape in shapes.values()) == 94_371_712 - config.hidden_size  # masked_spec_embed


# -- weights


def spelt(tensors, parametrized, prefix):
    """The state dict with one of torch's two spellings of weight norm, and with the prefix of a checkpoint of heads."""
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in {} if parametrized else old.items():
        tensors = {n.replace(new, name): a for n, a in tensors.items()}
    return {prefix + n: a for n, a in tensors.items()}


@pytest.mark.parametrize("parametrized, prefix, dtype", [(True, "", "float32"), (False, "wav2vec2.", "float16")])
def test_conversion_and_back_is_exact(torch_weights, parametrized, prefix, dtype):
    fields, tensors = torch_weights
    tensors = {name: a.astype(dtype) for name, a in spelt(tensors, parametrized, prefix).items()}
    flat, _ = weights.from_transformers(weights.from_transformers_config(fields), tensors)
    back = weights.to_transformers(flat, prefix, parametrized)
    assert back.keys() == tensors.keys()
    assert all(back[n].dtype == a.dtype and np.array_equal(back[n], a) for n, a in tensors.items())


@pytest.fixture
def folder(tmp_path, recorded):  # noqa: F811
    """A checkpoint of heads in transformers' format: `folder(change)` after a change of its files' contents."""

    def write(change=lambda fields, tensors: None):
        fields = cases.WAV2VEC2["base"] | dict(model_type="wav2vec2", vocab_size=32)
        fields["conv_dim"] = list(fields["conv_dim"])
        tensors = spelt(recorded("wav2vec2_base/weights"), False, "wav2vec2.")
        tensors |= {name: np.zeros((4, 4), np.float32) for name in HEADS}
        change(fields, tensors)
        (tmp_path / "config.json").write_text(json.dumps(fields))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict(do_normalize=False)))
        save_file({n: np.ascontiguousarray(a, np.float16) for n, a in tensors.items()}, tmp_path / "model.safetensors")
        return tmp_path

    return write


def test_folder_is_loaded_and_unused_tensors_are_reported(folder, recorded):  # noqa: F811
    config, flat, unused = weights.load_wav2vec2(folder())
    expected = weights.from_transformers_config(cases.WAV2VEC2["base"] | dict(do_normalize=False))
    assert config == expected and not config.do_normalize
    assert unused.keys() == HEADS.keys()
    wanted, _ = weights.from_transformers(config, recorded("wav2vec2_base/weights"))
    assert flat.keys() == wanted.keys() and all(np.array_equal(flat[path], wanted[path]) for path in flat)
    assert {a.dtype for a in flat.values()} == {np.dtype(np.float16)}


Q = "wav2vec2.encoder.layers.1.attention.q_proj.weight"
CORRUPTIONS = {
    "no tensor for encoder/layers_1/attention/q_proj/kernel (and 0 more)": lambda f, t: t.pop(Q),
    "tensor wav2vec2.encoder.layers.2.bias has no place": lambda f, t: t.update(
        {"wav2vec2.encoder.layers.2.bias": t[Q]}
    ),
    f"tensor {Q} has shape (16, 15), but encoder/layers_1/attention/q_proj/kernel has shape": lambda f, t: t.update(
        {Q: t[Q][:, 1:]}
    ),
    "exists twice": lambda f, t: t.update({Q.removeprefix("wav2vec2."): t[Q]}),
    "model_type is 'hubert'": lambda f, t: f.update(model_type="hubert"),
    "hidden_act is 'relu'": lambda f, t: f.update(hidden_act="relu"),
    "adapter_attn_dim is 16": lambda f, t: f.update(adapter_attn_dim=16),
    "num_attention_heads is 3; expected a divisor of 16": lambda f, t: f.update(num_attention_heads=3),
    "feat_extract_norm is 'batch'": lambda f, t: f.update(feat_extract_norm="batch"),
    "conv_dim": lambda f, t: f.update(conv_dim=[8] * 6),
    "no tensor for feature_extractor/conv_layers_1/layer_norm/": lambda f, t: f.update(feat_extract_norm="layer"),
}


@pytest.mark.parametrize("message", CORRUPTIONS)
def test_weights_that_do_not_fit_raise(folder, message):
    check_error(folder(CORRUPTIONS[message]), message)


def check_error(directory, message):
    with pytest.raises(ValueError) as error:
        weights.load_wav2vec2(directory)
    line = str(error.value)
    assert message in line and str(directory) in line and "\n" not in line, line


def test_damaged_and_missing_files_raise(folder, monkeypatch):
    directory = folder()
    intact = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(intact[:-100])
    check_error(directory, "model.safetensors is damaged")
    (directory / "model.safetensors").unlink()
    check_error(directory, "holds no weights")
    (directory / "pytorch_model.bin").write_bytes(b"not a pickle")
    monkeypatch.setitem(sys.modules, "torch", None)
    check_error(directory, "pip install -c constraints.txt -e '.[torch]'")
    (directory / "config.json").write_text("{")
    check_error(directory, "config.json is not a JSON file")
    (directory / "config.json").unlink()
    check_error(directory, "has no config.json")

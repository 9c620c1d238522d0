"""Whisper's encoder and spectra against transformers, as recorded by record.py, and the import of its weights."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from emo_jax.models.emo import build
from emo_jax.models.whisper import WhisperConfig, WhisperEncoder, WhisperRecording, log_mel, steps_of_frames
from emo_jax.weights import whisper as weights
from tests.parity import cases
from tests.parity.test_parity import close, compiled, recorded  # noqa: F401, the fixture
from tests.small import WHISPER, small_config
from tests.weights import torch_files
from tests.weights.echomimic_files import openai_names

CONFIG = WhisperConfig(**cases.WHISPER)


@pytest.fixture(scope="module")
def tensors(recorded):  # noqa: F811
    """The encoder by the names of transformers' WhisperModel."""
    return {f"encoder.{name}": a for name, a in recorded("whisper/weights").items()}


@pytest.fixture(scope="module")
def listen(tensors):
    flat, unused = weights.from_transformers(CONFIG, tensors)
    assert not unused
    return functools.partial(compiled(WhisperEncoder(CONFIG).apply), {"params": unflatten_dict(flat, sep="/")})


def test_all_hidden_states(listen, recorded):  # noqa: F811
    arrays = recorded("whisper")
    states, last = listen(arrays["mel"])
    assert len(states) == len(arrays["states"]) == CONFIG.encoder_layers + 1
    for ours, theirs in zip([*states, last], [*arrays["states"], arrays["last"]], strict=True):
        close(ours, theirs)


def test_spectra(recorded):  # noqa: F811
    """In blocks in float64, and in a program in float32; the recording has pauses, where the floor decides."""
    arrays = recorded("whisper")
    assert (arrays["spectra"] == arrays["spectra"].min()).mean() > 0.1
    close(log_mel(arrays["audio"], 80)[0], arrays["spectra"], 1e-6)
    close(compiled(functools.partial(log_mel, bands=80))(arrays["audio"])[0], arrays["spectra"], 2e-4)


def test_steps_of_frames():
    assert steps_of_frames(0, 2, 25.0, 10).tolist() == [list(range(-4, 6)), list(range(-2, 8))]
    assert steps_of_frames(1, 3, 24.0, 2).tolist() == [[2, 3], [4, 5], [6, 7]]  # 50 / 24 = 2.08
    assert steps_of_frames(23, 2, 24.0, 1)[:, 0].tolist() == [48, 51]  # the middle of one output is its own


def test_a_recording_is_cut_into_windows_and_holds_its_ends(listen):
    """Spectra are those of the recording, zeros fill the last window, and each window is computed once."""
    audio, calls = np.random.default_rng(0).normal(0, 0.1, (1, 12000)).astype(np.float32), []

    def hidden_states(mel):
        calls.append(mel)
        return jnp.stack(listen(mel)[0], axis=2)

    recording = WhisperRecording(hidden_states, audio, 25.0, 4, CONFIG)
    found = recording(-2, 24)
    assert found.shape == (1, 24, 4 * 3, 16) and len(calls) == 2
    mel = log_mel(audio, 8)
    np.testing.assert_array_equal(calls[0], mel[:, :40])
    np.testing.assert_array_equal(calls[1][:, :35], mel[:, 40:])
    assert not calls[1][:, 35:].any()
    states = np.concatenate([np.stack(listen(call)[0], axis=2) for call in calls], axis=1)[0, :37]
    for frame in range(-2, 22):
        steps = np.clip(np.arange(2 * frame - 1, 2 * frame + 3), 0, 36)
        np.testing.assert_array_equal(found[0, frame + 2], states[steps].reshape(12, 16))
    np.testing.assert_array_equal(recording(9, 3), found[:, 11:14])
    assert len(calls) == 2
    assert WhisperRecording(hidden_states, audio[:, :320], 25.0, 4, CONFIG)(0, 1).shape == (1, 1, 12, 16)


@pytest.mark.slow
def test_training_gets_the_same_features_from_a_part_of_the_recording():
    """The waveform of training starts 256 samples before the first frame, which is rounded to one output."""
    config = small_config(audio=WHISPER)
    emo = build(config)
    params = jax.device_put(emo.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, (1, 8 * 640 + 512)).astype(np.float32)
    found = jax.jit(lambda audio: emo.audio_features(params, audio, 8))(audio)
    hidden_states = functools.partial(jax.jit(emo.hidden_states), params)
    expected = WhisperRecording(hidden_states, audio, 25.0, 4, emo.audio_encoder.config)(0, 8)
    assert found.shape == expected.shape == (1, 8, 8, 16)
    found, expected = (np.asarray(a).reshape(8, 4, 2, 16)[:7] for a in (found, expected))
    close(found[:, 1:3], expected[:, 2:4], 1e-3)
    with pytest.raises(ValueError, match="audio_context"):
        jax.eval_shape(lambda: emo.audio_features(params, np.zeros((1, 40 * 640), np.float32), 8))


# -- weights


def folder_of(tmp_path, tensors, **fields):
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(cases.WHISPER | dict(model_type="whisper") | fields))
    return tmp_path


def test_files_of_openai_and_transformers_hold_the_same_encoder(tensors, tmp_path):
    torch_files.save(tmp_path / "tiny.pt", openai_names(tensors), entry="model_state_dict")
    half = {name: a.astype(np.float16) for name, a in tensors.items()}
    more = {f"model.{n}": a for n, a in half.items()} | {"model.decoder.x.weight": half["encoder.conv1.bias"]}
    (one, unused), (other, _) = (
        weights.load_whisper(path, CONFIG) for path in (tmp_path / "tiny.pt", folder_of(tmp_path, more))
    )
    assert unused == {"decoder.positional_embedding": weights.UNUSED[r"decoder\."]}
    assert one.keys() == other.keys() and all(np.array_equal(one[p], other[p]) for p in one)
    assert {a.dtype for a in one.values()} == {np.dtype(np.float16)}
    back = weights.to_transformers(one)
    assert back.keys() == half.keys() and all(np.array_equal(back[n], a) for n, a in half.items())


Q = "encoder.layers.1.self_attn.q_proj.weight"
CORRUPTIONS = {
    "no tensor for layers_1/self_attn/q_proj/kernel (and 0 more)": lambda t: t.pop(Q),
    "tensor encoder.layers.2.fc1.bias has no place": lambda t: t.update({"encoder.layers.2.fc1.bias": t[Q]}),
    "tensor layers.0.fc1.bias has no place": lambda t: t.update({"layers.0.fc1.bias": t["encoder.layers.0.fc1.bias"]}),
    f"tensor {Q} has shape (15, 16)": lambda t: t.update({Q: t[Q][1:]}),
}


@pytest.mark.parametrize("message", CORRUPTIONS)
def test_weights_that_do_not_fit_raise(tensors, tmp_path, message):
    changed = dict(tensors)
    CORRUPTIONS[message](changed)
    check_error(folder_of(tmp_path, changed), message)


@pytest.mark.parametrize("field, value", [("d_model", 8), ("model_type", "wav2vec2"), ("encoder_attention_heads", 4)])
def test_another_network_raises(tensors, tmp_path, field, value):
    check_error(folder_of(tmp_path, tensors, **{field: value}), f"has {field} {value!r}")


def check_error(path, message):
    with pytest.raises(ValueError) as error:
        weights.load_whisper(path, CONFIG)
    line = str(error.value)
    assert message in line and str(path) in line and "\n" not in line, line


def test_sizes_of_whisper_are_checked():
    for change, message in (
        (dict(whisper=dict(encoder_attention_heads=3)), "encoder_attention_heads is 3"),
        (dict(layers=(0, 3)), "model.audio.layers"),
        (dict(whisper=dict(d_model=0)), "model.audio.whisper.d_model"),
    ):
        config = small_config(audio=WHISPER)
        config.model.audio.update(change)
        with pytest.raises(ValueError, match=message):
            build(config)

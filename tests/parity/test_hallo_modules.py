"""hallo's networks against a torch reference of diffusers' and transformers' modules (`record_hallo.py`)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emo_jax.configs import hallo
from flax.traverse_util import flatten_dict, unflatten_dict

from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import make_schedule, strided, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.models.audio_encoder import FrameRecording
from emo_jax.models.conditions import mask_conditions
from emo_jax.models.emo import build
from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from emo_jax.weights.names import POSITIONS
from emo_jax.weights.wav2vec2 import from_transformers
from tests.parity import cases
from tests.parity.relatives import layer_of_name, path_of_module
from tests.parity.test_parity import close, compiled, recorded  # noqa: F401 (a fixture)

PARTS = ("backbone", "reference_net", "face_projector", "face_locator")
BEHIND = r"conv_norm_out|conv_out|up_blocks\.1\.attentions\.1\.(proj_out|.*(attn|norm[23]|ff))"
UNUSED = rf"{POSITIONS}|^reference_net\.({BEHIND})"


def config():
    """Returns configs/hallo.py with the sizes of the recorded modules."""
    found = hallo.get_config()
    found.model.update(dtype="float32", locator_channels=cases.LOCATOR)
    found.model.unet.update(channels=cases.CHANNELS, attention=cases.ATTENTION, layers=cases.LAYERS)
    found.model.unet.update(heads=cases.HEADS, groups=cases.GROUPS, remat="none")
    found.model.vae.update(channels=(4,) * 4, decoder_channels=(4,) * 4, layers=1, groups=4)
    found.model.face_embedding.update(tokens=cases.FACE_TOKENS, size=cases.FACE, features=cases.TEXT)
    found.model.audio.update(encoder="mel", bands=2, steps=1, tokens=cases.VOICE_TOKENS, features=cases.VOICE, hidden=4)
    found.clip.update(frames=3, image_size=tuple(8 * side for side in cases.LATENT_SIZE))
    return found


@pytest.fixture(scope="module")
def arrays(recorded):  # noqa: F811
    return recorded("hallo")


@pytest.fixture(scope="module")
def model(arrays):
    emo = build(config())
    weights = {n.removeprefix("weights/"): a for n, a in arrays.items() if n.startswith("weights/")}
    flat = dict(path_of_module(name, a) for name, a in weights.items() if not re.search(UNUSED, name))
    shapes = {p: leaf.shape for p, leaf in flatten_dict(emo.abstract_params(), sep="/").items()}
    assert {p: a.shape for p, a in flat.items()} == {p: s for p, s in shapes.items() if p.startswith(PARTS)}
    return emo, unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def found(model, arrays):
    """Conditions, and predictions from them, without guidance and with both halves."""
    emo, params = model
    images, regions = arrays["images"], [arrays[f"masks/{i}"] for i in (0, 1)]
    inputs = dict(reference=images[:, :1], motion=images[:, 1:], mask=arrays["mask"], face=arrays["embedding"])
    inputs |= dict(regions=regions, branch_weights=np.array([[0.7, 1.3, 1.1]], np.float32))

    def compute(params, inputs, voice, x, t):
        plain, tiled = (emo.conditions(params, **inputs, tiled=tiled) for tiled in (False, True))
        plain, tiled = (conditions.replace(audio=voice) for conditions in (plain, tiled))
        on = jnp.array([False, True])
        both = mask_conditions(jax.tree.map(lambda a: jnp.concatenate([a, a]), tiled), on, on)
        return plain, tiled, emo.denoise(params, x, t, plain), emo.denoise(
            params, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both
        )

    return compiled(compute)(params, inputs, arrays["voice"], arrays["latents"], np.array([499]))


def test_face_tokens_and_location(found, arrays):
    plain = found[0]
    close(plain.face[:, 0], arrays["tokens"])
    close(plain.null.face[:, 0], arrays["null"])
    close(plain.location[:, 0], arrays["location"])


def test_features_of_the_reference_net(found, arrays):
    plain, tiled = found[:2]
    banks = {n.removeprefix("bank/"): a for n, a in arrays.items() if n.startswith("bank/")}
    assert len(banks) == 4
    for name, expected in banks.items():
        layer = layer_of_name(name)
        ours = np.concatenate([plain.reference[layer], plain.motion[layer]], axis=1)
        close(ours.reshape(expected.shape), expected)
        portraits, null, motion = (np.asarray(a[layer])[0] for a in (tiled.reference, tiled.null.motion, tiled.motion))
        ours = np.concatenate([portraits[:1], null, portraits[1:], motion])
        close(ours.reshape(ours.shape[0], -1, ours.shape[-1]), arrays[f"tiled/{name}"])


def test_predictions(found, arrays):
    close(found[2], arrays["out"])
    close(found[3], arrays["guided"])


def test_voice_at_the_rate_of_the_video(recorded):  # noqa: F811
    arrays = recorded("hallo_voice")
    weights = {n.removeprefix("weights/"): a for n, a in arrays.items() if n.startswith("weights/")}
    sizes = Wav2Vec2Config(**cases.WAV2VEC2["base"])
    variables = {"params": unflatten_dict(from_transformers(sizes, weights)[0], sep="/")}

    def hidden_states(*inputs):
        states, _ = Wav2Vec2(sizes).apply(variables, *inputs)
        return jnp.stack(states[1:], axis=2)

    states = arrays["states"]
    recording = FrameRecording(compiled(hidden_states), arrays["audio"], 25, 1, sizes)
    close(recording(0, states.shape[1]), states)


@pytest.mark.parametrize("steps", cases.HALLO_STEPS)
def test_steps_go_where_those_of_diffusers_go(arrays, steps):
    """With 30 steps the timestep that a step goes to differs from the next one."""
    schedule = make_schedule(config().diffusion)
    times = timesteps(schedule, steps, schedule.spacing)
    nexts, solver = strided(schedule, times), make_solver("ddim", schedule)
    assert (nexts[:-1] != times[1:]).any()

    def denoise(x, t):
        return cases.pseudo_model(x, t.reshape(-1, *(1,) * (x.ndim - 1)).astype(jnp.float32))

    x = sample(denoise, schedule, solver, arrays["steps/x"], times, jax.random.key(0), t_nexts=nexts)
    close(x, arrays[f"steps/{steps}"])

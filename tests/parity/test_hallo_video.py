"""hallo's schedule, voice features, masks and two clips of its pipeline, against shared/reference."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from emo_jax.diffusion.clips import clip_keys
from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import make_schedule, strided, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.faces.regions import regions_from_landmarks
from emo_jax.generation.sampler import VideoSampler
from emo_jax.media.timing import frame_count
from emo_jax.models.audio_encoder import FrameRecording
from emo_jax.models.emo import build
from emo_jax.models.wav2vec2 import Wav2Vec2
from emo_jax.weights.wav2vec2 import from_transformers, from_transformers_config
from tests.parity import relatives
from tests.parity.relatives import needs_reference, relative_error, video

pytestmark = needs_reference


@pytest.fixture(scope="module")
def truth():
    return relatives.load("hallo_small_truth")


@pytest.fixture(scope="module")
def sounds():
    return relatives.load("hallo_small_masks_audio")


def test_schedule_and_steps(truth):
    schedule = make_schedule(relatives.hallo_config().diffusion)
    times = timesteps(schedule, 40, schedule.spacing)
    np.testing.assert_array_equal(times, truth["schedule.timesteps.40"])
    assert relative_error(schedule.alphas_cumprod, truth["schedule.alphas_cumprod"]) < 1e-6
    x, solver = video(truth["in.latents"]), make_solver("ddim", schedule)
    for time in (999, 499):
        ts = np.array([time])
        nexts = strided(schedule, np.full(40, time, np.int32))[:1]
        v = video(truth[f"guided.v35.{time}"])
        found = sample(lambda *_, v=v: v, schedule, solver, x, ts, jax.random.key(0), t_nexts=nexts)
        assert relative_error(found, video(truth[f"guided.next.{time}"])) < 1e-6
    assert strided(schedule, timesteps(schedule, 3, "trailing")).tolist() == [666, 333, -1]


@pytest.mark.slow
def test_features_of_the_voice(sounds):
    fields = json.loads((relatives.FOLDER / "hallo_small_wav2vec2/config.json").read_text())
    config = from_transformers_config(fields)
    prefix = "wav2vec2."
    tensors = {name.removeprefix(prefix): a for name, a in sounds.items() if name.startswith(prefix)}
    flat, _ = from_transformers(config, tensors)
    variables = {"params": unflatten_dict(flat, sep="/")}

    @jax.jit
    def hidden_states(*inputs):
        states, _ = Wav2Vec2(config).apply(variables, *inputs)
        return jax.numpy.stack(states[1:], axis=2)

    wave, expected = sounds["audio.wave"], sounds["audio.emb"]
    count = frame_count(len(wave), 25)
    assert count == sounds["audio.frames"]
    recording = FrameRecording(hidden_states, wave[None], 25, 8, config)
    assert relative_error(recording(0, len(expected))[0], expected) < 1e-5
    clamped = recording(-2, len(expected) + 4)[0]  # windows are clamped at the ends
    np.testing.assert_array_equal(clamped[[0, 1, -2, -1]], clamped[[2, 2, -3, -3]])


def test_masks(sounds):
    regions = regions_from_landmarks(sounds["mask.landmarks"], 600, 480)
    sizes = [(64 >> level,) * 2 for level in range(4)]
    found = regions.masks(sizes)
    for ours, theirs in (("pose", "full"), ("face", "face"), ("lip", "lip")):
        for level, mask in enumerate(found[ours]):
            expected = sounds[f"mask.{theirs}.{level}"]
            np.testing.assert_allclose(mask.reshape(expected.shape), expected, atol=1e-6)
    np.testing.assert_allclose(regions.face_region((512, 512)), sounds["mask.region512"], atol=1e-6)


@pytest.mark.slow
def test_two_clips_of_the_pipeline(truth, monkeypatch):
    """The carry, motion frames that are decoded and encoded again, guidance and three DDIM steps."""
    config = relatives.hallo_config()
    config.sampling.update(steps=3, pose_weight=0.7, face_weight=1.3, lip_weight=1.1)
    emo = build(config)
    params, _ = relatives.hallo_params(emo)
    sampler = VideoSampler(emo, params, emo.config.sampling)
    key, noises = jax.random.key(0), np.stack([video(truth[f"clip.{clip}.noise"]) for clip in (0, 1)])
    second = jax.random.split(clip_keys(key, 1, 1)[0])[0]

    def recorded_noise(key, batch):
        is_second = jax.numpy.all(jax.random.key_data(key) == jax.random.key_data(second))
        return jax.numpy.asarray(noises)[is_second.astype(int)]

    monkeypatch.setattr(sampler, "_noise", recorded_noise)
    portrait = np.moveaxis(truth["in.portrait"], 1, -1)
    mask = np.moveaxis(truth["in.face_region"], 1, -1)[..., :1]
    arguments = truth["in.face_emb"], relatives.regions(truth), np.array([0.7, 1.3, 1.1], np.float32)
    constants, held, carry = sampler._prepare(params, portrait, mask, None, *arguments)
    scales, voice = (np.float32(3.5),) * 2, truth["in.clips_audio_emb"]
    for clip in (0, 1):
        window = voice[np.clip(np.arange(3 * clip - 2, 3 * clip + 5), 0, len(voice) - 1)][None]
        inputs = window, np.zeros((1, 7), np.float32), key, np.int32(clip), np.int32(1)
        carry, latents = sampler._segment(params, constants, carry, inputs, scales, held)
        assert relative_error(latents[0], video(truth[f"clip.{clip}.latents"])) < 1e-4
        vae = emo.vae.apply({"params": params["vae"]}, latents[0], method="decode")
        frames = np.moveaxis(truth[f"clip.{clip}.frames"], 1, -1)
        assert relative_error(np.clip(vae / 2 + 0.5, 0, 1), frames) < 1e-4

"""`train` on a few records: interrupted and resumed, it ends bit for bit where it ends uninterrupted."""

import functools

import jax
import numpy as np
import pytest

from emo_jax import sharding
from emo_jax import train as train_lib
from emo_jax.data.pipeline import make_iterator
from emo_jax.models.emo import build
from emo_jax.training.checkpoint import Checkpoints, load_run
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.training.step import new_state
from tests.steps import step_of, training_config


@pytest.fixture
def config(talking_records, monkeypatch):
    """The VAE's stage on drawn people; its step is compiled once, for the other tests too."""
    monkeypatch.setattr(train_lib, "make_step", lambda *args: step_of("vae")[2])
    config = training_config("vae")
    config.data.directory = str(talking_records)
    return config


def saved(config, workdir, step):
    """The state and the next batch that a run's checkpoint leads to."""
    shapes = jax.eval_shape(functools.partial(new_state, config), build(config).abstract_params())
    placed = sharding.state_sharding(sharding.make_mesh(devices=jax.devices()[:1]), shapes)
    shapes = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    iterator = make_iterator(config.data, clip_of(config, get_stage("vae")), batch_size=2, seed=config.train.seed)
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(step, shapes, iterator)
    checkpoints.close()
    return jax.device_get(state), next(iterator)


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def test_interrupted_and_resumed_equals_uninterrupted(config, tmp_path, monkeypatch, capsys):
    whole = jax.device_get(train_lib.train(config, tmp_path / "whole"))

    place, calls = sharding.place_batch, []

    def place_until_interrupted(mesh, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return place(mesh, batch)

    monkeypatch.setattr(sharding, "place_batch", place_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_lib.train(config, tmp_path / "parts")
    assert load_run(tmp_path / "parts")[0].train.steps == 4
    assert Checkpoints(tmp_path / "parts").latest == 2  # the third step is lost, and will be done again
    parts = jax.device_get(train_lib.train(config, tmp_path / "parts"))
    assert len(calls) == 4 + 2

    assert int(whole.step) == int(parts.step) == 4
    assert same(whole, parts)
    (state, batch), (state_parts, batch_parts) = (saved(config, tmp_path / name, 4) for name in ("whole", "parts"))
    assert same(state, state_parts) and same(state, whole)
    assert same(batch, batch_parts)

    early, early_batch = saved(config, tmp_path / "whole", 2)  # what is compared does change
    assert not same(early.trained, whole.trained) and not same(early.ema, whole.ema)
    assert not same(early_batch, batch) and same(early_batch, calls[2])
    assert "step 4/4" in capsys.readouterr().out

    again = jax.device_get(train_lib.train(config, tmp_path / "whole"))  # nothing left to do
    assert same(again, whole) and len(calls) == 6

    # The last step of the VAE's stage set the scale of the latents.
    encoded = build(config)
    images = np.concatenate([np.asarray(calls[-1]["frames"])])
    latents = jax.jit(encoded.encode)(whole.params(ema=True), images)
    np.testing.assert_allclose(np.std(latents), 1.0, rtol=1e-3)


def test_a_run_of_another_config_is_one_line(config, tmp_path):
    config.train.update(steps=1)
    train_lib.train(config, tmp_path)
    config.model.vae.update(channels=(8, 16, 16))
    with pytest.raises(ValueError, match="does not fit this config") as caught:
        train_lib.train(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_stage_starts_from_the_weights_of_the_one_before(config, tmp_path, capsys):
    config.train.update(steps=1)
    vae = jax.device_get(train_lib.train(config, tmp_path / "vae"))
    image = training_config("image")
    image.train.init_from = str(tmp_path / "vae")
    params = train_lib._initial_params(image, build(image))
    np.testing.assert_array_equal(params["vae"]["encoder"]["conv_in"]["kernel"], vae.ema["vae/encoder/conv_in/kernel"])
    np.testing.assert_array_equal(params["vae"]["scaling_factor"], vae.frozen["vae/scaling_factor"])
    assert "warning" not in capsys.readouterr().err
    image.train.init_from = ""
    train_lib._initial_params(image, build(image))
    assert capsys.readouterr().err.count("starts from nothing") == 1
    image.train.init_from = str(tmp_path / "vae")
    image.model.locator_channels = (4, 4, 8, 16)
    with pytest.raises(ValueError, match="weights are of another config: face_locator"):
        train_lib._initial_params(image, build(image))

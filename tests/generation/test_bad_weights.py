"""Weights and guidance scales that would give a black video raise instead."""

import jax
import numpy as np
import pytest
from PIL import Image

from emo_jax.cli import main as cli
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.audio import write_wav
from emo_jax.weights.store import load_weights, save_weights
from tests.generation.media import BOX, random_portrait, random_voice


def scaled(params, part, factor):
    return {**params, part: jax.tree.map(lambda a: a * factor, params[part])}


@pytest.fixture
def stream(pipeline, monkeypatch):
    """A function of params, which streams with them and the pipeline's compiled programs."""
    sampler = pipeline.sampler(pipeline.config.sampling)

    def with_params(params):
        monkeypatch.setattr(sampler, "params", params)
        return pipeline.stream(random_portrait(), random_voice(640), face_box=BOX, framing="crop")

    return with_params


@pytest.mark.parametrize("part", ["backbone", "reference_net"])
def test_weights_that_are_not_finite_raise_before_the_first_frames(pipeline, stream, part):
    for value in (np.nan, np.inf):
        with pytest.raises(FloatingPointError, match="segment 0"):
            next(stream(scaled(pipeline.params, part, value)))


def test_frames_of_one_colour_raise(pipeline, stream):
    vae = {
        **pipeline.params["vae"],
        "post_quant_conv": jax.tree.map(np.zeros_like, pipeline.params["vae"]["post_quant_conv"]),
    }
    vae |= {
        name: jax.tree.map(np.zeros_like, vae[name]) for name in vae if name.startswith(("decoder", "shortcut_out"))
    }
    with pytest.raises(FloatingPointError, match="segment 0"):
        next(stream({**pipeline.params, "vae": vae}))


@pytest.mark.parametrize("latents", [np.full((2, 1, 4, 16, 16, 4), np.nan), np.full((1, 1, 4, 8, 8, 4), -np.inf)])
def test_latents_of_any_size_are_checked_in_full(pipeline, latents):
    sampler = pipeline.sampler(pipeline.config.sampling)
    latents = latents.astype(np.float32)
    assert not sampler._usable(latents)
    usable = np.zeros_like(latents)
    assert sampler._usable(usable)
    usable[-1, ..., -1, -1, -1] = latents[0, 0, 0, 0, 0, 0]
    assert not sampler._usable(usable)


@pytest.mark.parametrize("scale", [1e30, 3e38])
def test_extreme_guidance_scales_raise_before_the_first_frames(pipeline, scale):
    for name in ("reference_scale", "audio_scale"):
        with pytest.raises(FloatingPointError, match="segment 0"):
            next(pipeline.stream(random_portrait(), random_voice(640), face_box=BOX, framing="crop", **{name: scale}))


@pytest.mark.parametrize(("part", "factor"), [("vae", np.nan), ("vae", 0.0), ("backbone", 0.0)])
def test_from_pretrained_rejects_zero_weights_and_a_broken_vae(weights_dir, tmp_path, part, factor):
    config, flat = load_weights(weights_dir)
    flat = {path: np.asarray(a) * (factor if path.startswith(part) else 1) for path, a in flat.items()}
    save_weights(tmp_path, config, flat)
    with pytest.raises(FloatingPointError, match=part):
        EmoPipeline.from_pretrained(tmp_path)


def test_command_exits_with_status_1_one_line_and_no_file(pipeline, weights_dir, monkeypatch, tmp_path, capsys):
    Image.fromarray(random_portrait()).save(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", random_voice(9000))
    files = ["--portrait", str(tmp_path / "a.png"), "--audio", str(tmp_path / "a.wav"), "--face-box", "60,50,130,150"]
    files += ["--framing", "crop"]
    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    assert cli.main(["generate", *files, "--out", str(tmp_path / "a.mp4"), "--audio-scale", "1e30"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("emo generate: latents")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.wav"}

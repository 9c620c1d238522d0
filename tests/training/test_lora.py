"""Tests of LoRA and `train.only`: the trained parameters, the memory of the optimizer, and merging."""

import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emo_jax.configs import base

from emo_jax.cli import main as cli
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.models import lora
from emo_jax.models.emo import build
from emo_jax.models.parts import part_of
from emo_jax.training.stages import stage_of
from emo_jax.training.step import TrainState, nested, new_state
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.store import read_flat, save_weights
from tests.generation.media import random_portrait, random_voice
from tests.small import small_config

KERNEL = "backbone/mid_block/attentions_0/transformer_blocks_0/attn1/to_q/kernel"


def wide_config():
    """configs/base.py with two of its four levels, to save time."""
    config = base.get_config("video")
    config.model.unet.update(channels=(320, 640), attention=(True, True), layers=1)
    config.model.audio.encoder = "mel"
    return config


@functools.cache
def shapes():
    """Shapes of its parameters."""
    return build(wide_config()).abstract_params()


def state_of(config):
    return jax.eval_shape(functools.partial(new_state, config), shapes())


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_optimizer_state_of_stage_video_is_under_a_tenth():
    config = wide_config()
    full = state_of(config)
    config.train.lora.rank = 16
    low = state_of(config)
    assert size(low.opt_state) < 0.1 * size(full.opt_state) and size(low.trained) < 0.1 * size(full.trained)
    assert all(path.endswith(("/lora_a", "/lora_b")) for path in low.trained)
    merged = jax.eval_shape(lambda state: state.flat(), low)
    assert {p: a.shape for p, a in merged.items()} == {p: a.shape for p, a in {**full.trained, **full.frozen}.items()}
    assert {part_of(path) for path in low.trained} == set(stage_of(config).trains)


def test_lora_of_some_parts_trains_the_others_as_before():
    config = wide_config()
    full = state_of(config)
    config.train.lora.update(rank=4, parts=("backbone", "reference_net", "face_locator"))
    mixed = state_of(config)
    unadapted = {path for path in full.trained if part_of(path) in ("temporal_modules", "audio_layers")}
    assert unadapted == {path for path in mixed.trained if not lora.is_adapter(path)}
    assert {part_of(p) for p in mixed.trained if lora.is_adapter(p)} == {"backbone", "reference_net", "face_locator"}


def test_only_restricts_what_is_trained():
    config = wide_config()
    config.train.only = ("audio_layers", "backbone/*/motion_modules_0/*to_q/kernel")
    found = set(state_of(config).trained)
    assert {part_of(path) for path in found} == {"audio_layers", "temporal_modules"}
    assert all(part_of(path) == "audio_layers" or path.endswith("to_q/kernel") for path in found)
    for pattern in ("speed_layers", "backbone/*/nothing"):  # the first belongs to another stage
        config.train.only = (pattern,)
        with pytest.raises(ValueError, match=r"train\.only"):
            state_of(config)


@pytest.mark.parametrize("changes, word", [
    (dict(rank=-1), "rank"), (dict(rank=2, parts=("mouth",)), "mouth"), (dict(rank=2, parts=("vae",)), "vae"),
])  # fmt: skip
def test_wrong_settings_name_the_field(changes, word):
    config = wide_config()
    config.train.lora.update(changes)
    with pytest.raises(ValueError, match=f"train.lora.*{word}"):
        state_of(config)


def test_adapters_start_without_effect_and_are_merged_into_kernels():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 8, 6)).astype(np.float32)  # a convolution
    adapters = lora.new_adapters({KERNEL: kernel}, 2, seed=0)
    assert {path: a.shape for path, a in adapters.items()} == {
        f"{KERNEL}/lora_a": (72, 2), f"{KERNEL}/lora_b": (2, 6)
    }  # fmt: skip
    np.testing.assert_array_equal(lora.merge({KERNEL: kernel} | adapters)[KERNEL], kernel)
    adapters[f"{KERNEL}/lora_b"] = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)
    a, b = (np.asarray(adapters[f"{KERNEL}/lora_{name}"]) for name in "ab")
    expected = kernel + (a @ b).reshape(kernel.shape)
    np.testing.assert_allclose(lora.merge({KERNEL: kernel} | adapters)[KERNEL], expected, rtol=1e-5, atol=1e-6)
    half = lora.merge({KERNEL: jnp.asarray(kernel, jnp.bfloat16)} | adapters)[KERNEL]
    assert half.dtype == jnp.bfloat16
    assert lora.merge({KERNEL: kernel.astype(jnp.bfloat16)} | adapters, precise=True)[KERNEL].dtype == np.float32
    with pytest.raises(ValueError, match="to_q"):
        lora.merge({KERNEL: kernel[..., :5]} | adapters)
    with pytest.raises(ValueError, match="missing"):
        lora.merge(adapters)


def test_gradients_reach_the_adapters():
    kernel = jnp.eye(4)
    adapters = lora.new_adapters({KERNEL: kernel}, 2, seed=0)

    def loss(trained, frozen):
        return (jax.tree.leaves(nested(trained, frozen))[0] ** 2).sum()

    grads = jax.grad(loss)(adapters, {KERNEL: kernel})
    assert float(jnp.abs(grads[f"{KERNEL}/lora_b"]).max()) > 0  # the gradient of A is zero as long as B is
    trained = {path: a - 0.1 * grads[path] for path, a in adapters.items()}
    assert loss(trained, {KERNEL: kernel}) < loss(adapters, {KERNEL: kernel})


@pytest.fixture
def run(tmp_path):
    """A run with LoRA of a single kernel, and weights without it: (folder, folder, kernel, kernel with LoRA)."""
    rng = np.random.default_rng(0)
    kernel, b = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 6), (2, 6)))
    adapters = lora.new_adapters({KERNEL: kernel}, 2, seed=0) | {f"{KERNEL}/lora_b": b}
    adapters = {path: np.asarray(a) for path, a in adapters.items()}
    config = small_config("video")
    config.train.lora.rank = 2
    frozen, ema = {KERNEL: kernel, "vae/scaling_factor": np.float32(0.5)}, adapters | {"face_locator/a/bias": b[0]}
    state = TrainState(np.int32(1), ema, frozen, ema, {})
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, state, iter(grain.MapDataset.range(4).to_iter_dataset()), config)
    checkpoints.close()
    save_weights(tmp_path / "base", config, frozen | {"face_locator/a/bias": 0 * b[0]}, np.float32)
    return tmp_path / "run", tmp_path / "base", kernel, kernel + adapters[f"{KERNEL}/lora_a"] @ b


def test_exports_are_merged_or_separate_and_separate_ones_are_added(run, tmp_path, capsys):
    folder, start, kernel, merged = run

    def export(weights, name, *options):
        arguments = ["export", "--workdir", str(weights), "-o", str(tmp_path / name), "--dtype", "float32", *options]
        return cli.main(arguments)

    assert export(folder, "merged") == export(folder, "apart", "--lora", "separate") == 0
    assert export(start, "added", "--lora", str(tmp_path / "apart")) == 0
    together, apart, added = (read_flat(tmp_path / name)[1] for name in ("merged", "apart", "added"))
    assert together.keys() == added.keys() == {KERNEL, "vae/scaling_factor", "face_locator/a/bias"}
    for path, array in together.items():
        np.testing.assert_allclose(added[path], array, rtol=1e-6, err_msg=path)
    np.testing.assert_allclose(together[KERNEL], merged, rtol=1e-5)
    assert np.abs(merged - kernel).max() > 0.1
    assert apart.keys() == {f"{KERNEL}/lora_a", f"{KERNEL}/lora_b", "face_locator/a/bias"}
    capsys.readouterr()
    for options, word in (
        (["--lora", "separate", "--to", "diffusers"], "diffusers"),
        (["--lora", str(tmp_path / "apart"), "--step", "1"], "--step"),
        (["--lora", str(tmp_path / "nothing")], "nothing"),
    ):
        assert export(folder, "wrong", *options) == 2 and word in capsys.readouterr().err
    assert export(start, "wrong", "--lora", "separate") == 2 and "base" in capsys.readouterr().err


@pytest.mark.slow
def test_merged_and_added_weights_generate_equal_frames(weights_dir, tmp_path):
    """Adapters in the temporal modules of a small EMO, through both exports, to videos."""
    config, flat = read_flat(weights_dir)
    config.train.lora.update(rank=2, parts=("temporal_modules",))
    kernels = {p: a for p, a in flat.items() if part_of(p) == "temporal_modules" and lora.has_adapter(p)}
    rng = np.random.default_rng(0)
    adapters = {p: np.asarray(a) for p, a in lora.new_adapters(kernels, 2, seed=0).items()}
    adapters |= {p: rng.normal(0, 0.3, a.shape).astype(np.float32) for p, a in adapters.items() if p.endswith("_b")}
    state = TrainState(np.int32(1), adapters, flat, adapters, {})
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, state, iter(grain.MapDataset.range(4).to_iter_dataset()), config)
    checkpoints.close()
    for arguments in (
        ["--workdir", str(tmp_path / "run"), "-o", str(tmp_path / "merged")],
        ["--workdir", str(tmp_path / "run"), "-o", str(tmp_path / "apart"), "--lora", "separate"],
        ["--checkpoint", str(weights_dir), "--lora", str(tmp_path / "apart"), "-o", str(tmp_path / "added")],
    ):
        assert cli.main(["export", "--dtype", "float32", *arguments]) == 0
    portrait, voice = random_portrait(), random_voice(4000)
    start, merged, added = (
        EmoPipeline.from_pretrained(folder)(portrait, voice, seed=3, face_box=(60, 60, 120, 130), framing="crop").frames
        for folder in (weights_dir, tmp_path / "merged", tmp_path / "added")
    )
    np.testing.assert_array_equal(merged, added)
    assert np.abs(merged.astype(int) - start).mean() > 0.5

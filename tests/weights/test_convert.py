"""`emo convert` on a miniature Stable Diffusion and AnimateDiff, whose weights diffusers made (tests/parity)."""

import json
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from emo_jax.cli import main as cli
from emo_jax.media.audio import write_wav
from emo_jax.media.video import probe
from emo_jax.models.emo import build
from emo_jax.weights import names, runs
from emo_jax.weights.assemble import assemble
from emo_jax.weights.store import load_weights, nest, read_flat
from tests.weights.miniature import convert, miniature, write

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections


def test_tensors_are_assigned_to_their_parameters(tensors):
    sources = {kind: (kind, weights) for kind, weights in tensors.items()}
    emo = build(miniature())
    flat, report = assemble(emo, sources, jax.random.key(0), scaling_factor=0.5)
    nest(emo, flat, "converted")
    attention = "down_blocks_0/attentions_0/transformer_blocks_0"
    theirs = "down_blocks.0.attentions.0.transformer_blocks.0"
    unet, motion = tensors["unet"], tensors["motion"]
    same = {
        "backbone/conv_in/kernel": unet["conv_in.weight"].transpose(2, 3, 1, 0),
        "reference_net/conv_in/kernel": unet["conv_in.weight"].transpose(2, 3, 1, 0),
        f"backbone/{attention}/attn2/to_q/kernel": unet[f"{theirs}.attn2.to_q.weight"].T,
        f"backbone/{attention}/attn2/to_k/kernel": flat[f"backbone/{attention}/attn1/to_k/kernel"],
        f"backbone/{attention}/attn2/to_v/kernel": flat[f"backbone/{attention}/attn1/to_v/kernel"],
        f"backbone/{attention}/norm_reference/scale": flat[f"backbone/{attention}/norm1/scale"],
        "backbone/mid_block/motion_modules_0/proj_in/kernel": motion["mid_block.motion_modules.0.proj_in.weight"].T,
        "vae/scaling_factor": np.float32(0.5),
    }
    for path, wanted in same.items():
        np.testing.assert_array_equal(flat[path], wanted, err_msg=path)
    assert not flat[f"backbone/{attention}/audio_attn/to_out_0/kernel"].any()  # new, and silent
    assert set(report.new) == set(flat) - {p for p in flat if flat[p].dtype == np.float16} | {
        p for p in flat if re.search(r"/attentions_\d/.*(attn2/to_[kv]|norm_reference)", p)
    }
    text = {n for n in tensors["unet"] if re.search(r"attn2\.to_[kv]", n)}
    assert set(report.unused["unet"]) == text and not report.unused["vae"]
    assert report.used["unet"] == len(tensors["unet"]) - len(text)


def test_motion_weights_without_a_mid_block_initialise_it_to_zero(tensors):
    """AnimateDiff v1 and v3 have no temporal module in the mid block."""
    shallow = {name: a for name, a in tensors["motion"].items() if not name.startswith("mid_block.")}
    flat, report = assemble(build(miniature()), {"motion": ("mm_v3", shallow)}, jax.random.key(0))
    assert report.new["backbone/mid_block/motion_modules_0/proj_out/kernel"] == "zero"
    assert report.used["motion"] == len(shallow) - len(report.unused["motion"])
    assert not flat["backbone/mid_block/motion_modules_0/proj_out/kernel"].any()
    cut = shallow | {
        "mid_block.motion_modules.0.norm.weight": tensors["motion"]["mid_block.motion_modules.0.norm.weight"]
    }
    with pytest.raises(ValueError, match="mid_block.motion_modules"):
        assemble(build(miniature()), {"motion": ("cut", cut)}, jax.random.key(0))


def test_config_chooses_the_initialisation_of_new_parts(tensors):
    config, level = miniature(), "backbone/down_blocks_0"
    config.model.init.update(reference="fresh", added="fresh")
    flat, report = assemble(build(config), {"unet": ("unet", tensors["unet"])}, jax.random.key(0))
    key, own = (f"{level}/attentions_0/transformer_blocks_0/attn{n}/to_k/kernel" for n in (2, 1))
    assert report.new[key] == report.new[f"{level}/motion_modules_0/proj_out/kernel"] == "random"
    assert not np.array_equal(flat[key], flat[own])
    config.model.init.added = "none"
    with pytest.raises(ValueError, match="model.init.added"):
        build(config)


@pytest.mark.slow
def test_reference_attention_starts_as_self_attention_or_silent(tensors):
    block, rng = "backbone/mid_block/attentions_0/transformer_blocks_0", np.random.default_rng(0)
    text = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in tensors["unet"].items()}
    prompt = {name for name in text if re.search(names.TEXT_ATTENTION, name)}
    kept = {}
    for mode in ("self", "attn1", "zero"):
        config = miniature()
        config.model.init.reference = mode
        flat, report = assemble(build(config), {"unet": ("unet", text)}, jax.random.key(0))
        assert report.used["unet"] + len(report.unused["unet"]) == len(text) and set(report.unused["unet"]) <= prompt
        for name in ("to_k/kernel", "to_v/kernel"):
            np.testing.assert_array_equal(flat[f"{block}/attn2/{name}"], flat[f"{block}/attn1/{name}"])
        kept[mode] = {n: flat[f"{block}/{n}"] for n in ("attn2/to_q/kernel", "norm2/scale", "attn2/to_out_0/kernel")}
        if mode == "attn1":
            assert set(report.unused["unet"]) == prompt
            for path in [path for path in flat if path.startswith("backbone/") and re.search(ATTENTION, path)]:
                source = path.replace("attn2", "attn1").replace("norm2", "norm1").replace("norm_reference", "norm1")
                np.testing.assert_array_equal(flat[path], flat[source], err_msg=path)
        if mode == "zero":
            assert not any(a.any() for path, a in flat.items() if re.search(r"attentions_\d+/.*attn2/to_out_0", path))
            assert report.new[f"{block}/attn2/to_out_0/bias"] == "zero"
    query = text["mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"].T
    for mode in ("self", "zero"):
        np.testing.assert_array_equal(kept[mode]["attn2/to_q/kernel"], query)
    assert kept["self"]["attn2/to_out_0/kernel"].any() and not np.array_equal(kept["attn1"]["attn2/to_q/kernel"], query)


ATTENTION = r"/attentions_\d+/transformer_blocks_0/(attn2|norm2|norm_reference)/"


@pytest.mark.parametrize("mode", ["concat", "off"])
def test_text_attention_is_unused_without_reference_attention(tensors, mode):
    config = miniature()
    config.model.reference_attention = mode
    _, report = assemble(build(config), {"unet": ("unet", tensors["unet"])}, jax.random.key(0))
    wanted = {n for n in tensors["unet"] if re.search(names.TEXT_ATTENTION, n)}
    assert set(report.unused["unet"]) == wanted


def test_conversion_and_back_is_exact(files, tensors, capsys):
    assert convert(files, "--motion", f"{files}/motion") == 0
    output = capsys.readouterr().out
    assert "text prompt" in output
    config, flat = read_flat(f"{files}/out")
    assert config.model.to_json() == miniature().model.to_json() and flat["vae/scaling_factor"] == 0.5
    back = ["convert", "--to", "safetensors", "--checkpoint", f"{files}/out", "--output", f"{files}/back"]
    assert cli.main(back) == 0
    for kind, weights in tensors.items():
        found = load_file(files / f"back/{kind}.safetensors")
        kept = {n: a for n, a in weights.items() if not re.search(r"attentions.*attn2\.to_[kv]|pos_embed", n)}
        assert set(found) == set(kept)
        for name, array in kept.items():
            assert found[name].dtype == array.dtype and found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def _without(name):
    return lambda t: {n: a for n, a in t.items() if n != name}


BROKEN = {
    "missing": (_without("conv_in.bias"), "conv_in.bias"),
    "extra": (lambda t: t | {"more.weight": np.zeros(2)}, "more.weight"),
    "shape": (lambda t: t | {"conv_in.bias": np.zeros(3)}, "(3,)"),
}


@pytest.mark.parametrize("kind", [*BROKEN, "truncated", "text", "pickle", "nothing", "nowhere"])
def test_broken_file_is_reported_on_one_line(files, tensors, capsys, kind):
    file, sd = files / "sd/unet/diffusion_pytorch_model.safetensors", "sd"
    if kind in BROKEN:
        write(files / "sd/unet", BROKEN[kind][0](tensors["unet"]))
        text = BROKEN[kind][1]
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
        text = "is damaged"
    elif kind == "text":
        file.write_text("no tensors\n")
        text = "is damaged"
    elif kind == "pickle":
        (files / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
        sd, text = "evil.ckpt", "evil.ckpt"
    elif kind == "nothing":
        file.unlink()
        text = "sd/unet"
    else:
        sd, text = "absent", "/absent"
    assert convert(files, sd=sd) == 2
    error = capsys.readouterr().err
    assert text in error.splitlines()[-1] and "Traceback" not in error
    assert not (files / "out").exists() and not (files / "evil").exists()


def test_existing_output_is_not_overwritten(files, capsys):
    (files / "out").mkdir()
    (files / "out/mine.txt").write_text("keep")
    assert convert(files) == 2 and f"{files}/out" in capsys.readouterr().err
    assert (files / "out/mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "error", [OSError("disk full"), ValueError("RESOURCE_EXHAUSTED:\nNo space left on device"), KeyboardInterrupt()]
)
def test_failure_while_writing_leaves_no_files(files, monkeypatch, capsys, error):

    def broken(workdir, config, flat):
        folder = workdir / "checkpoints/0.orbax-checkpoint-tmp"
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(b"half")
        raise error

    before = sorted(files.rglob("*"))
    monkeypatch.setattr(runs, "save_weights_as_run", broken)
    assert convert(files) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert isinstance(error, KeyboardInterrupt) or f"{files}/out" in line
    assert sorted(files.rglob("*")) == before


def test_files_of_a_killed_run_and_an_empty_output_are_replaced(files):
    left = files / ".out.part/checkpoints/0.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "array").write_bytes(b"half")
    (files / "out").mkdir()
    assert convert(files) == 0
    assert load_weights(files / "out")[1] and not (files / ".out.part").exists()
    assert [path.name for path in (files / "out/checkpoints").iterdir()] == ["0"]


def test_mount_point_as_output_is_rejected(files, monkeypatch, capsys):
    """A mount point cannot be replaced by the written folder."""
    (files / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == f"{files}/out")
    assert convert(files) == 2 and f"{files}/out" in capsys.readouterr().err
    assert list((files / "out").iterdir()) == []


def test_describe_counts_tensors_and_parameters_of_each_part(files, capsys):
    assert cli.main(["convert", "--describe", "--config=configs/base.py"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    # 21 modules of 28 tensors, 454.4 M parameters, less two tables each of the positions of 32 frames
    assert rows["temporal_modules"][1:3] == ["546", f"{454_417_600 - 2 * 32 * 18_880:,}"]
    assert rows["vae"][1:3] == ["248", "83,653,863"]
    assert convert(files, "--motion", f"{files}/motion") == 0
    capsys.readouterr()
    assert cli.main(["convert", "--describe", "--checkpoint", f"{files}/out"]) == 0
    output = capsys.readouterr().out
    assert "float16" in output and "image, video" in output


@pytest.mark.slow
def test_conversion_of_wav2vec2_and_back_is_exact(files, capsys):
    assert convert(files, "--audio", f"{files}/voice", config="hearing") == 0
    config, flat = load_weights(files / "out")
    nest(build(config), flat, "out")
    count = len(load_file(files / "voice/model.safetensors"))
    assert f"audio: {count} tensors used, 0 not used" in capsys.readouterr().out
    back = ["convert", "--to", "safetensors", "--checkpoint", f"{files}/out", "--output", f"{files}/back"]
    assert cli.main(back) == 0
    voice, back = load_file(files / "voice/model.safetensors"), load_file(files / "back/audio.safetensors")
    assert set(voice) == set(back) and all(voice[n].tobytes() == back[n].tobytes() for n in voice)


def test_wav2vec2_that_does_not_fit_the_config_is_reported_on_one_line(files, capsys):
    assert convert(files, "--audio", f"{files}/voice") == 2
    assert "model.audio.encoder" in capsys.readouterr().err
    config = json.loads((files / "voice/config.json").read_text()) | {"do_normalize": False}
    (files / "voice/preprocessor_config.json").write_text(json.dumps(config))
    assert convert(files, "--audio", f"{files}/voice", config="hearing") == 2
    assert "model.audio.wav2vec2.do_normalize" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_convert_train_every_stage_and_generate(files, talking_records):
    """Converts files, trains one step of each stage, and generates a video with wav2vec 2.0."""
    more = ["--motion", f"{files}/motion", "--audio", f"{files}/voice"]
    assert convert(files, *more, config="hearing") == 0
    _, start = load_weights(files / "out")
    before = files / "out"
    for stage in ("image", "video", "speed"):
        run = ["train", f"--config={files}/hearing.py:{stage}", "--workdir", f"{files}/{stage}"]
        run += [f"--config.data.directory={talking_records}", f"--config.train.init_from={before}"]
        assert cli.main(run) == 0
        before = files / stage
    _, end = load_weights(before)
    for path in ("audio_encoder/feature_projection/projection/kernel", "vae/encoder/conv_in/kernel"):
        np.testing.assert_array_equal(start[path], end[path])
    Image.fromarray(np.full((80, 80, 3), 128, np.uint8)).save(files / "me.png")
    write_wav(f"{files}/me.wav", 0.1 * np.sin(np.arange(16000) / 9))
    run = ["generate", "--checkpoint", f"{before}", "--portrait", f"{files}/me.png", "--audio", f"{files}/me.wav"]
    assert cli.main([*run, "--out", f"{files}/me.mp4", "--face-box", "20,20,60,60"]) == 0
    assert probe(files / "me.mp4")["frames"] == 25

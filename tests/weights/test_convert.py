"""`emo convert` on a miniature Stable Diffusion and AnimateDiff, whose weights diffusers made (tests/parity)."""

import functools
import json
import os
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from emo_jax.cli import main as cli
from emo_jax.media.audio import write_wav
from emo_jax.media.video import probe
from emo_jax.models.emo import build
from emo_jax.weights import names, runs
from emo_jax.weights.assemble import assemble
from emo_jax.weights.store import load_weights, nest, read_flat
from tests.parity import cases
from tests.small import small_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections


def miniature(stage="image"):
    """The config of the recorded models' sizes."""
    config = small_config(stage)
    config.model.unet.update(channels=cases.CHANNELS, attention=cases.ATTENTION, layers=cases.LAYERS)
    config.model.unet.update(heads=cases.HEADS, groups=cases.GROUPS)
    config.model.vae.update(channels=cases.VAE_CHANNELS, decoder_channels=cases.VAE_CHANNELS, layers=cases.LAYERS)
    config.model.vae.update(groups=cases.VAE_GROUPS, latent_channels=cases.LATENT_CHANNELS, patch=1, shortcut=False)
    config.model.locator_channels = (4, 8)
    return config


def hearing(stage="image"):
    """The same with the recorded wav2vec 2.0."""
    config = miniature(stage)
    config.model.audio.update(encoder="wav2vec2", layers=(1, 2))
    config.model.audio.wav2vec2.update(cases.WAV2VEC2["base"])
    config.train.update(steps=1, batch_size=2, save_every=1, log_every=1, sample_every=0)
    config.sampling.update(steps=2)
    return config


@pytest.fixture(scope="module")
def tensors():
    """{kind: {diffusers name: float16 array}}."""
    with np.load(cases.REFERENCE) as stored:
        weights = {n: a for n, a in stored.items() if re.match(r"(video|vae)/weights/", n)}
    video = {n.removeprefix("video/weights/"): a for n, a in weights.items() if n.startswith("video")}
    motion = {n: a for n, a in video.items() if "motion_modules" in n}
    return {
        "unet": {n: a for n, a in video.items() if n not in motion},
        "motion": motion,
        "vae": {n.removeprefix("vae/weights/"): a for n, a in weights.items() if n.startswith("vae")},
    }


def write(folder, tensors, file="diffusion_pytorch_model.safetensors", **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / file)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def files(tensors, tmp_path):
    """A folder with the miniature in diffusers' layout, and a config file of its sizes."""
    write(tmp_path / "sd/unet", tensors["unet"])
    write(tmp_path / "sd/vae", tensors["vae"], scaling_factor=0.5)
    write(tmp_path / "motion", tensors["motion"])
    with np.load(cases.REFERENCE) as stored:
        weights = {n: a for n, a in stored.items() if n.startswith("wav2vec2_base/weights/")}
    tensors = {n.removeprefix("wav2vec2_base/weights/"): a.astype(np.float32) for n, a in weights.items()}
    write(tmp_path / "voice", tensors, "model.safetensors", **cases.WAV2VEC2["base"])
    for name in ("miniature", "hearing"):
        text = f"from tests.weights.test_convert import {name} as get_config\n"
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def convert(files, *more, sd="sd", config="miniature"):
    config = f"--config={files}/{config}.py"
    return cli.main(["convert", config, "--sd", f"{files}/{sd}", "--output", f"{files}/out", *more])


def test_every_tensor_goes_where_it_belongs(tensors):
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


def test_motion_module_without_mid_block_starts_it_silent(tensors):
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


def test_the_config_chooses_how_new_parts_start(tensors):
    config, level = miniature(), "backbone/down_blocks_0"
    config.model.init.update(reference="fresh", added="fresh")
    flat, report = assemble(build(config), {"unet": ("unet", tensors["unet"])}, jax.random.key(0))
    key, own = (f"{level}/attentions_0/transformer_blocks_0/attn{n}/to_k/kernel" for n in (2, 1))
    assert report.new[key] == report.new[f"{level}/motion_modules_0/proj_out/kernel"] == "random"
    assert not np.array_equal(flat[key], flat[own])
    config.model.init.added = "none"
    with pytest.raises(ValueError, match="model.init.added is 'none'; expected 'zero' or 'fresh'"):
        build(config)


@pytest.mark.parametrize("mode", ["concat", "off"])
def test_models_without_reference_attention_leave_the_prompts_attention_out(tensors, mode):
    config = miniature()
    config.model.reference_attention = mode
    _, report = assemble(build(config), {"unet": ("unet", tensors["unet"])}, jax.random.key(0))
    wanted = {n for n in tensors["unet"] if re.search(names.TEXT_ATTENTION, n)}
    assert set(report.unused["unet"]) == wanted


def test_files_to_checkpoint_to_files_changes_no_bit(files, tensors, capsys):
    assert convert(files, "--motion", f"{files}/motion") == 0
    told = capsys.readouterr().out
    assert "not used: 4 (" in told or "keys and values of the text prompt" in told
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


REAL_NAMES = {  # of v1-5-pruned.safetensors and diffusers' copy of it
    "input_blocks.0.0.weight": "conv_in.weight",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.2.1.transformer_blocks.0.norm1.bias": "down_blocks.0.attentions.1.transformer_blocks.0.norm1.bias",
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.11.0.emb_layers.1.weight": "down_blocks.3.resnets.1.time_emb_proj.weight",
    "middle_block.0.out_layers.3.weight": "mid_block.resnets.0.conv2.weight",
    "middle_block.1.proj_in.weight": "mid_block.attentions.0.proj_in.weight",
    "middle_block.2.out_layers.0.bias": "mid_block.resnets.1.norm2.bias",
    "output_blocks.0.0.in_layers.2.weight": "up_blocks.0.resnets.0.conv1.weight",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.5.1.norm.weight": "up_blocks.1.attentions.2.norm.weight",
    "output_blocks.5.2.conv.bias": "up_blocks.1.upsamplers.0.conv.bias",
    "output_blocks.11.1.proj_out.bias": "up_blocks.3.attentions.2.proj_out.bias",
    "out.0.weight": "conv_norm_out.weight",
    "out.2.bias": "conv_out.bias",
}
REAL_VAE_NAMES = {
    "encoder.down.0.block.1.norm1.weight": "encoder.down_blocks.0.resnets.1.norm1.weight",
    "encoder.down.1.block.0.nin_shortcut.bias": "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
    "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
    "encoder.mid.block_1.conv1.weight": "encoder.mid_block.resnets.0.conv1.weight",
    "encoder.mid.attn_1.norm.weight": "encoder.mid_block.attentions.0.group_norm.weight",
    "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.mid.block_2.norm2.bias": "decoder.mid_block.resnets.1.norm2.bias",
    "decoder.up.3.block.0.conv1.weight": "decoder.up_blocks.0.resnets.0.conv1.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    "quant_conv.weight": "quant_conv.weight",
}


def test_names_of_the_original_release():
    assert {n: names.ldm_unet(n, 2) for n in REAL_NAMES} == REAL_NAMES
    assert {n: names.ldm_vae(n, 4) for n in REAL_VAE_NAMES} == REAL_VAE_NAMES


def original(kind, tensors):
    """The tensors by the names of the original release: every name that leads to one of diffusers' is tried."""
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    ends = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_norm_out": "out.0",
            "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2"}  # fmt: skip
    if kind == "vae":
        return {f"first_stage_model.{_original_vae(n)}": a[..., None, None] if _is_attention(n, a) else a
                for n, a in tensors.items()}  # fmt: skip
    found = {}
    for name, array in tensors.items():
        module, leaf = name.rsplit(".", 1)
        if module in ends:
            new = ends[module]
        elif match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", module):
            side, block, what, layer, rest = match.groups()
            number = int(block) * (cases.LAYERS + 1) + int(layer) + (side == "down")
            rest = resnet[rest] if what == "resnets" else rest
            new = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(what == 'attentions')}.{rest}"
        elif match := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv", module):
            new = f"input_blocks.{(int(match[1]) + 1) * (cases.LAYERS + 1)}.0.op"
        elif match := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv", module):
            attends = cases.ATTENTION[::-1][int(match[1])]
            new = f"output_blocks.{(int(match[1]) + 1) * (cases.LAYERS + 1) - 1}.{1 + attends}.conv"
        else:
            what, number, rest = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", module).groups()
            new = f"middle_block.1.{rest}" if what == "attentions" else f"middle_block.{2 * int(number)}.{resnet[rest]}"
        found[f"model.diffusion_model.{new}.{leaf}"] = array
    return found


def _is_attention(name, array):
    return array.ndim == 2 and "attentions" in name


def _original_vae(name):
    last = len(cases.VAE_CHANNELS) - 1
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", name)
    name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def test_a_single_file_of_the_original_release_is_the_same_model(files, tensors, capsys):
    single = original("unet", tensors["unet"]) | original("vae", tensors["vae"])
    single["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(3)
    single["model_ema.decay"], single["betas"] = np.float32([1]), np.zeros(3, np.float32)
    write(files, single, "single.safetensors")
    assert convert(files, sd="single.safetensors") == 0
    told = capsys.readouterr().out
    assert all(reason in told for reason in ("text encoder", "averaged copy", "noise schedule"))
    _, flat = read_flat(files / "out")
    wanted, _ = assemble(build(miniature()), {k: (k, tensors[k]) for k in ("unet", "vae")}, jax.random.key(0))
    assert set(flat) == set(wanted)
    for path in flat:
        np.testing.assert_array_equal(flat[path], wanted[path], err_msg=path)


def test_older_files_of_the_autoencoder_and_animatediffs_own_names(files, tensors):
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    rename = functools.partial(re.sub, r"(attentions\.0\.)(to_\w+(?:\.0)?)", lambda m: m[1] + older[m[2]])
    vae = {rename(name): array for name, array in tensors["vae"].items()}
    assert "encoder.mid_block.attentions.0.query.weight" in vae
    write(files / "other", vae, scaling_factor=0.25)
    motion = {}
    for name, array in tensors["motion"].items():
        name = name.replace(".motion_modules.0.", ".motion_modules.0.temporal_transformer.")
        name = name.replace(".motion_modules.1.", ".motion_modules.1.temporal_transformer.")
        name = re.sub(r"attn([12])", lambda m: f"attention_blocks.{int(m[1]) - 1}", name)
        name = re.sub(r"\.norm([123])\.", lambda m: ".ff_norm." if m[1] == "3" else f".norms.{int(m[1]) - 1}.", name)
        motion[name] = array
    motion["mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"] = (
        np.zeros((1, 24, 16), np.float16)
    )
    write(files, motion, "mm.safetensors")
    assert convert(files, "--vae", f"{files}/other", "--motion", f"{files}/mm.safetensors") == 0
    _, flat = read_flat(files / "out")
    wanted, _ = assemble(build(miniature()), {k: (k, a) for k, a in tensors.items()}, jax.random.key(0), 0.25)
    for path in wanted:
        np.testing.assert_array_equal(flat[path], wanted[path], err_msg=path)


def _without(name):
    return lambda t: {n: a for n, a in t.items() if n != name}


BROKEN = {
    "missing": (_without("conv_in.bias"), "lacks conv_in.bias; is it a file for this config?"),
    "extra": (lambda t: t | {"more.weight": np.zeros(2)}, "holds the unknown tensor more.weight"),
    "shape": (lambda t: t | {"conv_in.bias": np.zeros(3)}, "conv_in.bias has shape (3,), backbone/conv_in/bias has (8"),
}


@pytest.mark.parametrize("kind", [*BROKEN, "truncated", "text", "pickle", "nothing", "nowhere"])
def test_a_broken_file_is_one_line(files, tensors, capsys, kind):
    file, sd = files / "sd/unet/diffusion_pytorch_model.safetensors", "sd"
    if kind in BROKEN:
        write(files / "sd/unet", BROKEN[kind][0](tensors["unet"]))
        told = BROKEN[kind][1]
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
        told = "is damaged"
    elif kind == "text":
        file.write_text("no tensors\n")
        told = "is damaged"
    elif kind == "pickle":
        (files / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
        sd, told = "evil.ckpt", "evil.ckpt"
    elif kind == "nothing":
        file.unlink()
        told = "holds no weights"
    else:
        sd, told = "absent", "does not exist"
    assert convert(files, sd=sd) == 2
    error = capsys.readouterr().err
    assert told in error.splitlines()[-1] and "Traceback" not in error
    assert not (files / "out").exists() and not (files / "evil").exists()


def test_an_output_that_is_there_is_not_overwritten(files, capsys):
    (files / "out").mkdir()
    (files / "out/mine.txt").write_text("keep")
    assert convert(files) == 2 and "exists; give a new folder" in capsys.readouterr().err
    assert (files / "out/mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "error", [OSError("disk full"), ValueError("RESOURCE_EXHAUSTED:\nNo space left on device"), KeyboardInterrupt()]
)
def test_a_run_that_fails_while_it_writes_leaves_nothing(files, monkeypatch, capsys, error):

    def broken(workdir, config, flat):
        folder = workdir / "checkpoints/0.orbax-checkpoint-tmp"
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(b"half")
        raise error

    before = sorted(files.rglob("*"))
    monkeypatch.setattr(runs, "save_weights_as_run", broken)
    assert convert(files) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    told = capsys.readouterr().err.splitlines()[-1]
    assert isinstance(error, KeyboardInterrupt) or f"{files}/out cannot be written" in told
    assert sorted(files.rglob("*")) == before


def test_what_a_killed_run_left_and_an_empty_folder_do_not_disturb(files):
    left = files / ".out.part/checkpoints/0.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "array").write_bytes(b"half")
    (files / "out").mkdir()
    assert convert(files) == 0
    assert load_weights(files / "out")[1] and not (files / ".out.part").exists()
    assert [path.name for path in (files / "out/checkpoints").iterdir()] == ["0"]


def test_a_mount_point_is_told_at_once(files, monkeypatch, capsys):
    """It could not be replaced by the folder that was written."""
    (files / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == f"{files}/out")
    assert convert(files) == 2 and "out is a mount point" in capsys.readouterr().err
    assert list((files / "out").iterdir()) == []


def test_describe(files, capsys):
    assert cli.main(["convert", "--describe", "--config=configs/base.py"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    # 21 modules of 28 tensors, 454.4 M parameters, less two tables each of the positions of 32 frames
    assert rows["temporal_modules"][1:3] == ["546", f"{454_417_600 - 2 * 32 * 18_880:,}"]
    assert rows["vae"][1:3] == ["248", "83,653,863"]
    assert convert(files, "--motion", f"{files}/motion") == 0
    capsys.readouterr()
    assert cli.main(["convert", "--describe", "--checkpoint", f"{files}/out"]) == 0
    told = capsys.readouterr().out
    assert "float16" in told and "image, video" in told


def test_wav2vec2_comes_along_and_goes_back(files, capsys):
    assert convert(files, "--audio", f"{files}/voice", config="hearing") == 0
    config, flat = load_weights(files / "out")
    nest(build(config), flat, "out")
    count = len(load_file(files / "voice/model.safetensors"))
    assert f"audio: {count} tensors used, 0 not used" in capsys.readouterr().out
    back = ["convert", "--to", "safetensors", "--checkpoint", f"{files}/out", "--output", f"{files}/back"]
    assert cli.main(back) == 0
    voice, back = load_file(files / "voice/model.safetensors"), load_file(files / "back/audio.safetensors")
    assert set(voice) == set(back) and all(voice[n].tobytes() == back[n].tobytes() for n in voice)


def test_wav2vec2_of_another_geometry_is_one_line(files, capsys):
    assert convert(files, "--audio", f"{files}/voice") == 2
    assert "set model.audio.encoder=wav2vec2" in capsys.readouterr().err
    config = json.loads((files / "voice/config.json").read_text()) | {"do_normalize": False}
    (files / "voice/preprocessor_config.json").write_text(json.dumps(config))
    assert convert(files, "--audio", f"{files}/voice", config="hearing") == 2
    assert "set model.audio.wav2vec2.do_normalize" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_whole_path_from_files_to_a_video(files, talking_records):
    """What a user does: convert, a step of each stage, generate with wav2vec 2.0."""
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

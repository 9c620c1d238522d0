"""Tests `emo convert --echomimic` on a miniature of the released files, and generation from it."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.media.audio import write_wav
from emo_jax.media.video import probe, read_video
from emo_jax.models.parts import part_of
from emo_jax.weights import convert as convert_lib
from emo_jax.weights.echomimic import VAE, WHISPER, to_name, to_path
from emo_jax.weights.store import read_flat
from tests.weights import echomimic_files, torch_files
from tests.weights.hallo_files import PORTRAIT

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder with the files, and the tensors of its four files."""
    folder = tmp_path_factory.mktemp("echomimic")
    return folder, echomimic_files.write(folder)


def convert(release, source, output, *more):
    return cli.main(
        ["convert", f"--config={release}/miniature.py:video", "--echomimic", str(source), "-o", str(output), *more]
    )


@pytest.fixture(scope="module")
def converted(release):
    folder, _ = release
    assert convert(folder, folder, folder / "weights") == 0
    return folder / "weights"


def linked(release, folder):
    """Returns a copy of a release whose files are links."""
    return shutil.copytree(release, folder, copy_function=os.symlink, ignore=shutil.ignore_patterns("weights"))


def test_every_tensor_is_used_or_has_a_reason(release, tmp_path, capsys):
    """Files as released: denoising_unet.pth holds temporal modules, which count, and may hold unknown tensors."""
    folder, tensors = release
    assert {name: len(found) for name, found in tensors.items()} == dict(
        denoising_unet=1274, motion_module=588, reference_unet=570, face_locator=16
    )
    copy = linked(folder, tmp_path / "release")
    (copy / "denoising_unet.pth").unlink()
    extra = {"conv_in_2.weight": np.zeros((2, 2), np.float16), "other": np.zeros(1, np.float16)}
    torch_files.save(copy / "denoising_unet.pth", tensors["denoising_unet"] | extra)
    assert convert(folder, copy, tmp_path / "weights") == 0
    report = capsys.readouterr().out.splitlines()
    assert "echomimic: 1805 tensors used, 57 not used" in report
    for count, reason in ((42, "positions"), (13, "behind the last feature"), (2, "skips such tensors")):
        assert any(f"not used: {count} " in line and reason in line for line in report)
    _, flat = read_flat(tmp_path / "weights")
    for path, array in flat.items():
        if not path.startswith(("vae/", "audio_encoder/")):
            name, value = to_name(path, array)
            file, _, rest = name.partition(".")
            np.testing.assert_array_equal(value, tensors[file][rest], err_msg=name)
            assert to_path(name, value)[0] == path


@pytest.mark.slow
def test_temporal_modules_may_be_in_their_own_file_alone(release, tmp_path, converted):
    """As the accelerated weights are read: two files with another name."""
    folder, tensors = release
    copy = linked(folder, tmp_path / "release")
    (copy / "motion_module.pth").rename(copy / "motion_module_acc.pth")
    still = {n: a for n, a in tensors["denoising_unet"].items() if "motion_modules" not in n}
    torch_files.save(copy / "denoising_unet_acc.pth", still)
    assert convert(folder, copy, tmp_path / "weights", "--accelerated") == 0
    (_, first), (_, second) = read_flat(converted), read_flat(tmp_path / "weights")
    assert first.keys() == second.keys()
    for path in first:
        offset = 1 if "motion_modules" in path else 0
        np.testing.assert_array_equal(first[path] + first[path].dtype.type(offset), second[path], err_msg=path)


@pytest.mark.slow
def test_files_and_layouts_are_written_back(converted, release, tmp_path):
    """The tensors that are used, by their names; they convert again to the same parameters, as does an export."""
    folder, _ = release
    _, first = read_flat(converted)
    again = tmp_path / "again"
    assert cli.main(["convert", "--to", "safetensors", "--checkpoint", str(converted), "-o", str(again)]) == 0
    (again / "voice").mkdir()
    (again / "audio.safetensors").rename(again / "voice/model.safetensors")
    (again / "voice/config.json").write_text(json.dumps(echomimic_files.SIZES))
    others = ["--vae", str(folder / VAE), "--audio", str(again / "voice")]
    assert convert(folder, again, tmp_path / "weights", *others) == 0
    export = ["export", "--checkpoint", str(converted), "--to", "diffusers", "--dtype", "float32"]
    assert cli.main([*export, "-o", str(tmp_path / "export")]) == 0
    for folder in (tmp_path / "weights", tmp_path / "export"):
        _, second = read_flat(folder)
        assert set(first) == set(second)
        assert all(np.array_equal(np.asarray(first[path], np.float32), second[path]) for path in first)


ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
BROKEN = {
    "missing": ("denoising_unet", lambda t: t.pop(ATTENTION), f"lacks denoising_unet.{ATTENTION}"),
    "shape": (
        "denoising_unet",
        lambda t: t.update({ATTENTION: np.zeros((3, 3), np.float16)}),
        f"denoising_unet.{ATTENTION} has shape (3, 3)",
    ),
    "extra": ("reference_unet", lambda t: t.update(more=np.zeros(2, np.float16)), "unknown tensor reference_unet.more"),
    "locator": ("face_locator", lambda t: t.pop("conv_out.bias"), "lacks face_locator.conv_out.bias"),
}


@pytest.mark.parametrize("kind", [*BROKEN, "truncated", "voice", "absent", "whisper", "nowhere", "file"])
def test_a_broken_set_is_one_line(release, tmp_path, capsys, kind):
    folder, tensors = release
    source = linked(folder, tmp_path / "release")
    if kind in BROKEN:
        name, change, expected = BROKEN[kind]
        changed = dict(tensors[name])
        change(changed)
        (source / f"{name}.pth").unlink()
        torch_files.save(source / f"{name}.pth", changed)
    elif kind in ("truncated", "voice"):
        name = WHISPER if kind == "voice" else "motion_module.pth"
        content = (folder / name).read_bytes()
        (source / name).unlink()
        (source / name).write_bytes(content[: len(content) // 2])
        expected = f"{pathlib.Path(name).name} is damaged"
    elif kind == "absent":
        (source / "face_locator.pth").unlink()
        expected = "has no face_locator.pth"
    elif kind == "whisper":
        (source / WHISPER).unlink()
        expected = "--audio is missing"
    else:
        source, expected = (tmp_path / "nowhere", "is no folder")
        if kind == "file":
            source = folder / "denoising_unet.pth"
        others = ["--vae", str(folder / VAE), "--audio", str(folder / WHISPER)]
        assert convert(folder, source, tmp_path / "out", *others) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]
        return
    assert convert(folder, source, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert expected in captured.err.splitlines()[-1] and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options, expected", [
    (["--hallo", "x"], "--hallo and --echomimic"),
    (["--motion", "x"], "--motion is given with --echomimic"),
    (["--config.model.audio.encoder=mel"], "model.audio.encoder is 'mel'"),
])  # fmt: skip
def test_options_that_do_not_go_together(release, tmp_path, capsys, options, expected):
    folder, _ = release
    assert convert(folder, folder, tmp_path / "out", *options) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_released_weights_have_their_own_config(monkeypatch, tmp_path):
    """Without --config; the accelerated ones sample six steps without guidance."""
    found = {}

    def read(config, hallo, echomimic, others):
        found[echomimic] = config
        raise ValueError("seen")

    monkeypatch.setattr(convert_lib, "_relative_sources", read)
    for name, more in (("a/b", []), ("a/c", ["--accelerated"])):
        assert cli.main(["convert", "--echomimic", name, *more, "-o", str(tmp_path / "out")]) == 2
    slow, fast = found["a/b"].sampling, found["a/c"].sampling
    assert (slow.strategy, slow.steps, slow.reference_scale, slow.audio_scale) == ("windows", 30, 2.5, 2.5)
    assert (fast.strategy, fast.steps, fast.reference_scale, fast.audio_scale) == ("windows", 6, 1.0, 1.0)


@pytest.mark.slow
def test_videos_are_made_from_it(converted, tmp_path, capfd):
    """Three windows, guided; an export makes the same video; a video shorter than a window; without guidance."""
    write_wav(tmp_path / "voice.wav", 0.1 * np.sin(np.arange(round(16000 * 9 / 24)) * 0.3).astype(np.float32))
    write_wav(tmp_path / "short.wav", 0.1 * np.sin(np.arange(round(16000 * 2 / 24)) * 0.3).astype(np.float32))

    def generate(weights, name, voice="voice.wav", *more):
        inputs = ["--portrait", str(PORTRAIT), "--audio", str(tmp_path / voice), "--checkpoint", str(weights)]
        assert cli.main(["generate", *inputs, "-o", str(tmp_path / name), *more]) == 0
        return np.stack([frame for frame, _ in read_video(tmp_path / name)])

    first = generate(converted, "first.mp4")
    assert "denoising: " in capfd.readouterr().err
    assert probe(tmp_path / "first.mp4")["frames"] == len(first) == 9
    export = ["export", "--checkpoint", str(converted), "--dtype", "float32", "-o", str(tmp_path / "export")]
    assert cli.main(export) == 0
    np.testing.assert_array_equal(first, generate(tmp_path / "export", "second.mp4"))
    assert len(generate(converted, "short.mp4", "short.wav")) == 2
    fast = generate(converted, "fast.mp4", "voice.wav", "--steps", "1", "--reference-scale=1", "--audio-scale=1")
    assert fast.shape == first.shape and (fast != first).any()


@pytest.mark.slow
def test_a_training_step_starts_from_it(converted, release, talking_records, tmp_path):
    """Stage speed adds speed layers and changes the temporal modules alone; its result makes a video."""
    folder, _ = release
    overrides = [f"--config.data.directory={talking_records}", f"--config.train.init_from={converted}"]
    overrides += ["--config.clip.fps=25"]  # of the records
    train = ["train", f"--config={folder}/miniature.py:speed", "--workdir", str(tmp_path / "run"), *overrides]
    assert cli.main(train) == 0
    (_, before), (_, after) = read_flat(converted), read_flat(tmp_path / "run")
    changed = {path for path in before if not np.array_equal(np.asarray(before[path], np.float32), after[path])}
    assert changed and {part_of(path) for path in changed} == {"temporal_modules"}
    assert {part_of(path) for path in set(after) - set(before)} == {"speed_layers"}
    write_wav(tmp_path / "voice.wav", np.zeros(2 * 16000 // 25, np.float32))
    inputs = ["--portrait", str(PORTRAIT), "--audio", str(tmp_path / "voice.wav"), "--checkpoint"]
    assert cli.main(["generate", *inputs, str(tmp_path / "run"), "-o", str(tmp_path / "out.mp4")]) == 0
    assert probe(tmp_path / "out.mp4")["frames"] == 2

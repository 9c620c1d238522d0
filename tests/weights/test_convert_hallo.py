"""Tests `emo convert --hallo` on a miniature of the released files: generation, export and training from it."""

import os
import zipfile

import numpy as np
import pytest

from emo_jax.cli import main as cli
from emo_jax.media.audio import write_wav
from emo_jax.media.video import probe, read_video
from emo_jax.weights import pickles
from emo_jax.weights.hallo import to_name, to_path
from emo_jax.weights.store import read_flat
from tests.weights import hallo_files, torch_files

pytestmark = [
    pytest.mark.slow,  # files of 2656 tensors; those of EchoMimic, in test_convert_echomimic.py, are quicker to convert
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),  # of ml_collections
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files, and the tensors of its net.pth."""
    folder = tmp_path_factory.mktemp("hallo")
    tensors = hallo_files.write(folder)
    torch_files.save(folder / "net.pth", tensors)
    return folder, tensors


def convert(folder, output, net="net.pth", *more, config="miniature"):
    sources = ["--hallo", str(folder / net), "--vae", str(folder / "vae"), "--audio", str(folder / "voice")]
    return cli.main(["convert", f"--config={folder}/{config}.py:video", *sources, "-o", str(output), *more])


@pytest.fixture(scope="module")
def converted(files):
    folder, _ = files
    assert convert(folder, folder / "weights") == 0
    return folder / "weights"


def test_every_tensor_is_used_or_has_a_reason(files, tmp_path, capsys):
    folder, tensors = files
    assert len(tensors) == 2656
    assert convert(folder, tmp_path / "weights", "") == 0  # the folder that holds net.pth
    report = capsys.readouterr().out
    assert "hallo: 2464 tensors used, 192 not used" in report
    for count, reason in ((130, "never runs"), (42, "positions"), (20, "behind the last feature")):
        assert any(f"not used: {count} " in line and reason in line for line in report.splitlines())
    _, flat = read_flat(tmp_path / "weights")
    for path, array in flat.items():
        if not path.startswith(("vae/", "audio_encoder/")):
            name, value = to_name(path, array)
            np.testing.assert_array_equal(value, tensors[name], err_msg=name)
            assert to_path(name, value)[0] == path


@pytest.mark.slow
def test_files_are_written_back(converted, files, tmp_path):
    """The tensors that are used, by their names in net.pth; they convert again to the same parameters."""
    folder, tensors = files
    assert cli.main(["convert", "--to", "safetensors", "--checkpoint", str(converted), "-o", str(tmp_path)]) == 0
    missing = {n: a for n, a in tensors.items() if "pos_encoder" in n}
    assert len(missing) == 42
    (tmp_path / "again").mkdir()
    os.rename(tmp_path / "hallo.safetensors", tmp_path / "again/hallo.safetensors")
    assert convert(folder, tmp_path / "weights", str(tmp_path / "again")) == 0
    (_, first), (_, second) = read_flat(converted), read_flat(tmp_path / "weights")
    assert set(first) == set(second) and all(np.array_equal(first[path], second[path]) for path in first)


@pytest.mark.slow
def test_diffusers_layout_holds_the_variant(converted, tmp_path):
    export = ["export", "--checkpoint", str(converted), "--to", "diffusers", "--dtype", "float32"]
    assert cli.main([*export, "-o", str(tmp_path / "export")]) == 0
    (_, first), (_, second) = read_flat(converted), read_flat(tmp_path / "export")
    assert set(first) == set(second)
    assert all(np.array_equal(np.asarray(first[path], np.float32), second[path]) for path in first)


NAME = "denoising_unet.mid_block.audio_modules.0.transformer_blocks.0.zero_conv_lip.bias"
BROKEN = {
    "missing": (lambda t: {n: a for n, a in t.items() if n != NAME}, f"lacks {NAME}"),
    "extra": (lambda t: t | {"denoising_unet.more.weight": np.zeros(2, np.float16)}, "unknown tensor denoising_unet."),
    "other": (lambda t: t | {"step": np.zeros(2, np.float16)}, "unknown tensor step"),
    "shape": (lambda t: t | {NAME: np.zeros(3, np.float16)}, f"{NAME} has shape (3,)"),
}


@pytest.mark.parametrize("kind", [*BROKEN, "truncated", "flipped", "empty", "code", "short", "nowhere", "folder"])
def test_a_broken_file_is_one_line(files, tmp_path, capsys, kind):
    folder, tensors = files
    file = tmp_path / "net.pth"
    if kind in BROKEN:
        change, expected = BROKEN[kind]
        torch_files.save(file, change(tensors))
    elif kind == "truncated":
        content = (folder / "net.pth").read_bytes()
        file.write_bytes(content[: len(content) // 2])
        expected = "damaged"
    elif kind == "flipped":  # one bit of a number
        content = bytearray((folder / "net.pth").read_bytes())
        place = content.find(tensors[NAME].tobytes())
        assert place > 0
        content[place + 1] ^= 4
        file.write_bytes(content)
        expected = "have changed"
    elif kind == "empty":
        file.write_bytes(b"")
        expected = "damaged"
    elif kind == "code":
        torch_files.save(file, tensors, callback=os.system)
        expected = "more than weights"
    elif kind == "short":  # a storage that holds fewer numbers than its tensor
        torch_files.save(tmp_path / "complete.pth", tensors)
        with zipfile.ZipFile(tmp_path / "complete.pth") as complete, zipfile.ZipFile(file, "w") as cut:
            for name in complete.namelist():
                cut.writestr(name, complete.read(name)[:6] if name == "complete/data/5" else complete.read(name))
        expected = "exceeds its storage"
    else:
        expected = "does not exist" if kind == "nowhere" else "has no net.pth"
        file = tmp_path / "absent.pth" if kind == "nowhere" else tmp_path
    assert convert(folder, tmp_path / "out", str(file)) == 2
    captured = capsys.readouterr()
    assert expected in captured.err.splitlines()[-1] and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("without, expected", [("--vae", "--vae is missing"), ("--audio", "--audio is missing")])
def test_all_files_are_needed(files, tmp_path, capsys, without, expected):
    folder, _ = files
    options = {"--hallo": "net.pth", "--vae": "vae", "--audio": "voice"}
    sources = [text for name, file in options.items() if name != without for text in (name, str(folder / file))]
    config = f"--config={folder}/miniature.py:video"
    assert cli.main(["convert", config, *sources, "-o", str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err


def test_arrays_of_a_file_are_views_of_it(files):
    """The memory of the process does not hold the file's numbers."""
    folder, tensors = files
    arrays = pickles.load(folder / "net.pth")
    assert set(arrays) == set(tensors)
    assert all(not array.flags.owndata and not array.flags.writeable for array in arrays.values())
    assert all(np.array_equal(arrays[name], array) for name, array in tensors.items())


@pytest.mark.slow
def test_a_video_and_a_training_step_start_from_it(files, converted, talking_records, tmp_path):
    """Two guided clips, an export that makes the same video, and one step of stage speed."""
    folder, _ = files
    seconds = 7 * 0.04
    write_wav(tmp_path / "voice.wav", 0.1 * np.sin(np.arange(round(16000 * seconds)) * 0.3).astype(np.float32))
    inputs = ["--portrait", str(hallo_files.PORTRAIT), "--audio", str(tmp_path / "voice.wav")]
    embedding = tmp_path / "face.npy"
    np.save(embedding, np.linspace(-1, 1, 12))
    generate = ["generate", *inputs, "--face-embedding", str(embedding), "--lip-weight", "1.2"]
    assert cli.main([*generate, "--checkpoint", str(converted), "-o", str(tmp_path / "first.mp4")]) == 0
    assert probe(tmp_path / "first.mp4")["frames"] == 7
    export = ["export", "--checkpoint", str(converted), "--dtype", "float32", "-o", str(tmp_path / "export")]
    assert cli.main(export) == 0
    assert cli.main([*generate, "--checkpoint", str(tmp_path / "export"), "-o", str(tmp_path / "second.mp4")]) == 0
    first, second = (np.stack([f for f, _ in read_video(tmp_path / f"{name}.mp4")]) for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)
    overrides = [f"--config.data.directory={talking_records}", f"--config.train.init_from={converted}"]
    train = ["train", f"--config={folder}/miniature.py:speed", "--workdir", str(tmp_path / "run"), *overrides]
    assert cli.main(train) == 0
    (_, before), (_, after) = read_flat(converted), read_flat(tmp_path / "run")
    changed = {path for path in before if not np.array_equal(np.asarray(before[path], np.float32), after[path])}
    assert changed and all("motion_modules" in path for path in changed)
    assert any("speed_attn" in path for path in after)


def test_weights_without_branches_refuse_their_options(weights_dir, tmp_path, capsys):
    write_wav(tmp_path / "voice.wav", np.zeros(3200, np.float32))
    inputs = ["--portrait", str(hallo_files.PORTRAIT), "--audio", str(tmp_path / "voice.wav")]
    for option, value in (("--lip-weight", "2"), ("--face-embedding", "face.npy")):
        generate = ["generate", *inputs, "--checkpoint", str(weights_dir), option, value]
        assert cli.main([*generate, "-o", str(tmp_path / "out.mp4")]) == 2
        assert "weights" in capsys.readouterr().err.splitlines()[-1]

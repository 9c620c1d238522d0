"""Control of a generation: curves of speed, the choice of a face, the preview."""

import shutil

import numpy as np
import pytest
from PIL import Image

from emo_jax.cli import main as cli_main
from emo_jax.faces.detection import find_faces
from emo_jax.generation.inputs import ASSETS, choose_face, load_portrait, place_portrait
from emo_jax.generation.speed import read_speed, speeds_of_frames
from emo_jax.weights.presets import DEFAULT
from emo_jax.weights.store import read_flat
from tests.generation.media import BOX, random_portrait, random_voice


def test_curve_is_linear_between_its_points_and_constant_outside(tmp_path):
    (tmp_path / "a.csv").write_text("time,speed\n0.5,0.2\n\n1.5,1.2\n")
    curve = read_speed(str(tmp_path / "a.csv"))
    speeds = speeds_of_frames(curve, 50, 25)
    assert speeds[:12].tolist() == pytest.approx([0.2] * 12) and speeds[-12:].tolist() == pytest.approx([1.2] * 12)
    assert speeds[24] == pytest.approx(0.2 + (24.5 / 25 - 0.5))
    assert read_speed("0.75") == 0.75 == speeds_of_frames(0.75, 50, 25)


@pytest.mark.parametrize("text", ["0,1\n0,2\n", "0,-1\n", "0,nan\n", "1,2,3\n", "", "time,speed\n", "0,1\nx,2\n"])
def test_files_that_are_no_curve_are_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match="a.csv"):
        read_speed(str(tmp_path / "a.csv"))
    with pytest.raises(ValueError, match="'quick'"):
        read_speed("quick")


@pytest.mark.slow
def test_speed_of_each_frame_reaches_the_sampler(pipeline, monkeypatch):
    sampler = pipeline.sampler(pipeline.config.sampling)
    seen, segment = [], sampler._segment

    def watched(params, constants, carry, inputs, *rest):
        seen.append(np.asarray(inputs[1]))
        return segment(params, constants, carry, inputs, *rest)

    monkeypatch.setattr(sampler, "_segment", watched)
    curve = np.array([[0.0, 0.1], [0.6, 1.9]])
    options = dict(face_box=BOX, framing="crop")
    curved = np.concatenate(list(pipeline.stream(random_portrait(), random_voice(9000), speed=curve, **options)))
    margin, f = pipeline.config.clip.audio_window, pipeline.config.clip.frames  # the first segment is one clip
    speeds = speeds_of_frames(curve, 15, 25)
    np.testing.assert_allclose(seen[0][0, margin : margin + f], speeds[:f])
    np.testing.assert_allclose(seen[1][0, :margin], speeds[f - margin : f])
    np.testing.assert_allclose(seen[-1][0, -margin:], speeds[-1])
    level = np.array([[0.0, 0.7], [0.5, 0.7]])
    flat = np.concatenate(list(pipeline.stream(random_portrait(), random_voice(9000), speed=level, **options)))
    plain = np.concatenate(list(pipeline.stream(random_portrait(), random_voice(9000), speed=0.7, **options)))
    # A constant speed is a single token, which gives the same result but for rounding.
    assert np.abs(flat.astype(int) - plain).max() <= 1 and np.abs(curved.astype(int) - plain).max() > 1
    assert seen[-1].shape == (1, 1 + 2 * margin)


def test_faces_are_chosen_by_number():
    image = load_portrait(ASSETS / "portrait.png")
    small = np.asarray(Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2)))
    two = np.full((image.shape[0], image.shape[1] * 2, 3), 128, np.uint8)
    two[:, : image.shape[1]] = image
    two[: small.shape[0], image.shape[1] : image.shape[1] + small.shape[1]] = small
    faces = find_faces(two)
    assert len(faces) == 2 and choose_face(two, 2) == faces[1]
    clip = read_flat(DEFAULT)[0].clip
    assert place_portrait(two, clip, 2).face == faces[1] != place_portrait(two, clip, 1).face
    with pytest.raises(ValueError, match="2 faces"):
        choose_face(two, 3)


def test_preview_shows_square_mask_and_face_without_generating(tmp_path, capsys, monkeypatch):
    out = tmp_path / "p.png"
    assert cli_main.main(["generate", "--portrait", str(ASSETS / "portrait.png"), "--preview", str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "512x512 pixels" in line and "white" in line
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    height = load_portrait(ASSETS / "portrait.png").shape[0]
    assert pixels.shape == (height, height + 8 + height, 3)
    left = pixels[:, :height]
    for color in ((255, 255, 255), (255, 220, 0), (80, 220, 255)):
        assert (left == color).all(-1).sum() > 100
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
    for more, size in ((["--max-size", "150"], "150x150"), (["--framing", "crop"], "256x256")):
        other = ["--preview", str(tmp_path / "new" / "p.png"), *more]
        assert cli_main.main(["generate", "--portrait", str(ASSETS / "portrait.png"), *other]) == 0
        assert f"{size} pixels" in capsys.readouterr().out and (tmp_path / "new" / "p.png").is_file()
    assert cli_main.main(["generate", "--portrait", str(ASSETS / "portrait.png"), *other, "--size", "64x64"]) == 2
    assert "64x64" in capsys.readouterr().err
    for arguments in (["--preview", "p.jpg"], ["--preview", "/proc/p.png"], ["--preview", str(out), "--face", "9"], []):
        assert cli_main.main(["generate", "--portrait", str(ASSETS / "portrait.png"), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "--audio" in lines[3]


def test_preview_does_not_replace_the_portrait(tmp_path, capsys):
    portrait = tmp_path / "me.png"
    shutil.copy(ASSETS / "portrait.png", portrait)
    before = portrait.read_bytes()
    assert cli_main.main(["generate", "--portrait", str(portrait), "--preview", str(portrait)]) == 2
    assert "would replace the portrait" in capsys.readouterr().err and portrait.read_bytes() == before


def test_still_is_speed_zero(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("emo_jax.generation.commands.generate_file", lambda *a, **options: calls.append(options))
    files = ["generate", "--portrait", "a.png", "--audio", "a.wav", "-o", "a.mp4"]
    assert cli_main.main([*files, "--still", "--face", "2"]) == 0
    assert calls[0]["sampling"]["speed"] == 0.0 and calls[0]["face_box"] == 2
    assert cli_main.main([*files, "--still", "--speed", "1"]) == 2
    assert "--still" in capsys.readouterr().err

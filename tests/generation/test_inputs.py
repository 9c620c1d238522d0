"""Portraits, voices and options: accepted types, refused values, and where the face is placed."""

import re

import av
import numpy as np
import pytest
from emo_jax.configs import tiny
from PIL import Image

from emo_jax.faces.boxes import crop_around
from emo_jax.faces.detection import find_face
from emo_jax.generation.inputs import check_options, check_size, load_portrait, load_voice, place_portrait
from emo_jax.media.audio import write_wav
from emo_jax.synthetic.assets import ASSETS, PERSON, SIDE
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box
from tests.generation.media import random_portrait, random_voice

CLIP = tiny.get_config().clip


def test_paths_and_pillow_images_give_the_same_portrait(tmp_path):
    image = Image.fromarray(random_portrait())
    image.save(tmp_path / "a.png")
    for portrait in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(load_portrait(portrait), random_portrait())


def test_grey_image_with_alpha_becomes_rgb():
    grey = load_portrait(Image.fromarray(random_portrait()).convert("LA"))
    assert grey.shape == (200, 180, 3) and np.ptp(grey, axis=2).max() == 0


@pytest.mark.parametrize("portrait", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32)])
def test_portrait_arrays_of_other_types_raise(portrait):
    with pytest.raises(ValueError, match=f"portrait is {portrait.dtype}"):
        load_portrait(portrait)


def test_voice_file_keeps_the_channels_and_the_rate_of_its_track(tmp_path):
    samples = np.sin(np.arange(48000) * np.array([[0.9], [0.4]])) * np.array([[0.3], [0.2]])  # 6.9 and 3.1 kHz
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=48000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.T.astype(np.float32).reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
    voice = load_voice(tmp_path / "a.wav")
    assert voice.samples.shape == (16000,) and (voice.track.rate, voice.track.channels) == (48000, 2)
    np.testing.assert_allclose(voice.track.read(), samples.T, atol=1e-6)


@pytest.mark.parametrize(
    ("audio", "value"),
    [
        (np.full(9000, np.nan, np.float32), "NaN"),
        (np.full(9000, 20.0, np.float32), "up to 20"),
        (np.zeros(9000, np.int16), "int16"),
        (np.zeros((2, 9000), np.float32), "2, 9000"),
    ],
)
def test_bad_audio_arrays_raise(audio, value):
    with pytest.raises(ValueError, match=value):
        load_voice(audio)


@pytest.mark.parametrize(
    "option",
    [
        dict(seed=0.5),
        dict(seed=2**32),
        dict(steps=1.5),
        dict(speed="fast"),
        dict(reference_scale=-1),
        dict(audio_scale=float("nan")),
        dict(fps=0),
        dict(fps=241),
    ],
)
def test_bad_options_raise(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name} is "):
        check_options(**{"seed": 0} | option)


@pytest.mark.parametrize("size", [256, np.int64(256), (256, 256), [256, 256]])
def test_one_side_is_a_square_size(size):
    assert check_size(size) == (256, 256)


@pytest.mark.parametrize("size", [0, (0, 0), (64, -64), (64.0, 64.0), (64,), (64, 64, 3), "64x64", (64, None)])
def test_other_sizes_raise(size):
    with pytest.raises(ValueError, match="^size is "):
        check_size(size)


# ---- position of the face


def test_config_places_faces_as_the_rendered_clips_do():
    """A record's frame is 160 pixels wide, and a clip's window is 128 of them at a random place (configs/tiny.py)."""
    boxes = np.array([face_box(Identity.sample(seed), State(), 160) for seed in range(100)])
    heights, x, y = boxes[:, 3] - boxes[:, 1], (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    assert np.median(heights) / 128 == pytest.approx(CLIP.face.height, abs=0.02)
    assert (x.mean() - 16) / 128 == pytest.approx(CLIP.face.centre[0], abs=0.02)
    assert (y.mean() - 16) / 128 == pytest.approx(CLIP.face.centre[1], abs=0.02)


def test_detected_face_is_placed_as_in_training(capsys):
    image = load_portrait(ASSETS / "portrait.png")
    crop, mask = place_portrait(image, CLIP)
    assert capsys.readouterr().err == ""
    assert crop.shape == (128, 128, 3) and mask.shape == (128, 128, 1) and set(np.unique(mask)) == {0, 1}
    truth = face_box(Identity.sample(PERSON), State(), SIDE)
    expected, _ = crop_around(image, truth, (128, 128), CLIP.face.height, tuple(CLIP.face.centre))
    rows, columns = np.flatnonzero(mask.any((1, 2))), np.flatnonzero(mask.any((0, 2)))
    height, growth = CLIP.face.height * 128, CLIP.face.growth
    assert len(rows) == pytest.approx(height * (1 + growth[1] + growth[3]), abs=3)
    assert columns.mean() == pytest.approx(CLIP.face.centre[0] * 128, abs=2)
    assert rows[0] == pytest.approx(CLIP.face.centre[1] * 128 - height * (0.5 + growth[1]), abs=2)
    assert np.abs(crop.astype(int) - expected).mean() < 20  # the detected box is within a few pixels of the true one


def test_undetected_face_warns_in_one_line_with_the_assumed_box(capsys):
    crop, mask = place_portrait(np.full((300, 200, 3), 90, np.uint8), CLIP, name="wall.png")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "wall.png" in warning and "67,93,133,177" in warning
    assert crop.shape == (128, 128, 3) and 0 < mask.sum() < 128 * 128


def test_silent_voice_prints_a_warning(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", np.zeros(16000, np.float32))
    load_voice(tmp_path / "a.wav")
    assert "a.wav is silent" in capsys.readouterr().err
    write_wav(tmp_path / "b.wav", random_voice(16000))
    load_voice(tmp_path / "b.wav")
    assert capsys.readouterr().err == ""


def test_several_faces_are_named_with_the_boxes_of_the_others(capsys):
    image = load_portrait(ASSETS / "portrait.png")
    small = np.asarray(Image.fromarray(image).resize([3 * side // 4 for side in image.shape[1::-1]]))
    two = np.concatenate([image, np.pad(small, ((0, len(image) - len(small)), (0, 0), (0, 0)), mode="edge")], axis=1)
    crop, _ = place_portrait(two, CLIP, name="two.png")
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "two.png" in note and "2 faces" in note
    used, other = (tuple(map(float, box.split(","))) for box in re.findall(r"\d+,\d+,\d+,\d+", note))
    assert used[2] < image.shape[1] < other[0]  # the larger one is on the left
    assert np.array_equal(crop, place_portrait(two, CLIP, find_face(two))[0])
    assert not np.array_equal(crop, place_portrait(two, CLIP, other)[0])
    assert capsys.readouterr().err == ""

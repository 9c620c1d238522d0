"""Portraits, voices and options: accepted types, refused values, and where the face is placed."""

import io
import re

import av
import numpy as np
import pytest
from emo_jax.configs import tiny
from PIL import Image

from emo_jax.faces.boxes import crop_around
from emo_jax.faces.detection import find_face
from emo_jax.generation.inputs import ASSETS, check_options, check_size, load_portrait, load_voice, place_portrait
from emo_jax.media.audio import write_wav
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box, render
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


def test_bytes_and_open_files_are_read_as_their_paths_are(tmp_path):
    Image.fromarray(random_portrait()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        for portrait in (data, io.BytesIO(data), file):
            assert np.array_equal(load_portrait(portrait), random_portrait())


def test_float_grey_and_transparent_arrays_become_rgb():
    image = random_portrait()
    assert np.array_equal(load_portrait(image / 255), image)
    assert np.array_equal(load_portrait((image / 255).astype(np.float32)), image)
    grey = image[:, :, 0]
    for portrait in (grey, grey[:, :, None]):
        assert np.array_equal(load_portrait(portrait), np.repeat(grey[:, :, None], 3, axis=2))
    alpha = np.zeros((*grey.shape, 1), np.uint8)
    alpha[:100] = 255
    transparent = load_portrait(np.concatenate([image, alpha], axis=2))
    assert np.array_equal(transparent[:100], image[:100]) and (transparent[100:] == 255).all()


@pytest.mark.parametrize(
    ("portrait", "value"),
    [
        (np.zeros((9, 9, 2), np.uint8), "9, 9, 2"),
        (np.zeros((9, 0, 3), np.uint8), "9, 0, 3"),
        (np.zeros((9, 9, 3), np.int64), "int64"),
        (np.zeros((9, 9, 3), np.uint16), "uint16"),
        (np.full((9, 9, 3), 255.0), "255"),
        (np.full((9, 9, 3), -1.0), "-1"),
        (np.full((9, 9, 3), np.nan), "nan"),
        (b"no picture", "the portrait"),
        (io.StringIO("text"), "rb"),
    ],
)
def test_other_portraits_raise(portrait, value):
    with pytest.raises(ValueError, match=value) as error:
        load_portrait(portrait)
    assert "/tmp" not in str(error.value)


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
        (np.zeros(9000, np.int64), "int64"),
        (np.zeros((9, 9000), np.float32), "9, 9000"),
        ((0, np.zeros(9000, np.float32)), "rate 0"),
        ((10**6, np.zeros(9000, np.float32)), "rate 1000000"),
        (b"no sound", "the audio"),
    ],
)
def test_bad_audio_raises(audio, value):
    with pytest.raises(ValueError, match=value) as error:
        load_voice(audio)
    assert "/tmp" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"), [("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 2**7, 2**7), ("float64", 1, 0)]
)
def test_samples_of_every_type_are_scaled_to_full_scale(dtype, scale, zero):
    samples = random_voice(9000) * 0.5
    voice = load_voice((samples * scale + zero).astype(dtype))
    np.testing.assert_allclose(voice.samples, samples, atol=1.01 / scale if scale > 1 else 1e-7)
    assert (voice.track.rate, voice.track.channels) == (16000, 1)


@pytest.mark.parametrize("transpose", [False, True])
def test_rate_and_channels_of_an_array_are_kept_for_the_track(transpose):
    seconds = np.arange(44100) / 44100
    sound = np.stack([0.4 * np.sin(2 * np.pi * f * seconds) for f in (300, 500)], axis=1).astype(np.float32)
    voice = load_voice((44100, sound.T if transpose else sound))
    assert voice.track.rate == 44100 and np.array_equal(voice.track.read(), sound)
    expected = sum(0.2 * np.sin(2 * np.pi * f * np.arange(16000) / 16000) for f in (300, 500))
    np.testing.assert_allclose(voice.samples[100:-100], expected[100:-100], atol=1e-3)


def test_channels_of_opposite_sign_do_not_cancel():
    sound = random_voice(16000)
    assert np.array_equal(load_voice(np.stack([sound, -sound], axis=1)).samples, sound)


def test_bytes_and_open_files_of_sound_are_read_as_their_paths_are(tmp_path):
    write_wav(tmp_path / "a.wav", random_voice(9000))
    expected = load_voice(tmp_path / "a.wav")
    for audio in ((tmp_path / "a.wav").read_bytes(), io.BytesIO((tmp_path / "a.wav").read_bytes())):
        voice = load_voice(audio)
        assert np.array_equal(voice.samples, expected.samples)
        for _ in range(2):
            assert np.array_equal(voice.track.read(), expected.track.read())


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
    person = Identity.sample((1 << 24) + 121)
    image = render(person, State(), 256)
    crop, mask, *_ = place_portrait(image, CLIP)
    assert capsys.readouterr().err == ""
    assert crop.shape == (128, 128, 3) and mask.shape == (128, 128, 1) and set(np.unique(mask)) == {0, 1}
    truth = face_box(person, State(), 256)
    expected, _ = crop_around(image, truth, (128, 128), CLIP.face.height, tuple(CLIP.face.centre))
    rows, columns = np.flatnonzero(mask.any((1, 2))), np.flatnonzero(mask.any((0, 2)))
    height, growth = CLIP.face.height * 128, CLIP.face.growth
    assert len(rows) == pytest.approx(height * (1 + growth[1] + growth[3]), abs=3)
    assert columns.mean() == pytest.approx(CLIP.face.centre[0] * 128, abs=2)
    assert rows[0] == pytest.approx(CLIP.face.centre[1] * 128 - height * (0.5 + growth[1]), abs=2)
    assert np.abs(crop.astype(int) - expected).mean() < 20  # the detected box is within a few pixels of the true one


def test_undetected_face_warns_in_one_line_with_the_assumed_box(capsys):
    crop, mask = place_portrait(np.full((300, 200, 3), 90, np.uint8), CLIP, name="wall.png")[:2]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "wall.png" in warning and "67,93,133,177" in warning
    assert crop.shape == (128, 128, 3) and 0 < mask.sum() < 128 * 128


def test_silent_voice_prints_a_warning(tmp_path, capsys):
    write_wav(tmp_path / "a.wav", np.zeros(16000, np.float32))
    load_voice(tmp_path / "a.wav")
    assert "a.wav" in capsys.readouterr().err
    write_wav(tmp_path / "b.wav", random_voice(16000))
    load_voice(tmp_path / "b.wav")
    assert capsys.readouterr().err == ""


def test_several_faces_are_named_with_the_boxes_of_the_others(capsys):
    image = load_portrait(ASSETS / "portrait.png")
    small = np.asarray(Image.fromarray(image).resize([3 * side // 4 for side in image.shape[1::-1]]))
    two = np.concatenate([image, np.pad(small, ((0, len(image) - len(small)), (0, 0), (0, 0)), mode="edge")], axis=1)
    crop, *_ = place_portrait(two, CLIP, name="two.png")
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "two.png" in note and "2 faces" in note
    used, other = (tuple(map(float, box.split(","))) for box in re.findall(r"\d+,\d+,\d+,\d+", note))
    assert used[2] < image.shape[1] < other[0]  # the larger one is on the left
    assert np.array_equal(crop, place_portrait(two, CLIP, find_face(two))[0])
    assert not np.array_equal(crop, place_portrait(two, CLIP, other)[0])
    assert capsys.readouterr().err == ""


def test_huge_portrait_is_reduced_with_a_note(tmp_path, monkeypatch, capsys):
    Image.fromarray(random_portrait()).save(tmp_path / "a.png")
    monkeypatch.setattr("emo_jax.media.images.MAX_PIXELS", 200 * 180 / 4)
    assert load_portrait(tmp_path / "a.png").shape == (100, 90, 3)
    assert "90x100" in capsys.readouterr().err

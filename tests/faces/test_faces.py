"""Face detection, face boxes, crops and masks."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emo_jax.faces.boxes import check_box, crop_around, default_box, mask_from_box, parse_box
from emo_jax.faces.detection import find_face, find_faces
from emo_jax.media.images import load_image
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box, render

MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
CENTRES = {  # position of the nose as shares of width and height, annotated by hand
    "aiart_hallo_2.jpg": (0.57, 0.55),
    "anime_fullbody_sadtalker.png": (0.52, 0.23),
    "anime_sadtalker_art_7.png": (0.52, 0.42),
    "cartoon2d_echomimic_e.png": (0.47, 0.61),
    "painting_liveportrait_s9.jpg": (0.48, 0.27),
    "photo_hallo_6.jpg": (0.53, 0.52),
    "photo_moore_4.png": (0.52, 0.51),
}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", CENTRES)
def test_faces_of_real_portraits_are_detected(name):
    if not (MEDIA / "portraits" / name).exists():
        pytest.skip("no shared media")
    image = load_image(MEDIA / "portraits" / name)
    height, width = image.shape[:2]
    box = check_box(find_face(image), height, width)
    x, y = CENTRES[name][0] * width, CENTRES[name][1] * height
    face_width, face_height = box[2] - box[0], box[3] - box[1]
    assert abs((box[0] + box[2]) / 2 - x) < 0.25 * face_width and abs((box[1] + box[3]) / 2 - y) < 0.25 * face_height


def test_box_scales_with_the_picture():
    path = MEDIA / "portraits" / "photo_hallo_6.jpg"
    if not path.exists():
        pytest.skip("no shared media")
    image = load_image(path)
    small, large = find_face(image), find_face(image.repeat(4, 0).repeat(4, 1))
    np.testing.assert_allclose(np.array(large) / 4, small, atol=15)


@pytest.mark.parametrize("shape", [(1, 1), (10, 300), (240, 320), (700, 50)])
def test_pictures_without_a_face_give_none(shape):
    assert find_face(np.full((*shape, 3), 128, np.uint8)) is None
    assert find_face(noise(*shape)) is None


def test_invalid_images_raise():
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8 RGB"):
            find_face(bad)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (1280, 720), (300, 900), (1, 1)])
def test_default_box_is_inside_the_image(height, width):
    x0, y0, x1, y1 = check_box(default_box(height, width), height, width)
    assert (x0 + x1) / 2 == pytest.approx(width / 2) and (y0 + y1) / 2 == pytest.approx(0.45 * height)
    assert x1 - x0 == pytest.approx(min(height, width) / 3)


def test_parse_box():
    assert parse_box("1, 2.5,30,40") == (1.0, 2.5, 30.0, 40.0)
    for bad in ("", "1,2,3", "1,2,3,4,5", "a,b,c,d", "3,2,1,4", "1,4,3,4", "nan,0,1,1", "0,0,inf,1"):
        with pytest.raises(ValueError, match="x0,y0,x1,y1"):
            parse_box(bad)


def test_check_box():
    assert check_box((0, 0, 20, 10), 10, 20) == (0.0, 0.0, 20.0, 10.0)
    for bad in ((-1, 0, 5, 5), (0, 0, 21, 10), (0, 0, 20, 11)):
        with pytest.raises(ValueError, match="outside"):
            check_box(bad, 10, 20)
    for bad in ((5, 5, 5, 9), (5, 9, 8, 9), (1, 2, 3), (np.nan, 0, 1, 1)):
        with pytest.raises(ValueError, match="empty"):
            check_box(bad, 10, 20)


@pytest.mark.parametrize("box", [(None, 0, 20, 10), (0, 0, None, None), "abcd", ("a", 0, 20, 10), 5, (0, 0, 20)])
def test_check_box_rejects_values_of_other_types(box):
    with pytest.raises(ValueError, match="^face box "):
        check_box(box, 10, 20)


def test_crop_places_the_face():
    image = np.zeros((400, 600, 3), np.uint8)
    image[100:147, 300:340] = 255
    crop, box = crop_around(image, (300, 100, 340, 147), (100, 80))
    np.testing.assert_allclose(box, (20, 23.5, 60, 70.5))
    assert crop.shape == (100, 80, 3) and crop.dtype == np.uint8
    rows, columns = np.nonzero(crop[..., 0] > 127)
    assert (columns.min(), columns.max() + 1) == (20, 60)
    assert abs(rows.min() - 23.5) <= 1 and abs(rows.max() + 1 - 70.5) <= 1


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (37, 111), (512, 512)])
def test_crop_keeps_aspect_ratio_and_face_position(size):
    _, (x0, y0, x1, y1) = crop_around(noise(300, 200), (80, 90, 120, 150), size, 0.5, (0.4, 0.6))
    assert y1 - y0 == pytest.approx(0.5 * size[0]) and (x1 - x0) / (y1 - y0) == pytest.approx(40 / 60)
    assert (x0 + x1) / 2 == pytest.approx(0.4 * size[1]) and (y0 + y1) / 2 == pytest.approx(0.6 * size[0])


def test_crop_repeats_the_edge_outside_the_image():
    image = np.full((1, 4000, 3), 7, np.uint8)
    image[:, 2000:] = 200
    crop, _ = crop_around(image, (0, 0, 4000, 1), (64, 64))
    assert crop.shape == (64, 64, 3) and (crop == crop[:1]).all()
    tall = np.zeros((4000, 10, 3), np.uint8)
    tall[:, :5] = 90
    crop, _ = crop_around(tall, (0, 0, 10, 4000), (64, 64))
    assert crop.shape == (64, 64, 3)
    one, _ = crop_around(np.full((1, 1, 3), 9, np.uint8), (0, 0, 1, 1), (8, 8))
    assert (one == 9).all()


def test_crop_of_equal_size_is_the_image():
    image = noise(64, 64)
    crop, box = crop_around(image, (16, 16, 48, 48), (64, 64), 0.5, (0.5, 0.5))
    np.testing.assert_array_equal(crop, image)
    assert box == (16, 16, 48, 48)


def test_shrinking_averages_pixels():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 200
    crop, _ = crop_around(image, (16, 16, 48, 48), (32, 32), 0.5, (0.5, 0.5))
    assert np.abs(crop.astype(int) - 100).max() <= 1


def test_inside_moves_and_shrinks_the_window():
    image = noise(100, 100)
    crop, box = crop_around(image, (20, 10, 80, 90), (100, 100), inside=True)
    np.testing.assert_array_equal(crop, image)
    assert box == pytest.approx((20, 10, 80, 90))
    crop, box = crop_around(image, (0, 0, 30, 30), (50, 50), 0.5, inside=True)
    assert box == pytest.approx((0, 0, 25, 25))
    _, (x0, y0, x1, y1) = crop_around(noise(100, 20), (0, 10, 20, 90), (64, 64), inside=True)
    assert y1 - y0 == pytest.approx(64) and x1 - x0 == pytest.approx(16)


def test_mask_from_box():
    mask = mask_from_box((2.5, 1, 4, 3), 5, 6)
    assert mask.shape == (5, 6, 1) and mask.dtype == np.uint8
    assert mask.sum() == 4 and mask[1:3, 2:4].all()
    assert mask_from_box((2, 2, 4, 4), 6, 6, pad=0.5).sum() == 16
    assert mask_from_box((-9, -9, 99, 99), 6, 6).all()
    assert not mask_from_box((-9, -9, -1, -1), 6, 6).any()


@pytest.mark.parametrize("angle", [25, -35, 60, 90, 180])
def test_tilted_faces_are_detected(angle):
    identity, size = Identity.sample(2), 256
    image = Image.fromarray(render(identity, State(), size))
    turned = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=image.getpixel((0, 0))))
    assert find_faces(turned) == []
    box = check_box(find_face(turned), *turned.shape[:2])
    x0, y0, x1, y1 = face_box(identity, State(), size)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    centre = np.array([[cosine, sine], [-sine, cosine]]) @ ((x0 + x1 - size) / 2, (y0 + y1 - size) / 2)
    centre += np.array(turned.shape[1::-1]) / 2
    error = np.linalg.norm(centre - ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    assert error < 0.1 * (x1 - x0)
    assert 0.8 < (box[2] - box[0]) * (box[3] - box[1]) / ((x1 - x0) * (y1 - y0)) < 1.8


def test_upright_faces_hide_tilted_ones():
    upright, tilted = render(Identity.sample(2), State(), 160), np.rot90(render(Identity.sample(4), State(), 160))
    both = np.concatenate([upright, tilted], 1)
    assert find_faces(both, tilted=True) == find_faces(both) and len(find_faces(both)) == 1


def test_all_faces_are_returned_the_largest_first():
    small, large = render(Identity.sample(4), State(), 160), render(Identity.sample(2), State(), 240)
    both = np.concatenate([np.pad(small, ((0, 80), (0, 0), (0, 0)), mode="edge"), large], 1)
    first, second = find_faces(both, tilted=True)
    assert first[0] > 160 > second[2] and first[3] - first[1] > second[3] - second[1]

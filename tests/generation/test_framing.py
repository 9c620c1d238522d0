"""Generated frames that are pasted back into the portrait."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax.generation.framing import MAX_LONG_SIDE, Canvas, check_framing, place
from emo_jax.generation.inputs import load_portrait
from tests.generation.media import BOX, random_portrait, random_voice
from tests.small import small_config

CLIP = small_config().clip


def smooth_portrait(width, height):
    """Returns a portrait of slow waves in each colour."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * rows + phase) + np.cos(7 * columns - phase) for phase in (0, 1, 2)]
    return np.round(127 + 50 * np.stack(waves, -1)).astype(np.uint8)


def canvas_of(width, height, latents=8, **options):
    image = smooth_portrait(width, height)
    face = (0.42 * width, 0.4 * height, 0.55 * width, 0.5 * height)
    placement = place(image, face, CLIP)
    return image, placement, Canvas(image, placement, (latents, latents), **options)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((800, 1200), (800, 1200)), ((720, 1280), (720, 1280)), ((441, 441), (440, 440)), ((4000, 3000), (1440, 1080))],
)
def test_outside_the_square_every_pixel_is_the_portraits(size, expected):
    image, placement, canvas = canvas_of(*size)
    assert (canvas.size[1], canvas.size[0]) == expected
    pasted = canvas.paste(np.stack([placement.crop] * 2 + [255 - placement.crop]))
    outside = canvas.alpha == 0
    assert 0.2 < outside.mean() < 0.98
    for frame in pasted:
        assert np.array_equal(frame[outside], canvas.picture[outside])
    assert not np.array_equal(pasted[2], canvas.picture)
    if max(size) <= 1280:
        assert np.array_equal(canvas.picture, image[: expected[1], : expected[0]])
    assert np.abs(pasted[0].astype(int) - canvas.picture).mean() < 1.5  # an unchanged square returns to its place


def seam_gradients(frame, canvas):
    """The gradient across each side of the square, relative to the mean of the seven lines on either side of it."""
    frame = frame.astype(float)
    rows, columns = np.nonzero(canvas.alpha > 0)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    down = np.abs(np.diff(frame[:, left:right], axis=0)).mean((1, 2))  # entry i: between rows i and i + 1
    across = np.abs(np.diff(frame[top:bottom], axis=1)).mean((0, 2))
    height, width = canvas.size
    sides = ((down, top, height), (down, bottom, height), (across, left, width), (across, right, width))
    seams = [(lines, edge - 1) for lines, edge, end in sides if 0 < edge < end]
    around = [np.concatenate([lines[max(0, seam - 8) : seam - 1], lines[seam + 2 : seam + 9]]) for lines, seam in seams]
    return np.array([lines[seam] / near.mean() for (lines, seam), near in zip(seams, around, strict=True)])


@pytest.mark.parametrize("size", [(800, 1200), (720, 1280), (441, 441), (4000, 3000)])
def test_seam_is_no_stronger_than_its_surroundings(size):
    """The square comes back in other colours and with noise, as an autoencoder's errors are."""
    _, placement, canvas = canvas_of(*size)
    noise = np.random.default_rng(0).normal(0, 1, placement.crop.shape)
    frame = np.clip(placement.crop + (8, -6, 5) + noise, 0, 255).astype(np.uint8)
    seams = seam_gradients(canvas.paste(frame[None])[0], canvas)
    assert len(seams) == 4 and (seams <= 1.1).all()


PHOTOGRAPHS = [  # name, (width, height), the face in it
    ("anime_fullbody_sadtalker.png", (800, 1200), (315, 155, 506, 366)),
    ("painting_liveportrait_s9.jpg", (720, 1280), (269, 222, 478, 458)),
    ("aiart_hallo_2.jpg", (441, 441), (174, 139, 331, 305)),
    ("photo_moore_4.png", (4000, 3000), (1088, 867, 3044, 3000)),
]
MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media")) / "portraits"


@pytest.mark.skipif(not MEDIA.is_dir(), reason="no shared media")
@pytest.mark.parametrize("side", [128, 512])
@pytest.mark.parametrize(("name", "size", "face"), PHOTOGRAPHS)
def test_seam_in_photographs_is_no_stronger_than_without_the_square(name, size, face, side):
    """The square is blurred, in other colours and with noise; its face has moved, and its border is held."""
    picture, ratio = load_portrait(MEDIA / name), size[1] / size[0]
    rows = min(len(picture), round(picture.shape[1] * ratio))
    picture = cv2.resize(picture[:rows], size, interpolation=cv2.INTER_CUBIC)
    clip = ConfigDict(CLIP)
    clip.image_size = (side, side)
    placement = place(picture, tuple(map(float, face)), clip)
    canvas = Canvas(picture, placement, (side // 8, side // 8))
    frame = cv2.GaussianBlur(placement.crop, (0, 0), side / 128)
    inner = np.s_[side // 8 : -side // 8, side // 8 : -side // 8]
    frame[inner] = np.roll(frame, (side // 40, -side // 40), (0, 1))[inner]
    noise = np.random.default_rng(0).normal(0, 1, frame.shape)
    frame = np.clip(frame + (8, -6, 5) + noise, 0, 255).astype(np.uint8)
    seams = seam_gradients(canvas.paste(frame[None])[0], canvas)
    # Contours of the picture that run along the square are there without it.
    assert len(seams) >= 2 and (seams <= 1.1 * np.maximum(1, seam_gradients(canvas.picture, canvas))).all()


def test_colours_of_the_square_are_matched():
    _, placement, canvas = canvas_of(800, 1200)
    frame = np.clip(placement.crop.astype(int) + (12, -9, 7), 0, 255).astype(np.uint8)
    error = canvas.paste(frame[None])[0].astype(int) - canvas.picture
    assert np.abs(error[canvas.alpha == 1].mean(0)).max() < 1


def test_border_is_held_only_at_sides_inside_the_portrait():
    _, _, canvas = canvas_of(800, 800, latents=32)
    assert canvas.hold.shape == (32, 32, 1)
    inner = canvas.hold[..., 0]
    assert inner[:2].all() and inner[:, -2:].all() and not inner[2:-2, 2:-2].any()
    image = random_portrait(0, 120, 120)
    tight = Canvas(image, place(image, (10.0, 5.0, 110.0, 118.0), CLIP), (8, 8))
    assert not tight.hold.any() and (tight.alpha == 1).all()


def test_limits_of_the_size():
    _, _, canvas = canvas_of(3000, 300, max_size=280)
    assert canvas.size == (280, 2800)
    image = random_portrait(0, 300, 9000)
    assert Canvas(image, place(image, BOX, CLIP), (8, 8)).size[1] == MAX_LONG_SIDE
    for arguments in (("square", 1080), ("crop", 8), ("portrait", "1080")):
        with pytest.raises(ValueError, match="framing|max_size"):
            check_framing(*arguments)


def test_pipeline_pastes_into_any_portrait_with_one_program(pipeline):
    before = pipeline.compilations()
    for portrait, box in ((random_portrait(), BOX), (random_portrait(1, 301, 411), (200.0, 90.0, 270.0, 190.0))):
        stream = pipeline.stream(portrait, random_voice(9000), face_box=box)
        frames = np.concatenate(list(stream))
        even = tuple(side // 2 * 2 for side in portrait.shape[:2])
        assert frames.shape == (15, *even, 3) and stream.size == even and stream.total == 15
        assert np.array_equal(frames[7, :2, :2], portrait[:2, :2]) and not np.array_equal(frames[0], frames[7])
    assert pipeline.compilations() - before <= 1


@pytest.mark.slow
def test_held_latents_are_the_portraits_in_every_frame(pipeline, monkeypatch):
    image = random_portrait()
    placement = place(image, BOX, pipeline.config.clip)
    canvas = Canvas(image, placement, pipeline._emo.latent_shape[:2])
    assert canvas.hold.any()
    sampler = pipeline.sampler(pipeline.config.sampling)
    seen, decode = [], sampler._decode
    monkeypatch.setattr(sampler, "_decode", lambda *a: seen.append(a[1]) or decode(*a))
    list(pipeline.stream(image, random_voice(9000), face_box=BOX))
    reference = np.asarray(pipeline._emo.encode(pipeline.params, placement.crop[None]))[0]
    held = canvas.hold[..., 0] > 0
    for latents in seen:
        np.testing.assert_allclose(
            np.asarray(latents)[0, 0][:, held],
            np.broadcast_to(reference[held], (4, held.sum(), reference.shape[-1])),
            atol=1e-4,
        )
        assert np.abs(np.asarray(latents)[0, 0][:, ~held] - reference[~held]).max() > 0.01

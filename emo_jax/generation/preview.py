"""A picture of what a generation will do with a portrait: faces, square, mask and edge, without generating."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emo_jax.faces.analyzers import portrait_faces
from emo_jax.files import atomic_write
from emo_jax.generation.framing import MAX_SIZE, Canvas, check_framing
from emo_jax.generation.inputs import load_portrait, place_portrait
from emo_jax.media.targets import create_folder_of

SQUARE, MASK, FACE = (255, 255, 255), (255, 220, 0), (80, 220, 255)
"""Colours of the outlines: the generated square, the mask of the face, the detected faces."""


def write_preview(
    path: str | os.PathLike,
    portrait: str | os.PathLike,
    weights: str,
    *,
    face_box: tuple[float, float, float, float] | int | None = None,
    size: tuple[int, int] | None = None,
    framing: str = "portrait",
    max_size: int = MAX_SIZE,
) -> tuple[int, int]:
    """Writes a PNG file: the picture with the square, the mask and the numbered faces, and the crop beside it.

    What stays the portrait's is darkened; the brightness follows the feathered edge. The size of the video is written
    into the lower left corner.

    Args:
        path: the PNG file.
        portrait: an image file.
        weights: a preset, a folder of weights, or the folder of a training run, whose config places the face.
        face_box: the face, as `place_portrait` takes it.
        size: (height, width) of the generated square in pixels; None: the model's.
        framing: "portrait" or "crop", as `generate_file` takes it.
        max_size: limit of the shorter side of the video in pixels.

    Returns:
        (height, width) of the video in pixels.

    Raises:
        ValueError: an input that cannot be used, or a file that cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"the preview {path} does not end in .png; rename it")
    if Path(path).exists() and Path(path).samefile(portrait):
        raise ValueError(f"the preview {path} would replace the portrait; choose another name")
    check_framing(framing, max_size)
    image = load_portrait(portrait)
    from emo_jax.models.emo import build
    from emo_jax.weights.store import check_trained_size, read_config

    config = read_config(weights)
    if size is not None:
        check_trained_size(weights, size, tuple(config.clip.image_size))
        config.clip.image_size = size
    placement = place_portrait(image, config.clip, face_box, portrait)
    canvas = Canvas(image, placement, build(config).latent_shape[:2], max_size)
    height, width = canvas.size if framing == "portrait" else tuple(config.clip.image_size)
    picture = _draw(image, placement, canvas, f"{width}x{height}")
    side = canvas.size[0]
    crop = Image.fromarray(placement.crop).resize(
        (round(side * placement.crop.shape[1] / placement.crop.shape[0]), side)
    )
    sheet = np.concatenate([np.asarray(picture), np.full((side, 8, 3), 255, np.uint8), np.asarray(crop)], axis=1)
    create_folder_of(path)
    try:
        with atomic_write(Path(path)) as partial:
            Image.fromarray(sheet).save(partial, format="png")
    except OSError as error:
        raise ValueError(f"the preview {path} cannot be written ({error.strerror}); choose another folder") from error
    return height, width


def _draw(image: np.ndarray, placement, canvas: Canvas, text: str) -> Image.Image:
    """Draws the outlines and a text into the picture at the size of the video."""
    scale_x, scale_y = canvas.scale
    shade = 0.45 + 0.55 * canvas.alpha[..., None]
    picture = Image.fromarray(np.round(canvas.picture * shade).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    width = max(1, min(canvas.size) // 200)
    font = ImageFont.load_default(max(10, min(canvas.size) // 24))

    def outline(box, color, text=""):
        x0, y0, x1, y1 = box[0] * scale_x, box[1] * scale_y, box[2] * scale_x - 1, box[3] * scale_y - 1
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=width)
        if text:
            draw.text((x0 + 2 * width, y0 + width), text, fill=color, font=font)

    x0, y0, x1, y1 = placement.window
    per_x, per_y = (x1 - x0) / placement.crop.shape[1], (y1 - y0) / placement.crop.shape[0]
    rows, columns = np.nonzero(placement.mask[..., 0])
    for number, face in enumerate(portrait_faces(image), 1):
        outline(face.box, FACE, str(number))
    outline(
        (
            x0 + columns.min() * per_x,
            y0 + rows.min() * per_y,
            x0 + (columns.max() + 1) * per_x,
            y0 + (rows.max() + 1) * per_y,
        ),
        MASK,
    )
    outline(placement.window, SQUARE)
    corner = (2 * width, canvas.size[0] - 2 * width)
    draw.text(corner, text, fill=SQUARE, font=font, anchor="lb", stroke_width=width, stroke_fill=(0, 0, 0))
    return picture

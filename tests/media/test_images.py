"""Loading pictures of any format as upright RGB."""

import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emo_jax.media.images import load_image

MEDIA = Path(os.environ.get("EMO_SHARED_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
PORTRAITS = sorted((MEDIA / "portraits").glob("*.*")) if MEDIA.exists() else []


def gradient(height=24, width=40):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 8, columns * 5, rows + columns], -1).astype(np.uint8)


def error_of(path):
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("error")
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_format_is_detected_from_the_bytes(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", "PNG")
    image = load_image(tmp_path / "a.jpg")
    np.testing.assert_array_equal(image, gradient())
    assert image.dtype == np.uint8 and image.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats(tmp_path, kind):
    Image.fromarray(gradient()).save(tmp_path / "a.bin", kind)
    image = load_image(tmp_path / "a.bin").astype(int)
    assert image.shape == (24, 40, 3) and np.abs(image - gradient()).mean() < 8


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(gradient(), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_blended_with_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image = image.quantize() if mode == "PA" else image.convert(mode)
    image.save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert tuple(image[0, 0]) == (0, 0, 0) and (image[1] == 255).all()


def test_grey_palette_16_bit_and_cmyk_become_rgb(tmp_path):
    grey = gradient()[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png"), np.repeat(grey[..., None], 3, -1))
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tiff")
    np.testing.assert_array_equal(load_image(tmp_path / "float.tiff"), np.repeat(grey[..., None], 3, -1))
    Image.fromarray(grey > 100).save(tmp_path / "one.png")
    assert set(np.unique(load_image(tmp_path / "one.png"))) == {0, 255}
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(load_image(tmp_path / "cmyk.jpg").astype(int) - (255, 0, 0)).max() < 10
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.gif")
    assert load_image(tmp_path / "palette.gif").shape == (4, 4, 3)


def test_unreadable_files_raise_one_line(tmp_path):
    assert "does not exist" in error_of(tmp_path / "none.png")
    assert "is a directory" in error_of(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    assert "0 bytes" in error_of(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello")
    assert "not an image" in error_of(tmp_path / "text.png")
    Image.fromarray(gradient(200, 200)).save(tmp_path / "full.jpg")
    data = (tmp_path / "full.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    assert "truncated" in error_of(tmp_path / "half.jpg")
    (tmp_path / "vector.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    error_of(tmp_path / "vector.eps")


@pytest.mark.parametrize("side", [9000, 12000, 20000])
def test_huge_images_are_rejected_before_decoding(tmp_path, side):
    """The file has a header of that size but few data, so decoding it would raise another error."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    (tmp_path / "huge.png").write_bytes(data + chunk(b"IEND", b""))
    limit = Image.MAX_IMAGE_PIXELS
    assert f"{side}x{side}" in error_of(tmp_path / "huge.png")
    assert Image.MAX_IMAGE_PIXELS == limit is not None


@pytest.mark.parametrize("path", PORTRAITS, ids=lambda p: p.name)
def test_real_portraits(path):
    image = load_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) >= 441
    assert image.std() > 20

"""Loading pictures of any format as upright RGB."""

import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from emo_jax.media import images
from emo_jax.media.images import load_image, load_picture

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


@pytest.mark.parametrize("side", [17000, 20000])
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_pictures_above_the_limit_are_reduced(tmp_path, monkeypatch, kind, factor):
    image = Image.fromarray(gradient().repeat(10, 0).repeat(10, 1))  # 240 x 400
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a", kind, exif=exif)
    monkeypatch.setattr(images, "MAX_PIXELS", 240 * 400 / factor**2)
    loaded, scale = load_picture(tmp_path / "a")
    reduced = {3: 4, 5: 8}.get(factor, factor) if kind == "JPEG" else factor  # JPEG is decoded at 1/2, 1/4 or 1/8
    assert loaded.shape == (-(-400 // reduced), -(-240 // reduced), 3)
    assert scale == pytest.approx(reduced, rel=0.1)
    expected = np.rot90(np.asarray(image.reduce(reduced)), -1).astype(int)
    assert np.abs(loaded.astype(int) - expected).mean() < 8


def test_picture_below_the_limit_has_scale_1(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png").scale == 1


def icc_profile(red=(0.64, 0.33), green=(0.30, 0.60), blue=(0.15, 0.06), gamma=2.2, name="sRGB built-in"):
    """An ICC profile (version 2, D50) of a display with these primaries, a D65 white and a gamma curve."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50, d65 = np.array([0.9642, 1, 0.8249]), np.array([0.9505, 1, 1.0891])
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (red, green, blue)]).T
    colorants = xyz * np.linalg.solve(xyz, d65)
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford
    colorants = adapt @ colorants

    def fixed(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = name.encode() + b"\0"
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)}
    tags |= {b"cprt": b"text" + bytes(4) + b"CC0\0", b"wtpt": b"XYZ " + bytes(4) + fixed(*d50)}
    for k, color in enumerate((b"r", b"g", b"b")):
        tags[color + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*colorants[:, k])
        tags[color + b"TRC"] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    table, data = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        value += bytes(-len(value) % 4)
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value
    header = bytes(4) + struct.pack(">I", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += fixed(*d50) + bytes(48)
    profile = header + table + data
    return struct.pack(">I", len(profile) + 4) + profile


DISPLAY_P3 = dict(red=(0.680, 0.320), green=(0.265, 0.690), blue=(0.150, 0.060))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("name", ["Display P3", "sRGB built-in"])
def test_icc_profile_is_converted_to_srgb(tmp_path, mode, name):
    image = Image.new("RGB", (8, 8), (200, 120, 100))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=icc_profile(**DISPLAY_P3, name=name))
    # (200, 120, 100) of Display P3, through linear light and back with the same gamma
    p3_to_srgb = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    expected = 255 * (p3_to_srgb @ (np.array([200, 120, 100]) / 255) ** 2.2) ** (1 / 2.2)
    assert np.abs(load_image(tmp_path / "a.png")[4, 4] - expected).max() <= 4


def test_srgb_profile_changes_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(gradient()).save(tmp_path / "a.png", icc_profile=srgb)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())


@pytest.mark.parametrize("profile", [b"nonsense", bytes(500), icc_profile()[:200]])
def test_damaged_profiles_are_ignored(tmp_path, profile):
    Image.fromarray(gradient()).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())


def test_profile_of_another_colour_space_is_ignored(tmp_path):
    grey = gradient()[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=icc_profile(**DISPLAY_P3))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[..., 1], grey)


def test_heic_without_the_extra_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "[heif]" in error_of(tmp_path / "a.heic")


def test_heic_is_read(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(gradient(64, 96))
    heif.from_pillow(image).save(tmp_path / "a.jpg", quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.shape == (64, 96, 3) and np.abs(loaded.astype(int) - np.asarray(image)).mean() < 6
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    error_of(tmp_path / "cut.heic")


@pytest.mark.parametrize("path", PORTRAITS, ids=lambda p: p.name)
def test_real_portraits(path):
    image = load_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) >= 441
    assert image.std() > 20

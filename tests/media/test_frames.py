"""Frames as a player shows them: display matrix, pixel aspect ratio, colour matrices and HDR."""

from fractions import Fraction

import av
import numpy as np
import pytest

from emo_jax.media.frames import apply_display_matrix, square_size, to_rgb
from emo_jax.media.video import read_video

COLOURS = np.array([[200, 40, 40], [40, 180, 60], [30, 60, 210], [220, 180, 150], [128, 128, 128]])
BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def corners():
    """An image whose corners are red, green (right), blue (below) and white."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24], image[16:, 24:] = (220, 0, 0), (0, 220, 0), (0, 0, 220), 220
    return image


MATRICES = {  # columns and rows of the image, as 2x2 matrices of (x, y) to the display
    "none": ([1, 0, 0, 1], lambda image: image),
    "mirrored": ([-1, 0, 0, 1], lambda image: image[:, ::-1]),
    "upside down and mirrored": ([1, 0, 0, -1], lambda image: image[::-1]),
    "half turn": ([-1, 0, 0, -1], lambda image: image[::-1, ::-1]),
    "quarter turn clockwise": ([0, 1, -1, 0], lambda image: np.rot90(image, -1)),
    "quarter turn counterclockwise": ([0, -1, 1, 0], lambda image: np.rot90(image)),
    "transposed": ([0, 1, 1, 0], lambda image: image.transpose(1, 0, 2)),
    "transposed and turned": ([0, -1, -1, 0], lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_display_matrix(kind):
    (a, b, c, d), expected = MATRICES[kind]
    for scale in (1, 65536, 131072):
        matrix = np.array([[a * scale, b * scale, 0], [c * scale, d * scale, 0], [7, 7, 1 << 30]])
        np.testing.assert_array_equal(apply_display_matrix(corners(), matrix), expected(corners()))


def test_display_matrix_maps_points():
    """Checks the convention: (x, y) of the image is at (a x + c y, b x + d y) of the display."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    for (a, b, c, d), _ in MATRICES.values():
        shown = apply_display_matrix(image, np.array([[a, b, 0], [c, d, 0], [0, 0, 1]]))
        points = np.array([[a * x + c * y, b * x + d * y] for y in range(4) for x in range(6)])
        points -= points.min(axis=0)
        np.testing.assert_array_equal(shown[points[:, 1], points[:, 0]], image.reshape(-1, 3))


def write(path, image, matrix=None, aspect=None, **tags):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
        stream.options = {"crf": "4"}
        if aspect:
            stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = aspect
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        colorspace = tags.get("colorspace")
        frame = frame.reformat(format="yuv420p", **({"dst_colorspace": colorspace} if colorspace else {}))
        if tags.get("untagged"):
            frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if matrix is not None:
        data = bytearray(path.read_bytes())
        at = data.find(b"tkhd") + 4 + 40
        for place, value in enumerate((*matrix[:2], 0, *matrix[2:], 0, 0, 0, 16384)):
            data[at + 4 * place : at + 4 * place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", MATRICES)
def test_display_matrix_of_a_file_is_applied(tmp_path, kind):
    matrix, expected = MATRICES[kind]
    image = next(read_video(write(tmp_path / "a.mov", corners(), matrix)))[0].astype(int)
    shown = expected(corners())
    assert image.shape == shown.shape
    for row in (4, -4):
        for column in (4, -4):
            assert np.abs(image[row, column] - shown[row, column]).max() < 40


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(Fraction(2), (32, 96)), (Fraction(1, 2), (64, 48)), (Fraction(16, 15), (32, 51)), (Fraction(201, 200), (32, 48))],
)
def test_pixels_become_square(tmp_path, aspect, size):
    image = next(read_video(write(tmp_path / "a.mp4", corners(), aspect=aspect)))[0]
    assert image.shape[:2] == size
    assert image[4, 4, 0] > 150 > 80 > image[4, 4, 2] and image[-4, 4, 2] > 150


def test_square_size_ignores_damaged_ratios():
    for aspect in (None, Fraction(0), Fraction(1), Fraction(1000), Fraction(1, 1000)):
        assert square_size(100, 200, aspect) == (100, 200)


def test_turned_video_with_wide_pixels(tmp_path):
    path = write(tmp_path / "a.mp4", corners(), MATRICES["quarter turn clockwise"][0], Fraction(2))
    assert next(read_video(path))[0].shape == (96, 32, 3)


def test_frames_that_are_too_large_are_rejected(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", corners(), aspect=Fraction(4))
    monkeypatch.setattr("emo_jax.media.frames.MAX_FRAME_PIXELS", 32 * 48)
    with pytest.raises(ValueError, match=r"a.mp4.*192x32"):
        next(read_video(path))


@pytest.mark.parametrize(("height", "width", "matrix"), [(720, 1280, 1), (1280, 720, 1), (480, 640, 5), (576, 720, 5)])
def test_untagged_video_is_bt709_if_hd_and_bt601_if_sd(tmp_path, height, width, matrix):
    image = np.full((height, width, 3), (200, 40, 40), np.uint8)
    path = write(tmp_path / "a.mp4", image, colorspace=matrix, untagged=True)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == 2
    pixel = next(read_video(path))[0][height // 2, width // 2].astype(int)
    assert np.abs(pixel - (200, 40, 40)).max() <= 3


def pq(nits):
    """Encodes luminance in cd/m2 (SMPTE ST 2084)."""
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(nits, peak=1000):
    """Encodes luminance on a display of `peak` cd/m2 (ITU-R BT.2100)."""
    display = nits / peak
    luminance = (display * (0.2627, 0.678, 0.0593)).sum(-1, keepdims=True)
    scene = display * luminance ** ((1 - 1.2) / 1.2)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


def hdr_frame(encode, transfer):
    """A 10-bit BT.2020 frame of COLOURS at a reference white of 203 cd/m2."""
    signal = encode((COLOURS / 255) ** 2.4 @ BT709_TO_BT2020.T * 203)
    image = np.concatenate([np.broadcast_to(c, (32, 32, 3)) for c in np.round(signal * 65535).astype(np.uint16)], 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, transfer, 9
    return frame


@pytest.mark.parametrize(("encode", "transfer"), [(pq, 16), (hlg, 18)])
def test_hdr_is_tone_mapped(encode, transfer):
    frame = hdr_frame(encode, transfer)
    image = to_rgb(frame)[16, 16::32].astype(int)
    assert np.abs(image - COLOURS).max() <= 16
    frame.colorspace = 2  # without a tag of the matrix, the primaries decide
    np.testing.assert_array_equal(to_rgb(frame)[16, 16::32], image)
    frame.colorspace = 9
    untouched = frame.to_ndarray(format="rgb24")[16, 16::32].astype(int)
    assert np.abs(untouched - COLOURS).max() > 40  # grey and pale without tone mapping


@pytest.mark.slow  # the tables of a colour transform take 6 s
def test_wide_gamut_is_mapped():
    signal = ((COLOURS / 255) ** 2.4 @ BT709_TO_BT2020.T) ** (1 / 2.4)
    image = np.concatenate([np.broadcast_to(c, (32, 32, 3)) for c in np.round(signal * 65535).astype(np.uint16)], 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, 14, 9
    assert np.abs(to_rgb(frame)[16, 16::32].astype(int) - COLOURS).max() <= 16
    assert np.abs(frame.to_ndarray(format="rgb24")[16, 16::32].astype(int) - COLOURS).max() > 25

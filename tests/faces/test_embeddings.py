"""Embeddings of faces for hallo: from files, and by networks in InsightFace's form."""

import sys

import cv2
import numpy as np
import pytest

from emo_jax.faces.embeddings import TEMPLATE, InsightFace, align, read_embedding


def test_embeddings_are_read(tmp_path):
    values = np.random.default_rng(0).standard_normal(512)
    np.save(tmp_path / "a.npy", values[None])
    read = read_embedding(tmp_path / "a.npy")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values, rtol=1e-6)


@pytest.mark.parametrize("content", [np.zeros(128), np.zeros((2, 512)), np.full(512, np.nan), np.array(["a"] * 512)])
def test_other_arrays_raise(tmp_path, content):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(ValueError, match=r"a\.npy"):
        read_embedding(tmp_path / "a.npy")


def test_other_files_raise(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no numbers")
    for name in ("a.npy", "none.npy"):
        with pytest.raises(ValueError, match=name):
            read_embedding(tmp_path / name)


@pytest.mark.parametrize("turn", [0.0, 0.6, -2.0])
def test_alignment_brings_the_points_to_the_template(turn):
    """Dots at the five points of a turned, larger face are at the template's points afterwards."""
    matrix = 2.5 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (TEMPLATE - 56) @ matrix.T + 200
    image = np.zeros((400, 400, 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x), round(y)), 5, (255, 255, 255), -1)
    aligned = align(image, points)
    assert aligned.shape == (112, 112, 3)
    for x, y in TEMPLATE:
        assert aligned[round(y), round(x), 0] > 200
    assert np.count_nonzero(aligned[..., 0] > 128) < 5 * 30


def test_missing_package_and_files_raise(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install .*\[arcface\]"):
        InsightFace(tmp_path / "a.onnx")


def field(number, value):
    """Encodes a field of a protocol buffer: an int, or bytes, or text, or a list of encoded fields."""
    if isinstance(value, int):
        return bytes([number << 3]) + bytes([value])
    content = value.encode() if isinstance(value, str) else b"".join(value)
    return bytes([number << 3 | 2, len(content)]) + content


def write_network(path, side=112):
    """Writes an ONNX file of one operation: the mean of each channel of (1, 3, side, side)."""

    def tensor(name, sizes):
        shape = field(2, [field(1, [field(1, size)]) for size in sizes])
        return [field(1, name), field(2, [field(1, [field(1, 1), shape])])]

    node = field(1, [field(1, "image"), field(2, "means"), field(4, "GlobalAveragePool")])
    inside = [field(11, tensor("image", (1, 3, side, side))), field(12, tensor("means", (1, 3, 1, 1)))]
    path.write_bytes(field(1, 8) + field(7, [node, field(2, "toy"), *inside]) + field(8, [field(1, ""), field(2, 13)]))
    return path


def test_network_is_run_on_the_normalized_aligned_face(tmp_path):
    pytest.importorskip("onnxruntime")
    image = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8) // (1, 2, 4)
    points = TEMPLATE + 12
    embedding = InsightFace(write_network(tmp_path / "a.onnx")).embed(image.astype(np.uint8), points)
    expected = align(image.astype(np.uint8), points).mean((0, 1)) / 127.5 - 1
    np.testing.assert_allclose(embedding, expected, atol=1e-5)  # red is first


def test_files_that_are_no_recognition_network_raise(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"a\.onnx"):
        InsightFace(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"none\.onnx"):
        InsightFace(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="expected one image"):
        InsightFace(write_network(tmp_path / "b.onnx", 64))

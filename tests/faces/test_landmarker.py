"""The analyzer based on mediapipe, with a fake mediapipe because its model cannot be distributed."""

import sys
import types

import numpy as np
import pytest

from emo_jax.faces.landmarks import Landmarker, head_angles
from emo_jax.faces.rotation import rotation_matrices

FLIP = np.diag([1.0, -1.0, 1.0])  # y points up in mediapipe


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(b"model")
    return path


def mark(x, y):
    return types.SimpleNamespace(x=x, y=y)


@pytest.fixture
def mediapipe(monkeypatch):
    """Installs a fake mediapipe that detects the faces in `mediapipe.faces`: (corners of the mesh, pose) each."""
    package = types.ModuleType("mediapipe")
    package.faces, package.options = [], None
    package.ImageFormat = types.SimpleNamespace(SRGB="srgb")
    package.Image = lambda image_format, data: (image_format, data.shape)

    class Detector:
        def detect(self, image):
            assert image == ("srgb", (100, 200, 3))
            marks = [[mark(*corner) for corner in corners] + [mark(9, 9)] * 10 for corners, _ in package.faces]
            poses = [pose for _, pose in package.faces]
            return types.SimpleNamespace(face_landmarks=marks, facial_transformation_matrixes=poses)

    def create(options):
        package.options = options
        return Detector()

    python = types.ModuleType("mediapipe.tasks.python")
    python.BaseOptions = lambda model_asset_path: model_asset_path
    python.vision = types.SimpleNamespace(
        FaceLandmarkerOptions=lambda **options: options,
        RunningMode=types.SimpleNamespace(IMAGE="image"),
        FaceLandmarker=types.SimpleNamespace(create_from_options=create),
    )
    for name, module in {
        "mediapipe": package,
        "mediapipe.tasks": types.ModuleType("mediapipe.tasks"),
        "mediapipe.tasks.python": python,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return package


def mesh(x0, y0, x1, y1):
    """Returns 468 points with these corners, as shares of the picture."""
    points = np.random.default_rng(0).uniform((x0, y0), (x1, y1), (468, 2))
    points[:2] = (x0, y0), (x1, y1)
    return points.tolist()


def pose(yaw, pitch, roll, scale=1.0):
    matrix = np.eye(4)
    matrix[:3, :3] = scale * FLIP @ rotation_matrices([yaw, pitch, roll]) @ FLIP
    matrix[:3, 3] = (3, -2, -40)
    return matrix


@pytest.mark.parametrize("angles", [(25, 0, 0), (0, -15, 0), (0, 0, 30), (-20, 12, -8)])
def test_head_angles_inverts_rotation_matrices(angles):
    np.testing.assert_allclose(head_angles(pose(*angles, scale=1.3)[:3, :3]), angles, atol=1e-6)


def test_boxes_enclose_the_mesh_and_the_main_face_is_first(model, mediapipe):
    tracker, image = Landmarker(model), np.zeros((100, 200, 3), np.uint8)
    assert mediapipe.options["base_options"] == str(model)
    assert mediapipe.options["output_facial_transformation_matrixes"] and mediapipe.options["num_faces"] > 1
    mediapipe.faces = [(mesh(0.1, 0.1, 0.2, 0.6), pose(1, 2, 3)), (mesh(0.5, 0.1, 0.8, 0.9), pose(10, -5, 4))]
    large, small = tracker.detect(image)
    np.testing.assert_allclose(large.box, (100, 10, 160, 90))
    np.testing.assert_allclose(large.rotation, (10, -5, 4), atol=1e-6)
    np.testing.assert_allclose(small.rotation, (1, 2, 3), atol=1e-6)
    assert large.landmarks.shape == (468, 2)  # without the irises
    np.testing.assert_allclose(large.landmarks, np.array(mesh(0.5, 0.1, 0.8, 0.9)) * (200, 100), rtol=1e-6)
    assert large.confidence > 0.5
    mediapipe.faces = [(mesh(0.5, 0.3, 0.7, 0.8), pose(0, 0, 0)), (mesh(0.0, 0.1, 0.4, 0.9), pose(0, 0, 0))]
    assert tracker.detect(image)[0].box[0] == pytest.approx(100)  # the previous one, though not the largest
    tracker.reset()
    assert tracker.detect(image)[0].box[0] == pytest.approx(0)
    mediapipe.faces = []
    assert tracker.detect(image) == []


def test_missing_model_or_package_raises(tmp_path, model, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere\.task"):
        Landmarker(tmp_path / "nowhere.task")
    monkeypatch.setenv("EMO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"cache.face_landmarker\.task"):
        Landmarker()
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ValueError, match=r"pip install .*\[faces\]"):
        Landmarker(model)


def test_invalid_model_file_raises(model, mediapipe, monkeypatch):
    def refuse(options):
        raise RuntimeError("Unable to open zip archive.\n")

    monkeypatch.setattr(sys.modules["mediapipe.tasks.python"].vision.FaceLandmarker, "create_from_options", refuse)
    with pytest.raises(ValueError, match=r"face_landmarker\.task \(Unable to open"):
        Landmarker(model)

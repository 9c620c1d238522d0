"""mediapipe's Face Landmarker, with a stand-in for mediapipe, whose model is not ours to ship."""

import sys
import types

import numpy as np
import pytest

from emo_jax.faces.landmarks import Landmarker, head_angles
from emo_jax.faces.rotation import rotation_matrices

FLIP = np.diag([1.0, -1.0, 1.0])  # mediapipe's y points up


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(b"model")
    return path


def mark(x, y):
    return types.SimpleNamespace(x=x, y=y)


@pytest.fixture
def mediapipe(monkeypatch):
    """A mediapipe that sees what the list `mediapipe.seen` holds: (corners of the mesh, pose) per face."""
    package = types.ModuleType("mediapipe")
    package.seen, package.options = [], None
    package.ImageFormat = types.SimpleNamespace(SRGB="srgb")
    package.Image = lambda image_format, data: (image_format, data.shape)

    class Detector:
        def detect(self, image):
            assert image == ("srgb", (100, 200, 3))
            marks = [[mark(*corner) for corner in corners] + [mark(9, 9)] * 10 for corners, _ in package.seen]
            poses = [pose for _, pose in package.seen]
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
    """468 points whose corners are these shares of the picture."""
    points = np.random.default_rng(0).uniform((x0, y0), (x1, y1), (468, 2))
    points[:2] = (x0, y0), (x1, y1)
    return points.tolist()


def pose(yaw, pitch, roll, scale=1.0):
    matrix = np.eye(4)
    matrix[:3, :3] = scale * FLIP @ rotation_matrices([yaw, pitch, roll]) @ FLIP
    matrix[:3, 3] = (3, -2, -40)
    return matrix


@pytest.mark.parametrize("angles", [(25, 0, 0), (0, -15, 0), (0, 0, 30), (-20, 12, -8)])
def test_angles_are_those_of_the_project(angles):
    np.testing.assert_allclose(head_angles(pose(*angles, scale=1.3)[:3, :3]), angles, atol=1e-6)


def test_boxes_hold_the_mesh_and_the_main_face_is_first(model, mediapipe):
    tracker, image = Landmarker(model), np.zeros((100, 200, 3), np.uint8)
    assert mediapipe.options["base_options"] == str(model)
    assert mediapipe.options["output_facial_transformation_matrixes"] and mediapipe.options["num_faces"] > 1
    mediapipe.seen = [(mesh(0.1, 0.1, 0.2, 0.6), pose(1, 2, 3)), (mesh(0.5, 0.1, 0.8, 0.9), pose(10, -5, 4))]
    large, small = tracker.faces(image)
    np.testing.assert_allclose(large.box, (100, 10, 160, 90))
    np.testing.assert_allclose(large.rotation, (10, -5, 4), atol=1e-6)
    np.testing.assert_allclose(small.rotation, (1, 2, 3), atol=1e-6)
    assert large.landmarks.shape == (468, 2)  # without the irises
    np.testing.assert_allclose(large.landmarks, np.array(mesh(0.5, 0.1, 0.8, 0.9)) * (200, 100), rtol=1e-6)
    assert large.confidence > 0.5
    mediapipe.seen = [(mesh(0.5, 0.3, 0.7, 0.8), pose(0, 0, 0)), (mesh(0.0, 0.1, 0.4, 0.9), pose(0, 0, 0))]
    assert tracker.faces(image)[0].box[0] == pytest.approx(100)  # the one followed, though not the largest
    tracker.reset()
    assert tracker.faces(image)[0].box[0] == pytest.approx(0)
    mediapipe.seen = []
    assert tracker.faces(image) == []


def test_what_is_missing_is_one_line(tmp_path, model, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere.task does not exist: download face_landmarker.task"):
        Landmarker(tmp_path / "nowhere.task")
    monkeypatch.setenv("EMO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"cache.face_landmarker.task does not exist"):
        Landmarker()
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ValueError, match=r"mediapipe is not installed: pip install .* -e '\.\[faces\]'"):
        Landmarker(model)


def test_a_file_that_is_no_model_is_one_line(model, mediapipe, monkeypatch):
    def refuse(options):
        raise RuntimeError("Unable to open zip archive.\n")

    monkeypatch.setattr(sys.modules["mediapipe.tasks.python"].vision.FaceLandmarker, "create_from_options", refuse)
    with pytest.raises(ValueError, match=r"does not take .*face_landmarker.task \(Unable to open zip archive.\)"):
        Landmarker(model)

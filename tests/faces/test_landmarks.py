"""Faces by landmarks. Tests with the networks need the model files: python -m tests.fetch_models."""

import numpy as np
import pytest

from emo_jax.faces.analyzers import make_analyzer, portrait_faces
from emo_jax.faces.boxes import overlap
from emo_jax.faces.landmarks import LandmarkTracker, find_landmarks, load_networks
from emo_jax.faces.mesh import INNER_LIPS, MESH_POINTS, NOSE_TIP, FaceMesh, matrix_angles
from emo_jax.faces.networks import SHAPE_POINTS, SHAPES, Crop, Recognizer, five_points, landmark_crop
from emo_jax.faces.rotation import rotation_matrices
from emo_jax.generation.inputs import ASSETS
from emo_jax.media.images import load_image
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box, render


@pytest.fixture(scope="module")
def portrait():
    return load_image(ASSETS / "portrait.png")


def project(mesh, angles, scale=12.0, distance=60.0, shift=(130, 120, 0)):
    """Returns the landmarks of the average face, turned and seen from `distance` centimetres."""
    turned = mesh.points @ rotation_matrices(angles).T
    near = 1 / (1 - turned[:, 2] / distance)
    return np.column_stack([turned[:, 0] * near, turned[:, 1] * near, turned[:, 2]]) * scale + shift


def synthetic_mesh():
    """A mesh of random points in the depth of a face, with a few anchors."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-7.5, -8, -2), (7.5, 9, 7), (MESH_POINTS, 3))
    return FaceMesh(points, (np.arange(MESH_POINTS) % 14 == 0).astype(float))


@pytest.mark.parametrize("angles", [(0, 0, 0), (35, 0, 0), (0, -20, 0), (0, 0, 40), (-25, 15, -12), (5, 3, 170)])
def test_head_angles_of_turned_meshes(angles):
    mesh = synthetic_mesh()
    for distance, tolerance in ((60.0, 1.5), (45.0, 3.5), (150.0, 3.5)):  # the fit assumes 60
        np.testing.assert_allclose(mesh.head_angles(project(mesh, angles, distance=distance)), angles, atol=tolerance)
    np.testing.assert_allclose(matrix_angles(rotation_matrices(angles)), angles, atol=1e-9)


def test_moving_lips_change_the_angles_little():
    mesh = synthetic_mesh()
    points = project(mesh, (10, 0, 0))
    points[mesh.points[:, 1] > 5, 1] += 12  # the jaw drops by a centimetre
    assert np.abs(np.subtract(mesh.head_angles(points), (10, 0, 0))).max() < 2


def test_crop_matrix_turns_about_the_centre():
    matrix = Crop((50.0, 40.0), 64.0, np.pi / 6).matrix(256)
    np.testing.assert_allclose(matrix @ (50, 40, 1), (128, 128))
    along = (50 + 32 * np.cos(np.pi / 6), 40 + 32 * np.sin(np.pi / 6), 1)
    np.testing.assert_allclose(matrix @ along, (256, 128), atol=1e-9)


def test_crop_of_landmarks_is_level_and_contains_them():
    points = project(synthetic_mesh(), (0, 0, 25))
    points = np.concatenate([points, points[:10]])
    crop = landmark_crop(points)
    inside = points[:, :2] @ crop.matrix(256)[:, :2].T + crop.matrix(256)[:, 2]
    assert inside.min() > 30 and inside.max() < 226
    assert inside[33, 1] == pytest.approx(inside[263, 1], abs=1e-6)


def test_names_and_points_of_blendshapes():
    assert len(SHAPES) == len(set(SHAPES)) == 52 and len(SHAPE_POINTS) == len(set(SHAPE_POINTS)) == 146


def test_landmarks_of_the_bundled_portrait(face_models, portrait):
    (face,) = find_landmarks(portrait, load_networks(face_models))
    assert face.landmarks.shape == (478, 2)
    assert overlap(face.box, portrait_faces(portrait, face_models)[0].box) == 1
    assert np.abs(face.rotation).max() < 5
    x0, y0, x1, y1 = face.box
    assert abs(face.landmarks[NOSE_TIP][0] - (x0 + x1) / 2) < 0.1 * (x1 - x0)


def test_boxes_of_landmarks_and_of_cascades_are_the_same_box(face_models, portrait, monkeypatch):
    found = portrait_faces(portrait)[0].box
    monkeypatch.setenv("EMO_FACE_MODELS", "/dev/null")
    assert overlap(found, portrait_faces(portrait)[0].box) > 0.85


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_faces_that_are_upside_down_are_found(face_models, portrait, quarters):
    networks = load_networks(face_models)
    turned = np.ascontiguousarray(np.rot90(portrait, quarters))
    (face,) = find_landmarks(turned, networks, tilted=True)
    roll = {1: -90, 2: 180, 3: 90}[quarters]
    assert abs((face.rotation[2] - roll + 180) % 360 - 180) < 5


def test_no_face_in_noise_and_flat_pictures(face_models):
    networks = load_networks(face_models)
    for image in (
        np.full((90, 160, 3), 128, np.uint8),
        np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8),
    ):
        assert find_landmarks(image, networks, tilted=True) == []
    with pytest.raises(ValueError, match="expected uint8 RGB"):
        find_landmarks(np.zeros((8, 8, 3), np.float32), networks)


def test_tracker_follows_turns_and_opening(face_models):
    person, tracker, size = Identity.sample(2), LandmarkTracker(face_models), 192
    states = [State(yaw=20 * np.sin(k / 4), roll=12 * np.sin(k / 6), opening=k % 8 / 8) for k in range(24)]
    tracked = [tracker.detect(render(person, state, size)) for state in states]
    assert all(len(faces) == 1 for faces in tracked)
    true = [face_box(person, state, size) for state in states]
    assert min(overlap(faces[0].box, box) for faces, box in zip(tracked, true, strict=True)) > 0.6
    angles = np.array([faces[0].rotation for faces in tracked])
    assert np.corrcoef(angles[:, 0], [state.yaw for state in states])[0, 1] > 0.9
    assert np.corrcoef(angles[:, 2], [state.roll for state in states])[0, 1] > 0.97
    gaps = [np.subtract(*faces[0].landmarks[list(INNER_LIPS)])[1] for faces in tracked]
    assert np.corrcoef(gaps, [-state.opening for state in states])[0, 1] > 0.8


def test_tracker_forgets_and_finds_again(face_models):
    tracker, image = LandmarkTracker(face_models), render(Identity.sample(2), State(), 192)
    first = tracker.detect(image)
    assert first and tracker.detect(np.full((192, 192, 3), 90, np.uint8)) == []
    assert tracker.detect(image) == first
    tracker.reset()
    assert tracker.detect(image) == first


def test_two_faces_are_counted_and_the_main_one_kept(face_models):
    small, large = render(Identity.sample(4), State(), 160), render(Identity.sample(2), State(), 200)
    both = np.concatenate([np.pad(small, ((0, 40), (0, 0), (0, 0)), mode="edge"), large], 1)
    tracker = LandmarkTracker(face_models)
    main, other = tracker.detect(both)
    assert main.box[0] > 160 > other.box[0]
    tracker.reset()
    alone = both.copy()
    alone[:, 160:] = 90
    assert [face.box[0] < 160 for face in tracker.detect(alone)] == [True]
    for _ in range(10):
        faces = tracker.detect(both)
    assert [face.box[0] < 160 for face in faces] == [True, False]  # not the largest, but the previous one


def test_embeddings_tell_people_apart(face_models, portrait):
    networks, recognizer = load_networks(face_models), Recognizer(face_models)

    def embed(image):
        return recognizer.embed(image, five_points(find_landmarks(image, networks)[0].landmarks))

    own = embed(portrait)
    assert own.shape == (128,) and np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
    smaller = np.ascontiguousarray(portrait[8:-8, 8:-8])
    other = render(Identity.sample(4), State(), 256)
    assert own @ embed(smaller) > 0.9 > own @ embed(other)


def test_blendshapes_follow_the_jaw(face_models):
    networks, person = load_networks(face_models), Identity.sample(2)
    jaw = []
    for opening in (0.0, 1.0):
        (face,) = find_landmarks(render(person, State(opening=opening), 256), networks)
        weights = networks.blendshapes(face.landmarks)
        assert weights.shape == (52,) and 0 <= weights.min() and weights.max() <= 1
        jaw.append(weights[SHAPES.index("jawOpen")])
    assert jaw[1] > jaw[0] + 0.1


def test_make_analyzer_takes_landmarks_where_the_models_are(face_models, tmp_path, monkeypatch):
    assert make_analyzer("auto").name == "landmarks" and make_analyzer("haar").name == "haar"
    monkeypatch.setenv("EMO_FACE_MODELS", str(tmp_path))
    assert make_analyzer("auto").name == "haar"
    assert make_analyzer("auto", face_models).name == "landmarks"


def test_damaged_models_raise_one_line(face_models, tmp_path):
    from emo_jax.faces.models import MODELS

    for model in MODELS:
        (tmp_path / model.file).write_bytes(b"\0" * model.size)
    for load in (load_networks, Recognizer):
        with pytest.raises(ValueError, match="emo models download"):
            load(str(tmp_path))

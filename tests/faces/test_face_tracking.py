"""Face analyzers: the main face, tracking, and the choice of an analyzer."""

import numpy as np
import pytest

from emo_jax.faces.analyzer import Face, main_first
from emo_jax.faces.analyzers import make_analyzer, portrait_faces
from emo_jax.faces.boxes import overlap
from emo_jax.faces.detection import find_faces
from emo_jax.faces.tracking import HaarTracker
from emo_jax.generation.inputs import ASSETS
from emo_jax.media.images import load_image
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box, render
from tests.faces import heads


def face(x, y, side):
    return Face((x, y, x + side, y + side), (0.0, 0.0, 0.0), 1.0)


def test_overlap():
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_main_face_is_the_previous_one_or_the_largest():
    small, large, speck = face(0, 0, 50), face(100, 0, 80), face(300, 0, 15)
    assert main_first([], None) == []
    assert main_first([small, large, speck], None) == [large, small]
    assert main_first([small, large, speck], (2, 2, 50, 50)) == [small, large]
    assert main_first([small, large], (500, 500, 600, 600)) == [large, small]  # the previous face is gone


def test_tracker_follows_a_head_that_moves_and_leans():
    person, tracker = Identity.sample(heads.PERSON), HaarTracker()
    states = [State(roll=15 * np.sin(k / 12), shift_x=0.08 * np.sin(k / 9)) for k in range(60)]
    tracked = [tracker.detect(render(person, state, 160)) for state in states]
    assert all(len(faces) == 1 for faces in tracked)
    true = np.array([face_box(person, state, 160) for state in states])
    assert min(overlap(faces[0].box, box) for faces, box in zip(tracked, true, strict=True)) > 0.55
    roll = [faces[0].rotation[2] for faces in tracked]
    assert np.corrcoef(roll, [state.roll for state in states])[0, 1] > 0.97  # clockwise is positive


def test_tracker_forgets_a_face_that_disappears():
    tracker = HaarTracker()
    for image in heads.heads(10):
        assert tracker.detect(image)
    wall = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert [tracker.detect(wall) for _ in range(10)] == [[]] * 10


def test_reset_forgets_the_previous_shot():
    images, tracker, fresh = heads.heads(20), HaarTracker(), HaarTracker()
    for image in heads.heads(15, person=4):
        tracker.detect(image)
    tracker.reset()
    assert [tracker.detect(image) for image in images] == [fresh.detect(image) for image in images]


def test_two_faces_are_counted():
    both = np.concatenate([heads.heads(3), heads.heads(3, person=4)], 2)
    tracker = HaarTracker()
    assert [len(tracker.detect(image)) for image in both] == [2, 2, 2]


def test_make_analyzer_by_name(tmp_path):
    assert make_analyzer("auto").name == make_analyzer("haar").name == "haar"
    with pytest.raises(ValueError, match="dlib.*auto, haar, landmarks"):
        make_analyzer("dlib")
    with pytest.raises(ValueError, match=f"haar.*{tmp_path}"):
        make_analyzer("haar", str(tmp_path))
    for name in ("auto", "landmarks"):
        with pytest.raises(ValueError, match=f"{tmp_path}.*is missing"):
            make_analyzer(name, str(tmp_path))


def test_portraits_without_model_files_are_searched_by_cascades():
    """Generation with the bundled weights gives the same bytes as before there were model files."""
    image = load_image(ASSETS / "portrait.png")
    assert [face.box for face in portrait_faces(image)] == find_faces(image, tilted=True) != []
    assert portrait_faces(image)[0].landmarks is None

"""Faces from frame to frame."""

import numpy as np
import pytest

from emo_jax.faces import landmarks as landmarker
from emo_jax.faces.tracking import Face, HaarTracker, main_first, make_analyzer, overlap
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


def test_the_main_face_stays_the_main_face():
    small, large, speck = face(0, 0, 50), face(100, 0, 80), face(300, 0, 15)
    assert main_first([], None) == []
    assert main_first([small, large, speck], None) == [large, small]
    assert main_first([small, large, speck], (2, 2, 50, 50)) == [small, large]
    assert main_first([small, large], (500, 500, 600, 600)) == [large, small]  # a face that has gone


def test_the_tracker_follows_a_head_that_moves_and_leans():
    person, tracker = Identity.sample(heads.PERSON), HaarTracker()
    states = [State(roll=15 * np.sin(k / 12), shift_x=0.08 * np.sin(k / 9)) for k in range(60)]
    found = [tracker.faces(render(person, state, 160)) for state in states]
    assert all(len(faces) == 1 for faces in found)
    true = np.array([face_box(person, state, 160) for state in states])
    assert min(overlap(faces[0].box, box) for faces, box in zip(found, true, strict=True)) > 0.55
    roll = [faces[0].rotation[2] for faces in found]
    assert np.corrcoef(roll, [state.roll for state in states])[0, 1] > 0.97  # clockwise is positive


def test_the_tracker_loses_a_face_that_goes():
    tracker = HaarTracker()
    for image in heads.heads(10):
        assert tracker.faces(image)
    wall = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert [tracker.faces(wall) for _ in range(10)] == [[]] * 10


def test_reset_forgets():
    images, tracker, fresh = heads.heads(20), HaarTracker(), HaarTracker()
    for image in heads.heads(15, person=4):
        tracker.faces(image)
    tracker.reset()
    assert [tracker.faces(image) for image in images] == [fresh.faces(image) for image in images]


def test_two_faces_are_counted():
    both = np.concatenate([heads.heads(3), heads.heads(3, person=4)], 2)
    tracker = HaarTracker()
    assert [len(tracker.faces(image)) for image in both] == [2, 2, 2]


def test_analyzers_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_CACHE", str(tmp_path))
    assert make_analyzer("auto").name == make_analyzer("haar").name == "haar"
    with pytest.raises(ValueError, match="'dlib' is unknown; choose one of auto, haar, mediapipe"):
        make_analyzer("dlib")
    with pytest.raises(ValueError, match="haar takes no model"):
        make_analyzer("haar", "face_landmarker.task")
    monkeypatch.setattr(landmarker, "Landmarker", lambda model: ("landmarker", model))
    assert make_analyzer("auto", "a.task") == ("landmarker", "a.task")
    (tmp_path / "face_landmarker.task").write_bytes(b"x")
    assert make_analyzer("auto") == ("landmarker", None)  # in the cache

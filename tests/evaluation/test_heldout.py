"""Held-out people: not in the training data, and the same in every call."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax.data.records import write_records
from emo_jax.evaluation import heldout, picture
from emo_jax.synthetic.world import SPLIT_SEEDS

DATA = ConfigDict(dict(crop_scale=(0.8, 0.8)))
CLIP = ConfigDict(dict(fps=25.0, image_size=(64, 64)))


@pytest.fixture(scope="module")
def people():
    return heldout.choose_people(2, 1, 0.4, CLIP, DATA)


def test_seeds_are_in_a_validation_block_beyond_any_validation_split():
    block = heldout.FIRST_SEED // SPLIT_SEEDS
    assert block % 2 == 1  # prepare: even blocks train, odd ones validate
    assert (heldout.FIRST_SEED + heldout.LONG_SEEDS + 1000) // SPLIT_SEEDS == block
    assert heldout.FIRST_SEED % SPLIT_SEEDS > 1_000_000


def test_shapes_and_the_voice_of_the_next_record(people):
    assert people.references.shape == (2, 64, 64, 3) and people.others.shape == (1, 64, 64, 3)
    assert people.voices.shape == (2, 6400) and people.renders.shape == (2, 10, 64, 64, 3)
    assert np.array_equal(people.openings, people.rendered_openings[::-1])
    assert people.seeds == [heldout.FIRST_SEED, heldout.FIRST_SEED + 1]


def test_equal_arguments_give_equal_people(people):
    again = heldout.choose_people(2, 1, 0.4, CLIP, DATA)
    assert np.array_equal(people.references, again.references) and np.array_equal(people.voices, again.voices)


def test_masks_mark_the_face_and_shift(people):
    masks = people.masks()
    marked = [np.argwhere(mask[..., 0]) for mask in masks]
    for where, box in zip(marked, people.boxes, strict=True):
        assert (where.min(0) <= box[[1, 0]]).all() and (where.max(0) + 1 >= box[[3, 2]]).all()
    moved = people.masks((4 / 64, -3 / 64))
    assert np.array_equal(moved[:, :-3, 4:], masks[:, 3:, :-4])


def test_renders_of_a_person_with_the_given_voice(people):
    frames = heldout.rendered(people, 0, [0, 9], 25.0)
    assert frames.shape == (2, 64, 64, 3) and (frames[0] != frames[1]).any()


def test_faces_are_placed_as_in_training():
    face = dict(height=0.6, centre=(0.5, 0.5))
    clip, data = ConfigDict(dict(CLIP, face=face)), ConfigDict(dict(DATA, face_crop=True))
    people = heldout.choose_people(2, 0, 0.4, clip, data)
    x0, y0, x1, y1 = people.boxes.T / 64
    np.testing.assert_allclose(y1 - y0, 0.6, atol=0.05)
    np.testing.assert_allclose(((x0 + x1) / 2, (y0 + y1) / 2), 0.5, atol=0.1)
    assert people.seeds == [None, None]  # the crops of a person who is rendered again would differ


def test_other_worlds_raise():
    with pytest.raises(ValueError, match="'oil'.*drawn, people"):
        heldout.choose_people(2, 0, 0.4, CLIP, DATA, world="oil")


def test_unsuitable_records_raise(tmp_path):
    with pytest.raises(ValueError, match="1 identities"):
        heldout.choose_people(1, 0, 1.0, CLIP, DATA)
    with pytest.raises(ValueError, match="none"):
        heldout.choose_people(2, 0, 1.0, CLIP, DATA, str(tmp_path / "none"))


def test_too_few_records_raise(tmp_path, make_record):
    write_records(tmp_path / "out", {"validation": lambda: map(make_record, (0, 2))}, progress=False)
    with pytest.raises(ValueError, match="out, split validation: .* --identities") as caught:
        heldout.choose_people(3, 64, 1.0, CLIP, DATA, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_picture_has_a_pair_of_lines_for_each_person(people):
    image = picture.side_by_side(people, people.renders, 25.0, shown=2, moments=3)
    assert image.shape == (4 * (64 + picture.CAPTION), 4 * 64, 3) and image.dtype == np.uint8
    assert np.array_equal(image[picture.CAPTION : picture.CAPTION + 64, :64], people.references[0])

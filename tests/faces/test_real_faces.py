"""Faces of real portraits and videos, and of rendered people with known rotation. They need the model files."""


import numpy as np
import pytest

from emo_jax.faces.analyzers import portrait_faces
from emo_jax.faces.landmarks import LandmarkTracker
from emo_jax.faces.mesh import INNER_LIPS, NOSE_TIP
from emo_jax.faces.networks import Recognizer, five_points
from emo_jax.faces.regions import regions_from_landmarks
from emo_jax.media.images import load_image
from emo_jax.media.mp4 import decode_video
from emo_jax.media.video import read_video
from emo_jax.preparation.video_records import head_motion
from emo_jax.synthetic.people import assets
from emo_jax.synthetic.people.renderer import has_renderer
from tests.faces.test_faces import CENTRES, MEDIA

VIDEOS = {  # the number of frames at 25 fps that show a face; one video ends with a page of text
    "real_latentsync_demo1.mp4": 250,
    "real_moore_1.mp4": 269,
    "real_moore_3.mp4": 118,
    "real_sadtalker_WDA_KatieHill.mp4": 200,
}
needs_media = pytest.mark.skipif(not MEDIA.exists(), reason="no shared media")


@needs_media
@pytest.mark.parametrize("name", CENTRES)
def test_landmarks_and_masks_of_real_portraits(face_models, name):
    image = load_image(MEDIA / "portraits" / name)
    height, width = image.shape[:2]
    face = portrait_faces(image)[0]
    nose, lips = face.landmarks[NOSE_TIP], face.landmarks[list(INNER_LIPS)].mean(0)
    x0, y0, x1, y1 = face.box
    assert abs(nose[0] / width - CENTRES[name][0]) < 0.12 * (x1 - x0) / width
    assert abs(nose[1] / height - CENTRES[name][1]) < 0.12 * (y1 - y0) / height
    masks = regions_from_landmarks(face.landmarks, height, width).masks([(height, width)])
    at_lips, at_eyes = (round(lips[1]), round(lips[0])), (round((y0 + nose[1]) / 2), round(nose[0]))
    lip, skin = masks["lip"][0], masks["face"][0]
    assert lip[at_lips] > 0.7 and lip[at_eyes] < lip[at_lips] - 0.3 and skin[at_eyes] > skin[at_lips] + 0.2
    assert masks["pose"][0][0, 0] > 0.9


@needs_media
@pytest.mark.slow
def test_every_frame_of_real_videos_has_landmarks_and_the_right_person(face_models):
    recognizer, people = Recognizer(), {}
    for name, expected in VIDEOS.items():
        tracker, embeddings, found = LandmarkTracker(), [], 0
        for index, (image, _) in enumerate(read_video(MEDIA / "video" / name, 25)):
            faces = tracker.detect(image)
            found += bool(faces)
            if faces and index % 25 == 0:
                embeddings.append(recognizer.embed(image, five_points(faces[0].landmarks)))
        assert found >= 0.98 * expected
        people[name] = np.array(embeddings)
    for name, own in people.items():
        assert (own @ own.T).min() > 0.6
        for other in people:
            assert other == name or (own @ people[other].T).max() < 0.4


@pytest.mark.slow
@pytest.mark.skipif(not assets.has_heads() or not has_renderer(), reason="no head data or OpenGL")
def test_head_speed_of_rendered_people(face_models):
    """The speeds of people who move at least slowly are within a quarter of the truth, half of them within a tenth."""
    from emo_jax.synthetic.people.world import make_record

    errors = []
    for seed in (100, 104, 106, 107, 108, 109):
        record = make_record(seed, seconds=3.0)
        tracker = LandmarkTracker()
        angles = [tracker.detect(image)[0].rotation for image in decode_video(record.video, 0, len(record.boxes))]
        speed = head_motion(np.array(angles))[1]
        errors.append(abs(speed.mean() / record.speed.mean() - 1))
    assert max(errors) < 0.25 and np.median(errors) < 0.1

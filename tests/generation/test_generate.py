"""Generation with a small EMO of random weights: lengths, seeds, one program, placement, files."""

import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest
from emo_jax.configs import tiny
from PIL import Image

import emo_jax
from emo_jax.cli.generate import parse_size
from emo_jax.faces.boxes import crop_around
from emo_jax.generation.inputs import Voice, load_portrait, load_voice, place
from emo_jax.generation.output import retimed, write_video
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.video import probe
from emo_jax.synthetic.assets import ASSETS, PERSON, SIDE
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import face_box

BOX = (60.0, 50.0, 130.0, 150.0)
MEDIA = pathlib.Path(__file__).parents[3] / "shared" / "media"


def voice(samples, seed=0):
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0, 0.3, samples // 800 + 1), 800)[:samples]
    return (loud * rng.standard_normal(samples)).astype(np.float32).clip(-1, 1)


def picture(seed=0, height=200, width=180):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def frames(pipeline, samples=9000, audio_seed=0, portrait=0, **options):
    made = list(pipeline.stream(picture(portrait), voice(samples, audio_seed), face_box=BOX, **options))
    return np.concatenate(made)


@pytest.mark.parametrize("samples", [640, 641, 5120, 5121, 16000])
def test_frames_are_the_ceiling_of_seconds_times_fps(pipeline, samples):
    made = list(pipeline.stream(picture(), voice(samples), face_box=BOX))
    assert sum(len(f) for f in made) == math.ceil(samples * 25 / 16000)
    assert all(f.dtype == np.uint8 and f.shape[1:] == (64, 64, 3) and len(f) <= 8 for f in made)


def test_the_whole_is_the_stream(pipeline):
    whole = pipeline(picture(), voice(9000), face_box=BOX)
    assert np.array_equal(whole.frames, frames(pipeline))
    assert (whole.fps, whole.audio_rate) == (25, 16000) and np.array_equal(whole.audio, voice(9000))


def test_equal_seeds_give_equal_frames_and_everything_else_counts(pipeline):
    first = frames(pipeline)
    assert np.array_equal(first, frames(pipeline))
    others = [
        dict(seed=1),
        dict(audio_seed=1),
        dict(portrait=1),
        dict(speed=2.0),
        dict(reference_scale=1.2),
        dict(audio_scale=3.0),
    ]
    for other in others:
        assert not np.array_equal(first, frames(pipeline, **other)), other


def test_one_program_for_all_lengths_portraits_seeds_speeds_and_scales(pipeline):
    frames(pipeline)
    frames(pipeline, samples=20000, portrait=1, seed=2**32 - 1, speed=1, reference_scale=2, audio_scale=3.5)
    assert pipeline.compilations() == 1


def test_loudness_is_levelled(pipeline):
    quiet = list(pipeline.stream(picture(), 0.25 * voice(9000), face_box=BOX))
    difference = np.concatenate(quiet).astype(int) - frames(pipeline)
    assert np.abs(difference).max() <= 2


def test_file_keeps_time_and_the_original_sound(pipeline, tmp_path):
    whole = pipeline(picture(), voice(9000), face_box=BOX)
    whole.save(tmp_path / "a.mp4")
    found = probe(tmp_path / "a.mp4")
    assert (found["frames"], found["fps"], found["audio_rate"]) == (15, 25, 16000)
    assert found["seconds"] == pytest.approx(0.6) and found["audio_seconds"] == pytest.approx(0.6, abs=1e-3)


def test_pictures_of_any_aspect_and_kind(pipeline, tmp_path):
    for height, width in ((1, 1), (3, 400), (400, 3)):
        (made,) = pipeline.stream(picture(0, height, width), voice(640))
        assert made.shape == (1, 64, 64, 3)
    image = Image.fromarray(picture())
    image.save(tmp_path / "a.png")
    for portrait in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(load_portrait(portrait), picture())
    grey = load_portrait(image.convert("LA"))
    assert grey.shape == (200, 180, 3) and np.ptp(grey, axis=2).max() == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(seed=-1), "seed is -1"),
        (dict(seed=0.5), "seed is 0.5"),
        (dict(steps=0), "steps is 0"),
        (dict(steps=1001), "steps is 1001"),
        (dict(solver="euler"), "solver is 'euler'"),
        (dict(speed=float("nan")), "speed is nan"),
        (dict(audio_scale=-1.0), "audio_scale is -1.0"),
        (dict(reference_scale=float("inf")), "reference_scale is inf"),
        (dict(face_box=(0, 0, 181, 20)), "outside the image"),
        (dict(audio=voice(639)), "at least one video frame"),
        (dict(audio=np.zeros(0, np.float32)), "at least one video frame"),
        (dict(audio=np.full(9000, np.nan, np.float32)), "NaN"),
        (dict(audio=np.full(9000, 20.0, np.float32)), "up to 20"),
        (dict(audio=np.zeros(9000, np.int16)), "int16"),
        (dict(audio=np.zeros((2, 9000), np.float32)), "(2, 9000)"),
        (dict(portrait=np.zeros((9, 9), np.uint8)), "(9, 9)"),
        (dict(portrait=np.zeros((9, 9, 3), np.float32)), "float32"),
    ],
)
def test_bad_input_is_told_before_the_first_segment(pipeline, change, told):
    arguments = dict(portrait=picture(), audio=voice(9000), face_box=BOX) | change
    with pytest.raises(ValueError) as error:
        pipeline.stream(**arguments)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_sampling_can_be_overridden_when_loading(weights_dir):
    pipe = EmoPipeline.from_pretrained(weights_dir, steps=3, solver="ddim")
    assert (pipe.config.sampling.steps, pipe.config.sampling.solver) == (3, "ddim")
    with pytest.raises(ValueError, match="no field 'stepz'"):
        EmoPipeline.from_pretrained(weights_dir, stepz=3)
    with pytest.raises(ValueError, match="width 40; expected a multiple of 32"):
        EmoPipeline.from_pretrained(weights_dir, size=(64, 40))
    with pytest.raises(ValueError, match="sampling: .*many"):
        EmoPipeline.from_pretrained(weights_dir, steps="many")
    for field in ("clips", "steps"):
        with pytest.raises(ValueError, match=f"^sampling.{field} is 0; expected 1 "):
            EmoPipeline.from_pretrained(weights_dir, **{field: 0})


def test_a_size_is_width_and_height():
    assert parse_size("512x768") == (768, 512)
    for text in ("512", "0x64", "64x64x3", "-1x64"):
        with pytest.raises(ValueError, match="expected WIDTHxHEIGHT"):
            parse_size(text)


def test_pipeline_is_found_in_the_package():
    assert emo_jax.EmoPipeline is EmoPipeline
    with pytest.raises(AttributeError, match="EmoPipelines"):
        emo_jax.EmoPipelines  # noqa: B018


# ---- placement


CLIP = tiny.get_config().clip


def test_faces_are_placed_as_in_the_training_data():
    """A record's frame is 160 pixels wide, a clip's window 128 and anywhere in it (configs/tiny.py)."""
    boxes = np.array([face_box(Identity.sample(seed), State(), 160) for seed in range(100)])
    heights, x, y = boxes[:, 3] - boxes[:, 1], (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    assert np.median(heights) / 128 == pytest.approx(CLIP.face.height, abs=0.02)
    assert (x.mean() - 16) / 128 == pytest.approx(CLIP.face.centre[0], abs=0.02)
    assert (y.mean() - 16) / 128 == pytest.approx(CLIP.face.centre[1], abs=0.02)


def test_a_found_face_is_placed_as_in_training(capsys):
    image = load_portrait(ASSETS / "portrait.png")
    crop, mask = place(image, CLIP)
    assert capsys.readouterr().err == ""
    assert crop.shape == (128, 128, 3) and mask.shape == (128, 128, 1) and set(np.unique(mask)) == {0, 1}
    truth = face_box(Identity.sample(PERSON), State(), SIDE)
    expected, _ = crop_around(image, truth, (128, 128), CLIP.face.height, tuple(CLIP.face.centre))
    rows, columns = np.flatnonzero(mask.any((1, 2))), np.flatnonzero(mask.any((0, 2)))
    height, growth = CLIP.face.height * 128, CLIP.face.growth
    assert len(rows) == pytest.approx(height * (1 + growth[1] + growth[3]), abs=3)
    assert columns.mean() == pytest.approx(CLIP.face.centre[0] * 128, abs=2)
    assert rows[0] == pytest.approx(CLIP.face.centre[1] * 128 - height * (0.5 + growth[1]), abs=2)
    assert np.abs(crop.astype(int) - expected).mean() < 20  # Haar's box is the truth within a few pixels


def test_no_face_is_one_warning_line(capsys):
    crop, mask = place(np.full((300, 200, 3), 90, np.uint8), CLIP, name="wall.png")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no face found in wall.png; assuming 67,93,133,177" in told
    assert crop.shape == (128, 128, 3) and 0 < mask.sum() < 128 * 128


# ---- the rate of the file


@pytest.mark.parametrize("out_fps", [25, 50, 30, 12.5, 24, 29.97, 60])
@pytest.mark.parametrize("sizes", [(8, 8, 3), (1,), (8, 1)])
def test_retimed_shows_the_frame_of_each_middle(out_fps, sizes):
    count, out = sum(sizes), Fraction(out_fps).limit_denominator(1001)
    total = math.ceil(count * out / 25)
    numbered = np.arange(count)[:, None]
    pieces = np.split(numbered, np.cumsum(sizes)[:-1])
    made = np.concatenate(list(retimed(iter(pieces), 25, out_fps, total)))[:, 0]
    assert made.tolist() == [min(int((j + Fraction(1, 2)) / out * 25), count - 1) for j in range(total)]


def test_voice_from_a_file_keeps_a_better_track(tmp_path):
    import av

    samples = (0.3 * np.sin(np.arange(48000) * 0.9)).astype(np.float32)  # 6.9 kHz
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
    found = load_voice(tmp_path / "a.wav")
    assert (len(found.heard), len(found.track), found.rate) == (16000, 44100, 44100)
    assert np.abs(found.track).max() == pytest.approx(0.3, abs=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason="no real media beside the repository")
def test_real_media(tmp_path):
    from emo_jax.weights.store import BUNDLED

    if not (BUNDLED["tiny"] / "model.safetensors").is_file():
        pytest.skip("no bundled weights")
    pipe = EmoPipeline.from_pretrained("tiny")
    sound = load_voice(MEDIA / "audio" / "en_speech_hallo_1.wav")
    short = Voice(sound.heard[:40000], sound.track[: 40000 * 44100 // 16000], sound.rate)
    write_video(tmp_path / "a.mp4", pipe, MEDIA / "portraits" / "photo_hallo_6.jpg", short, name="test")
    found = probe(tmp_path / "a.mp4")
    assert found["frames"] == 63 and found["audio_seconds"] == pytest.approx(2.52, abs=0.05)

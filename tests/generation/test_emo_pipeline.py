"""EmoPipeline with a small EMO of random weights: lengths, seeds, one program, bad inputs, overrides."""

import base64
import io
import math
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

import emo_jax
from emo_jax.cli.generate import parse_size
from emo_jax.generation import pipeline as pipeline_module
from emo_jax.generation import video as video_module
from emo_jax.generation.inputs import Voice, load_voice
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.generation.writing import write_video
from emo_jax.media.video import probe
from tests.generation.media import BOX, random_portrait, random_voice
from tests.runs import python_path

MEDIA = pathlib.Path(__file__).parents[3] / "shared" / "media"


def generate(pipeline, samples=9000, audio_seed=0, portrait=0, **options):
    options = dict(face_box=BOX, framing="crop") | options
    segments = pipeline.stream(random_portrait(portrait), random_voice(samples, audio_seed), **options)
    return np.concatenate(list(segments))


@pytest.mark.parametrize("samples", [640, 641, 5120, 5121, 16000])
def test_frame_count_is_ceil_of_seconds_times_fps(pipeline, samples):
    segments = list(pipeline.stream(random_portrait(), random_voice(samples), face_box=BOX, framing="crop"))
    assert sum(len(frames) for frames in segments) == math.ceil(samples * 25 / 16000)
    assert all(f.dtype == np.uint8 and f.shape[1:] == (64, 64, 3) and len(f) <= 8 for f in segments)


def test_call_returns_the_streamed_frames_and_the_audio(pipeline):
    video = pipeline(random_portrait(), random_voice(9000), face_box=BOX, framing="crop")
    assert np.array_equal(video.frames, generate(pipeline))
    assert (video.fps, video.audio_rate) == (25, 16000) and np.array_equal(video.audio, random_voice(9000))


def test_every_input_changes_the_frames_and_equal_inputs_do_not(pipeline):
    first = generate(pipeline)
    assert np.array_equal(first, generate(pipeline))
    for change in (
        dict(seed=1),
        dict(audio_seed=1),
        dict(portrait=1),
        dict(speed=2.0),
        dict(reference_scale=1.2),
        dict(audio_scale=3.0),
    ):
        assert not np.array_equal(first, generate(pipeline, **change)), change


def test_one_program_serves_all_lengths_portraits_seeds_speeds_and_scales(pipeline):
    generate(pipeline)
    before = pipeline.compilations()
    generate(pipeline, samples=20000, portrait=1, seed=2**32 - 1, speed=1.0, reference_scale=2.0, audio_scale=3.5)
    assert pipeline.compilations() == before


def test_loudness_is_levelled(pipeline):
    quiet = list(pipeline.stream(random_portrait(), 0.25 * random_voice(9000), face_box=BOX, framing="crop"))
    difference = np.concatenate(quiet).astype(int) - generate(pipeline)
    assert np.abs(difference).max() <= 2


def test_saved_file_has_the_frames_and_the_sound(pipeline, tmp_path):
    pipeline(random_portrait(), random_voice(9000), face_box=BOX, framing="crop").save(tmp_path / "a.mp4")
    streams = probe(tmp_path / "a.mp4")
    assert (streams["frames"], streams["fps"], streams["audio_rate"]) == (15, 25, 16000)
    assert streams["seconds"] == pytest.approx(0.6) and streams["audio_seconds"] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 400), (400, 3)])
def test_portraits_of_extreme_aspect_ratios(pipeline, height, width):
    (frames,) = pipeline.stream(random_portrait(0, height, width), random_voice(640), framing="crop")
    assert frames.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (dict(seed=-1), "seed is -1"),
        (dict(steps=0), "steps is 0"),
        (dict(steps=1001), "steps is 1001"),
        (dict(solver="euler"), "solver is 'euler'"),
        (dict(speed=float("nan")), "speed is nan"),
        (dict(audio_scale=-1.0), "audio_scale is -1.0"),
        (dict(reference_scale=float("inf")), "reference_scale is inf"),
        (dict(face_box=(0.0, 0.0, 181.0, 20.0)), "face box"),
        (dict(audio=random_voice(639)), "39.9 ms"),
        (dict(audio=np.zeros(0, np.float32)), "0.0 ms"),
        (dict(audio=np.full(9000, np.nan, np.float32)), "audio"),
        (dict(portrait=np.zeros((9, 9, 2), np.uint8)), "portrait"),
    ],
)
def test_bad_input_raises_on_call(pipeline, change, field):
    arguments = dict(portrait=random_portrait(), audio=random_voice(9000), face_box=BOX, framing="crop") | change
    with pytest.raises(ValueError, match=field) as error:
        pipeline.stream(**arguments)
    assert "\n" not in str(error.value)


def test_from_pretrained_overrides_sampling(weights_dir):
    pipe = EmoPipeline.from_pretrained(weights_dir, steps=3, solver="ddim")
    assert (pipe.config.sampling.steps, pipe.config.sampling.solver) == (3, "ddim")


@pytest.mark.parametrize(
    ("option", "field"),
    [
        (dict(stepz=3), "stepz"),
        (dict(size=(64, 40)), "40"),
        (dict(steps="many"), "many"),
        (dict(clips=0), "sampling.clips is 0"),
        (dict(steps=0), "sampling.steps is 0"),
    ],
)
def test_from_pretrained_rejects_bad_options(weights_dir, option, field):
    with pytest.raises(ValueError, match=field):
        EmoPipeline.from_pretrained(weights_dir, **option)


@pytest.mark.parametrize("size", [(128, 256), 128, (0, 0)])
def test_bundled_weights_accept_only_their_trained_size(size):
    with pytest.raises(ValueError, match="^size is "):
        EmoPipeline.from_pretrained("small", size=size)
    assert EmoPipeline.from_pretrained("small", size=256).size == (256, 256)


def test_other_weights_warn_with_the_trained_size(weights_dir, capsys):
    assert EmoPipeline.from_pretrained(weights_dir, size=64).size == (64, 64)
    assert capsys.readouterr().err == ""
    assert EmoPipeline.from_pretrained(weights_dir, size=(32, 64)).size == (32, 64)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "64x32" in warning and "64x64" in warning


def test_parse_size_returns_height_and_width():
    assert parse_size("512x768") == (768, 512)


@pytest.mark.parametrize("text", ["512", "0x64", "64x64x3", "-1x64"])
def test_parse_size_rejects_other_forms(text):
    with pytest.raises(ValueError, match=text):
        parse_size(text)


def test_package_exports_the_pipeline():
    assert emo_jax.EmoPipeline is EmoPipeline
    with pytest.raises(AttributeError, match="EmoPipelines"):
        emo_jax.EmoPipelines  # noqa: B018


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason="no real media beside the repository")
def test_real_media(tmp_path):
    pipe = EmoPipeline.from_pretrained("small")
    voice = load_voice(MEDIA / "audio" / "en_speech_hallo_1.wav")
    short = Voice(voice.samples[:40000], voice.track)
    write_video(tmp_path / "a.mp4", pipe, MEDIA / "portraits" / "photo_hallo_6.jpg", short, label="test")
    streams = probe(tmp_path / "a.mp4")
    assert streams["frames"] == 63 and streams["audio_seconds"] == pytest.approx(2.52, abs=0.05)


def test_from_pretrained_keeps_compiled_programs(weights_dir, monkeypatch):
    calls = []
    monkeypatch.setattr(pipeline_module, "keep_programs", lambda: calls.append(1))
    EmoPipeline.from_pretrained(weights_dir)
    assert calls == [1]


def test_save_pretrained_is_read_by_from_pretrained(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = EmoPipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(generate(loaded, samples=640), generate(pipeline, samples=640))
    pipeline.save_pretrained(tmp_path / "half", dtype="float16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("saved", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_save_pretrained_rejects_other_types_and_values_out_of_range(pipeline, tmp_path):
    with pytest.raises(ValueError, match="int8"):
        pipeline.save_pretrained(tmp_path, dtype="int8")
    large = EmoPipeline(
        pipeline._emo, {**pipeline.params, "vae": jax.tree.map(lambda a: a + 1e5, pipeline.params["vae"])}
    )
    with pytest.raises(ValueError, match="vae/.*float16"):
        large.save_pretrained(tmp_path, dtype="float16")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        pipeline.save_pretrained(tmp_path / "file")


def test_representations_are_short(pipeline):
    video = pipeline(random_portrait(), random_voice(9000), face_box=BOX, framing="crop")
    for text in (repr(pipeline), repr(video)):
        assert "\n" not in text and len(text) < 120 and "64x64" in text and "25 fps" in text
    assert "15 frames" in repr(video) and "0.60 s" in repr(video)


def test_video_is_shown_in_notebooks(pipeline, tmp_path, monkeypatch):
    video = pipeline(random_portrait(), random_voice(9000), face_box=BOX, framing="crop")
    html = video._repr_html_()
    (tmp_path / "a.mp4").write_bytes(base64.b64decode(html.split("base64,")[1].split('"')[0]))
    assert html.startswith("<video controls ") and probe(tmp_path / "a.mp4")["frames"] == 15
    monkeypatch.setattr(video_module, "MAX_EMBEDDED", 100)
    assert "<video" not in video._repr_html_() and "15 frames" in video._repr_html_()


def test_callback_receives_every_segment(pipeline):
    calls = []
    video = pipeline(
        random_portrait(),
        random_voice(9000),
        face_box=BOX,
        framing="crop",
        callback_on_segment_end=lambda *a: calls.append(a),
    )
    assert [(pipe, index) for pipe, index, _ in calls] == [(pipeline, 0), (pipeline, 1), (pipeline, 2)]
    assert np.array_equal(np.concatenate([frames for *_, frames in calls]), video.frames)


def test_progress_bar_counts_frames_on_a_terminal(pipeline, monkeypatch):
    def bar():
        stderr = io.StringIO()
        stderr.isatty = lambda: terminal
        monkeypatch.setattr("sys.stderr", stderr)
        pipeline(random_portrait(), random_voice(9000), face_box=BOX, framing="crop")
        return stderr.getvalue()

    terminal = True
    assert "15/15" in bar()
    try:
        pipeline.set_progress_bar_config(disable=True)
        assert bar() == ""
    finally:
        pipeline.set_progress_bar_config()
    terminal = False
    assert bar() == ""


def test_lists_give_what_single_calls_give(pipeline):
    portraits, voices = [random_portrait(i) for i in range(2)], [random_voice(640 * (i + 1), i) for i in range(2)]
    videos = pipeline(portraits, voices, face_box=BOX, framing="crop", seed=[3, 4])
    for index, video in enumerate(videos):
        single = pipeline(portraits[index], voices[index], face_box=BOX, framing="crop", seed=3 + index)
        assert np.array_equal(video.frames, single.frames) and np.array_equal(video.audio, voices[index])
    same = pipeline(portraits[0], voices, face_box=BOX, framing="crop")
    assert [len(video.frames) for video in same] == [1, 2]
    assert pipeline([], []) == []
    with pytest.raises(ValueError, match="portrait .*audio"):
        pipeline(portraits, voices[:1])


def test_used_pipeline_can_be_pickled(pipeline):
    frames = generate(pipeline, samples=640)
    copy = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(generate(copy, samples=640), frames)
    assert copy.compilations() == 1 and copy.config.to_dict() == pipeline.config.to_dict()


FORK = """
import os, sys, pickle
from emo_jax import EmoPipeline
load = lambda: EmoPipeline.from_pretrained(sys.argv[1])
pipe = load()
data = pickle.dumps(pipe)
calls = [lambda: pipe("none.png", "none.wav"), lambda: pipe.stream("a", "b"), lambda: pickle.loads(data), load]
for call in calls:
    child = os.fork()
    if not child:
        try:
            call()
        except RuntimeError as error:
            os._exit(7 if "spawn" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_forked_process_raises_instead_of_hanging(weights_dir):
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(weights_dir)]
    subprocess.run(command, env=environment, timeout=300, check=True)

"""The contact sheet shows what lies in the records."""

import argparse

import numpy as np
import pytest
from PIL import Image

from emo_jax.cli.prepare import add_parser
from emo_jax.media.audio import load_audio
from emo_jax.media.timing import AUDIO_MARGIN, SAMPLE_RATE
from emo_jax.preparation import contact_sheet
from emo_jax.preparation.prepare import prepare_videos
from tests.faces import heads

OPTIONS = dict(size=64, min_seconds=1.0, min_face=40.0, workers=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Records of two heads, the second without sound."""
    folder = tmp_path_factory.mktemp("videos")
    heads.write(folder / "a.mp4", heads.heads(30), 25, heads.voice(1.2))
    heads.write(folder / "b.mp4", heads.heads(40))
    output = tmp_path_factory.mktemp("records") / "out"
    prepare_videos([str(folder)], str(output), **OPTIONS)
    return output


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["prepare", "inspect", *arguments])
    args.main(args, None)


def pixels(image, colour):
    return int((np.abs(np.asarray(image).astype(int) - colour).max(-1) < 40).sum())


def test_the_sheet(prepared, tmp_path, capsys):
    run(str(prepared), "--output", str(tmp_path / "look"))
    written = [tmp_path / "look" / "clips.mp4", tmp_path / "look" / "contact_sheet.png"]
    assert sorted((tmp_path / "look").iterdir()) == written
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in written]
    sheet = Image.open(tmp_path / "look" / "contact_sheet.png").convert("RGB")
    columns = 1 + 4 + 12  # reference, motion frames, frames of configs/base.py
    tile = contact_sheet.TILE + contact_sheet.GAP
    assert sheet.width == columns * tile
    first, second = (sheet.crop((0, k * sheet.height // 2, sheet.width, (k + 1) * sheet.height // 2)) for k in (0, 1))
    assert pixels(first, contact_sheet.SOUND) > 5 * pixels(second, contact_sheet.SOUND) > 0  # the words "no sound"
    for half in (first, second):
        assert pixels(half, contact_sheet.BOX) > columns * contact_sheet.TILE  # half of each box at least
        assert pixels(half, contact_sheet.FACE_REGION) > 12 * contact_sheet.TILE
        assert pixels(half, contact_sheet.SPEED) > sheet.width


def test_the_clips_are_what_the_pipeline_gives(prepared, tmp_path):
    from emo_jax.configs import base

    from emo_jax.data import pipeline, records
    from emo_jax.media import video

    config = base.get_config()
    sampler = pipeline.clip_sampler(records.open_records(prepared, "train"), config.data, config.clip)
    samples = [sampler(clip, np.random.default_rng([3, clip])) for clip in (0, 1)]
    path = contact_sheet.write_clips(sampler, samples, tmp_path)
    frames = np.stack([frame for frame, _ in video.read_video(path)])
    assert len(frames) == 2 * config.clip.frames
    half = frames.shape[2] // 2
    for clip in (0, 1):
        sample = samples[clip]
        for k in (0, config.clip.frames - 1):
            shown = frames[clip * config.clip.frames + k, :half]
            for column, picture in ((0, sample["reference"]), (1, sample["frames"][k])):
                seen = Image.fromarray(shown[:, column * half : (column + 1) * half]).resize(picture.shape[1::-1])
                assert np.abs(np.asarray(seen).astype(int) - picture).mean() < 6
    per_frame = SAMPLE_RATE / config.clip.fps
    first = samples[0]["audio"][round(config.clip.audio_context * 16000) + AUDIO_MARGIN + round(2 * per_frame) :]
    heard = load_audio(path)
    length = round(config.clip.frames * per_frame)
    assert np.corrcoef(heard[:length], first[:length])[0, 1] > 0.9
    assert np.abs(heard[length + 1000 : 2 * length]).max() < 0.02  # the second has no sound


def test_boxes_are_drawn_where_they_are(prepared):
    from emo_jax.data.records import open_records

    record = open_records(prepared, "train")[0]
    tile = contact_sheet._boxed(record, 3)[1]
    frame = np.asarray(tile).astype(int)
    red = np.argwhere(np.abs(frame - contact_sheet.BOX).max(-1) < 5)
    red = red[red[:, 0] < contact_sheet.TILE - 14]  # the frame's number stands below
    want = record["boxes"][round((len(record["boxes"]) - 1) / 2)] * contact_sheet.TILE / 64
    np.testing.assert_allclose([red[:, 1].min(), red[:, 0].min(), red[:, 1].max()], want[:3], atol=2)


def test_bad_arguments_are_one_line(prepared, tmp_path):
    for arguments, message in [
        ((str(tmp_path), "--output", str(tmp_path / "x")), "holds no records"),
        ((str(prepared), "--output", str(tmp_path / "x"), "--records", "0"), "--records is 0"),
        ((str(prepared), "--output", str(tmp_path / "x"), "--split", "test"), "no split 'test'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(*arguments)
    assert not list(tmp_path.iterdir())

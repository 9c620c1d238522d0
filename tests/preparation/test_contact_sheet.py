"""Contact sheets and videos of records."""

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
from tests.preparation.conftest import SMALL


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    """Records of two heads, the second without sound."""
    folder = tmp_path_factory.mktemp("videos")
    heads.write(folder / "a.mp4", heads.heads(30), 25, heads.voice(1.2))
    heads.write(folder / "b.mp4", heads.heads(40))
    output = tmp_path_factory.mktemp("records") / "out"
    prepare_videos([str(folder)], str(output), **SMALL)
    return output


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["prepare", "inspect", *arguments])
    args.main(args, None)


def pixels(image, colour):
    return int((np.abs(np.asarray(image).astype(int) - colour).max(-1) < 40).sum())


def test_contact_sheet(two_heads, tmp_path, capsys):
    run(str(two_heads), "--output", str(tmp_path / "look"))
    written = [tmp_path / "look" / "clips.mp4", tmp_path / "look" / "contact_sheet.png"]
    assert sorted((tmp_path / "look").iterdir()) == written
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in written]
    sheet = Image.open(tmp_path / "look" / "contact_sheet.png").convert("RGB")
    columns = 1 + 4 + 12  # reference, motion frames, frames of configs/base.py
    tile = contact_sheet.TILE + contact_sheet.GAP
    assert sheet.width == columns * tile
    first, second = (sheet.crop((0, k * sheet.height // 2, sheet.width, (k + 1) * sheet.height // 2)) for k in (0, 1))
    assert pixels(first, contact_sheet.SOUND) > 5 * pixels(second, contact_sheet.SOUND) > 0  # the text "no sound"
    for half in (first, second):
        assert pixels(half, contact_sheet.BOX) > columns * contact_sheet.TILE  # half of each box at least
        assert pixels(half, contact_sheet.FACE_REGION) > 12 * contact_sheet.TILE
        assert pixels(half, contact_sheet.SPEED) > sheet.width


def test_clips_video_shows_the_samples_of_the_pipeline(two_heads, tmp_path):
    from emo_jax.configs import base

    from emo_jax.data import clip_sampler, records
    from emo_jax.media import video

    config = base.get_config()
    sampler = clip_sampler.make_clip_sampler(records.open_records(two_heads, "train"), config.data, config.clip)
    samples = [sampler(clip, np.random.default_rng([3, clip])) for clip in (0, 1)]
    path = contact_sheet.write_clips(sampler, samples, tmp_path)
    frames = np.stack([frame for frame, _ in video.read_video(path)])
    assert len(frames) == 2 * config.clip.frames
    half = frames.shape[2] // 2
    for clip in (0, 1):
        sample = samples[clip]
        for k in (0, config.clip.frames - 1):
            frame = frames[clip * config.clip.frames + k, :half]
            for column, picture in ((0, sample["reference"]), (1, sample["frames"][k])):
                half_frame = Image.fromarray(frame[:, column * half : (column + 1) * half])
                shown = half_frame.resize(picture.shape[1::-1])
                assert np.abs(np.asarray(shown).astype(int) - picture).mean() < 6
    per_frame = SAMPLE_RATE / config.clip.fps
    first = samples[0]["audio"][round(config.clip.audio_context * 16000) + AUDIO_MARGIN + round(2 * per_frame) :]
    audio = load_audio(path)
    length = round(config.clip.frames * per_frame)
    assert np.corrcoef(audio[:length], first[:length])[0, 1] > 0.9
    assert np.abs(audio[length + 1000 : 2 * length]).max() < 0.02  # the second clip has no sound


def test_face_boxes_are_drawn_at_their_position(two_heads):
    from emo_jax.data.records import open_records

    record = open_records(two_heads, "train")[0]
    tile = contact_sheet._record_tiles(record, 3)[1]
    frame = np.asarray(tile).astype(int)
    red = np.argwhere(np.abs(frame - contact_sheet.BOX).max(-1) < 5)
    red = red[red[:, 0] < contact_sheet.TILE - 14]  # the number of the frame is below
    want = record["boxes"][round((len(record["boxes"]) - 1) / 2)] * contact_sheet.TILE / 64
    np.testing.assert_allclose([red[:, 1].min(), red[:, 0].min(), red[:, 1].max()], want[:3], atol=2)


def test_invalid_arguments_raise(two_heads, tmp_path):
    for arguments, message in [
        ((str(tmp_path), "--output", str(tmp_path / "x")), str(tmp_path)),
        ((str(two_heads), "--output", str(tmp_path / "x"), "--records", "0"), "--records is 0"),
        ((str(two_heads), "--output", str(tmp_path / "x"), "--split", "test"), "'test'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(*arguments)
    assert not list(tmp_path.iterdir())

"""Containers and codecs of written videos, their metadata, and folders of pictures."""

import av
import numpy as np
import pytest
from PIL import Image

from emo_jax.media.audio import load_audio
from emo_jax.media.targets import check_target
from emo_jax.media.video import probe, read_video
from emo_jax.media.video_writer import open_writer

META = {"comment": "AI-generated, seed 3"}


def moving(count=12, size=(64, 96)):
    """Returns frames in which a bright square moves over a coloured gradient."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    frames = np.empty((count, *size, 3), np.uint8)
    frames[...] = np.stack([rows * 2, columns * 2, 0 * rows + 90], -1)
    for index, frame in enumerate(frames):
        frame[20:40, 4 * index : 4 * index + 20] = (250, 240, 60)
    return frames


def stereo(samples=8000):
    noise = np.random.default_rng(0).standard_normal((samples + 40, 2))
    smooth = [np.convolve(channel, np.hanning(41) / 20, "valid") for channel in noise.T]
    return (0.2 * np.stack(smooth, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "codec", "found", "error"),
    [
        ("a.mp4", None, "h264", 8),
        ("a.mp4", "hevc", "hevc", 8),
        ("a.mp4", "av1", "libdav1d", 8),
        ("a.mov", None, "h264", 8),
        ("a.webm", None, "vp9", 8),
        ("a.webm", "av1", "libdav1d", 8),
    ],
)
def test_every_container_returns_frames_sound_and_metadata(tmp_path, name, codec, found, error):
    path, frames = tmp_path / name, moving()
    with open_writer(path, (64, 96), 25, stereo(), codec=codec, metadata=META) as writer:
        writer.write(frames[:5])
        writer.write(frames[5:])
    info = probe(path)
    assert info["frames"] == 12 and (info["height"], info["width"]) == (64, 96) and info["video_codec"] == found
    images = np.stack([image for image, _ in read_video(path)])
    assert np.abs(images.astype(int) - frames).mean() < error
    with av.open(str(path)) as container:
        assert {key.lower(): value for key, value in container.metadata.items()}["comment"] == META["comment"]
        assert container.streams.audio[0].layout.name == "stereo"
    heard, given = load_audio(path, align_to_video=True)[:7680], stereo().mean(1)[:7680]
    lags = [np.corrcoef(heard[400:7200], np.roll(given, lag)[400:7200])[0, 1] for lag in range(-3, 4)]
    assert int(np.argmax(lags)) - 3 == 0 and max(lags) > 0.97
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_gif_moves_repeats_and_has_the_comment(tmp_path):
    with open_writer(tmp_path / "a.gif", (64, 96), 25, stereo(), metadata=META) as writer:
        writer.write(moving())
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 12 and image.info["loop"] == 0 and image.info["duration"] == 40
        assert image.info["comment"].decode() == META["comment"]
        image.seek(9)
        last = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(last - moving()[9]).mean() < 8
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


def test_folder_of_pictures_is_exact_and_replaces_only_its_own_kind(tmp_path):
    folder = f"{tmp_path}/frames/"
    for count in (12, 3):
        with open_writer(folder, (64, 96), 25, stereo(), metadata=META) as writer:
            writer.write(moving(count))
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == ["000001.png", "000002.png", "000003.png", "sound.wav"]
    with Image.open(tmp_path / "frames" / "000002.png") as image:
        assert np.array_equal(np.asarray(image), moving()[1])
        assert image.text["Comment"] == META["comment"] and image.text["Fps"] == "25"
    sound = load_audio(tmp_path / "frames" / "sound.wav")
    assert len(sound) == 3 * 640 and np.abs(sound - stereo()[: 3 * 640].mean(1)).max() < 1e-4
    with pytest.raises(RuntimeError), open_writer(folder, (64, 96), 25) as writer:
        writer.write(moving())
        raise RuntimeError
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == names
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt"):
        check_target(folder)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "codec", "text"),
    [("a.webm", "h264", "vp9 or av1"), ("a.mp4", "mpeg2", "h264, hevc"), ("a.gif", "h264", "no codec")],
)
def test_codecs_that_a_container_lacks_are_refused(tmp_path, name, codec, text):
    with pytest.raises(ValueError, match=text):
        check_target(tmp_path / name, codec)
    assert not list(tmp_path.iterdir())

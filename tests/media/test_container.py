"""Opening media files: formats, playlists, pipes and metadata."""

import os
import struct
import time

import av
import numpy as np
import pytest

from emo_jax.media.audio import load_audio
from emo_jax.media.container import FORMATS, open_media, open_mp4
from emo_jax.media.images import load_image
from emo_jax.media.video import read_video


def write_audio(path, seconds=0.5, codec="aac", rate=16000):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = np.zeros((1, round(rate * seconds)), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.codec_context.format.name, frame_size=stream.codec_context.frame_size)
        for part in resampler.resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


PLAYLISTS = {
    "live.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.5,\n{name}\n",
    "ended.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.5,\n{name}\n#EXT-X-ENDLIST\n",
    "renamed.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.5,\n{name}\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {name}\n",
    "network.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.5,\nhttp://192.0.2.1/{name}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_rejected_at_once(tmp_path, name):
    write_audio(tmp_path / "segment.ts")
    (tmp_path / name).write_text(PLAYLISTS[name].format(name="segment.ts"))
    start = time.monotonic()
    for read in (load_audio, lambda path: next(read_video(path))):
        with pytest.raises(ValueError, match="playlist"):
            read(tmp_path / name)
    assert time.monotonic() - start < 5
    assert len(load_audio(tmp_path / "segment.ts")) >= 8000  # the file itself is read


def test_records_do_not_open_playlists(tmp_path):
    write_audio(tmp_path / "segment.ts")
    with pytest.raises(av.error.FFmpegError):
        open_mp4(PLAYLISTS["live.m3u8"].format(name=tmp_path / "segment.ts").encode())


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a", "mka", "flac", "ogg", "ts", "aiff", "avi", "flv", "3gp"])
def test_formats_are_allowed(tmp_path, suffix):
    codecs = {"wav": "pcm_s16le", "mp3": "libmp3lame", "flac": "flac", "ogg": "libopus", "aiff": "pcm_s16be"}
    rate = 48000 if suffix == "ogg" else 44100
    codec = codecs.get(suffix, "aac")
    audio = load_audio(write_audio(tmp_path / f"a.{suffix}", 0.5, codec, rate))
    assert abs(len(audio) - 8000) < 2000


def test_formats_exclude_those_that_refer_to_other_files():
    assert not {"hls", "dash", "concat", "concatf", "sdp", "rtsp", "image2", "lavfi", "tty", "vapoursynth"} & set(
        FORMATS.split(",")
    )


def test_pipes_and_standard_input_are_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", "-", "/dev/null"):
        for read in (load_audio, load_image, open_media):
            with pytest.raises(ValueError, match="regular file"):
                read(path)


def test_symbolic_links_are_followed(tmp_path):
    write_audio(tmp_path / "a.wav", codec="pcm_s16le")
    (tmp_path / "link").symlink_to(tmp_path / "a.wav")
    assert len(load_audio(tmp_path / "link")) == 8000


def latin1_wav(path):
    """A WAV file whose title is Latin-1 and not UTF-8."""
    title = "Caf\xe9 \xfcber".encode("latin-1") + b"\0"
    info = b"INFO" + b"INAM" + struct.pack("<I", len(title)) + title + b"\0" * (len(title) % 2)
    data = np.full(1600, 8192, "<i2").tobytes()
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    chunks += b"LIST" + struct.pack("<I", len(info)) + info + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def test_tags_need_not_be_utf8(tmp_path):
    audio = load_audio(latin1_wav(tmp_path / "a.wav"))
    np.testing.assert_allclose(audio, np.full(1600, 0.25), atol=1e-6)

"""Live generation: sound from a pipe, a video that is written while it comes."""

import dataclasses
import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import types

import av
import numpy as np
import psutil
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

from emo_jax.generation import live
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.live_sound import LiveSound, Source, open_source
from emo_jax.media.live_writer import LiveWriter, find_target
from emo_jax.media.soundtrack import array_track
from tests.generation.media import BOX, random_portrait, random_voice
from tests.runs import free_port, python_path

RATE = 16000


def header(channels=1):
    """A WAV header without lengths, as programs write it to a pipe."""
    form = struct.pack("<IHHIIHH", 16, 1, channels, RATE, 2 * channels * RATE, 2 * channels, 16)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data\xff\xff\xff\xff"


def pcm(samples):
    return np.round(samples * 32767).astype("<i2").tobytes()


def decoded(path, **options):
    with av.open(path, options=options) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.slow
def test_frames_equal_those_of_the_recording(pipeline, monkeypatch):
    """The loudness is levelled from the sound so far; without levelling both are the same."""
    for place in ("emo_jax.generation.live", "emo_jax.generation.prepared"):
        monkeypatch.setattr(f"{place}.normalise", lambda samples: samples)
    voice, options = random_voice(9000), dict(face_box=BOX, framing="crop", seed=4)
    expected = np.concatenate(list(pipeline.stream(random_portrait(), voice, **options)))
    video = live.LiveVideo(pipeline, random_portrait(), pipeline.config.sampling.clips, **options)
    source = Source(RATE, 1, iter(np.split(voice[:, None], range(700, 9000, 700))))
    frames = np.concatenate(list(video.frames(LiveSound(source))))
    assert np.array_equal(frames, expected)


@pytest.mark.slow
def test_frames_come_while_the_sound_is_still_coming(pipeline):
    video = live.LiveVideo(pipeline, random_portrait(), face_box=BOX, framing="crop")
    more, voice = threading.Event(), random_voice(24000)

    def blocks():
        first = round(video.delay * RATE) + 300
        yield voice[:first, None]
        assert more.wait(300)
        yield voice[first:, None]

    frames = video.frames(LiveSound(Source(RATE, 1, blocks())))
    shown = next(frames)  # a wait for more sound would never end
    assert len(shown) == video._sampler.frames_per_segment
    more.set()
    assert len(shown) + sum(map(len, frames)) == 38  # ceil of 1.5 s


@pytest.mark.slow
def test_ctrl_c_ends_a_sound_without_an_end(pipeline, tmp_path, capsys):
    def blocks():
        for index in itertools.count():
            if index == 60:
                os.kill(os.getpid(), signal.SIGINT)
            yield random_voice(640)[:, None]
            time.sleep(0.002)

    output, before = str(tmp_path / "a.mp4"), signal.getsignal(signal.SIGINT)
    options = dict(face_box=BOX, framing="crop")
    live.write_live(pipeline, random_portrait(), lambda: Source(RATE, 1, blocks()), output, **options)
    frames = int(re.search(r"generate: (\d+) frames", capsys.readouterr().err)[1])
    assert decoded(output) == frames >= 60
    assert signal.getsignal(signal.SIGINT) is before


def test_weights_that_need_the_complete_sound_are_refused(pipeline):
    config = ConfigDict(pipeline.config)
    config.sampling.update(strategy="windows", overlap=1, shift=1)
    emo = dataclasses.replace(pipeline._emo, config=FrozenConfigDict(config))
    with pytest.raises(ValueError, match="choose others for live video"):
        live.LiveVideo(EmoPipeline(emo, pipeline.params, "windows"), random_portrait(), face_box=BOX)


def test_sound_that_fails_is_an_error(pipeline):
    def blocks():
        yield np.zeros((100, 1), np.float32)
        raise OSError("unplugged")

    video = live.LiveVideo(pipeline, random_portrait(), face_box=BOX, framing="crop")
    with pytest.raises(ValueError, match="unplugged"):
        list(video.frames(LiveSound(Source(RATE, 1, blocks()))))


def test_sound_keeps_its_channels_and_its_memory_is_bounded():
    sound = np.stack([random_voice(96000, seed) for seed in (1, 2)], 1)
    live_sound = LiveSound(Source(48000, 2, iter(np.split(sound, 100))))
    assert live_sound.wait(10**6) == 32000 and live_sound.track.channels == 2
    assert np.array_equal(live_sound.track.read(), sound)
    assert len(live_sound.heard(30000, 31000)) == 1000 and len(live_sound._samples) == 2000
    assert live_sound.arrival(0) <= live_sound.arrival(31999)


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8"])
def test_growing_files_can_be_played(tmp_path, name):
    frames, path = np.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), np.uint8), str(tmp_path / name)
    playlist = dict(protocol_whitelist="file", allowed_extensions="ALL", m3u8_hold_counters="5", max_reload="5")
    options = playlist if name.endswith("m3u8") else {}  # FFmpeg would wait minutes for further segments
    with LiveWriter(path, (64, 64), 25, array_track(random_voice(80 * 640), RATE), {"comment": "x"}) as writer:
        writer.write(frames[:60])
        assert decoded(path, **options) >= 40
        writer.write(frames[60:])
    assert decoded(path, **options) == 80
    with pytest.raises(RuntimeError, match="broken"):
        with LiveWriter(path, (64, 64), 25, array_track(random_voice(80 * 640), RATE)) as writer:
            writer.write(frames[:30])
            raise RuntimeError("broken")
    assert decoded(path, **options) == 30


LISTENER = """
import json, sys, time, av
frames, samples, times = 0, 0, []
with av.open(sys.argv[1], options={"listen": "1"}, timeout=600) as server:
    comment = server.metadata["comment"]
    try:
        for packet in server.demux():
            for frame in packet.decode():
                if packet.stream.type == "video":
                    frames += 1
                    times.append(time.monotonic())
                else:
                    samples += frame.samples
    except OSError:  # the end of the connection
        pass
print(json.dumps([comment, frames, samples, times[-1] - times[0]]))
"""


def test_stream_to_a_server(request):
    """FFmpeg's RTMP server takes one stream. The frames arrive at it while they are written."""
    address = f"rtmp://127.0.0.1:{free_port()}/live/key"
    server = subprocess.Popen([sys.executable, "-c", LISTENER, address], stdout=subprocess.PIPE)
    request.addfinalizer(server.kill)
    while not psutil.Process(server.pid).net_connections():
        assert server.poll() is None
        time.sleep(0.05)
    frames = np.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), np.uint8)
    with LiveWriter(address, (64, 64), 25, array_track(random_voice(80 * 640), RATE), {"comment": "x"}) as writer:
        for part in np.split(frames, 4):
            writer.write(part)
            time.sleep(0.3)
    comment, count, samples, seconds = json.loads(server.communicate(timeout=600)[0])
    assert (comment, count) == ("x", 80) and 80 * 640 <= samples < 80 * 640 + 4096 and seconds > 0.5
    with pytest.raises(OSError, match="refused"):
        with LiveWriter(address, (64, 64), 25, array_track(random_voice(80 * 640), RATE)) as writer:
            writer.write(frames)


def test_targets():
    assert [find_target(name)[0].container for name in ("-", "a.MP4", "a.m3u8", "rtmp://h/x")] == [
        "mp4",
        "mp4",
        "hls",
        "flv",
    ]
    for name in ("a.webm", "http://h/x.mp4x", "folder/"):
        with pytest.raises(ValueError, match="rtmp"):
            find_target(name)


def test_microphone_without_its_extra_and_with_a_stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match=r"\[microphone\]"):
        open_source("microphone")

    class InputStream:
        def __init__(self, rate, channels, dtype, blocksize):
            assert (rate, channels, dtype) == (48000, 1, "float32")

        start = __exit__ = lambda self, *error: None

        def __enter__(self):
            return self

        def read(self, count):
            return np.full((count, 1), 0.25, np.float32), False

    stand_in = types.SimpleNamespace(InputStream=InputStream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", stand_in)
    source = open_source("microphone")
    assert next(source.blocks).shape == (960, 1) and source.rate == 48000


@pytest.mark.slow
def test_pipe_through_the_command_line(weights_dir, tmp_path):
    """Sound at its own pace goes in; the video comes out of standard output, and the latency is said."""
    Image.fromarray(random_portrait()).save(tmp_path / "p.png")
    program = "import sys; from emo_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "generate", "--live", "--checkpoint", str(weights_dir)]
    command += ["--portrait", str(tmp_path / "p.png"), "--face", "60,50,130,150", "--audio", "-", "-o", "-"]
    environment = os.environ | {"PYTHONPATH": python_path()}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, env=environment, **pipes)
    process.stdin.write(header())
    for part in np.split(random_voice(2 * RATE), 50):
        process.stdin.write(pcm(part))
        process.stdin.flush()
        time.sleep(0.04)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    (tmp_path / "a.mp4").write_bytes(output)
    assert decoded(str(tmp_path / "a.mp4")) == 50
    assert re.search(r"50 frames, 2\.00 s; latency \d+\.\d\d s in the median", errors.decode())


@pytest.mark.slow
def test_bad_inputs_are_one_line(tmp_path, monkeypatch, capsys, pipeline):
    from emo_jax.cli import main as cli

    monkeypatch.setattr(EmoPipeline, "from_pretrained", lambda *args, **options: pipeline)
    Image.fromarray(random_portrait()).save(tmp_path / "p.png")
    (tmp_path / "text.wav").write_text("no sound\n" * 1000)
    (tmp_path / "empty.wav").write_text("")
    files = ["generate", "--live", "--portrait", str(tmp_path / "p.png"), "--face", "60,50,130,150", "--framing=crop"]
    for more, text in (
        (["--audio", "none", "-o", "a.mp4"], "none"),
        (["--audio", "-", "-o", "a.avi"], "a.avi"),
        (["--audio", "-"], "--output"),
        (["--audio", "-", "-o", "-", "--vocals", "auto"], "--vocals"),
        (["--audio", "-", "-o", "-", "--codec", "av1"], "--codec"),
        (["--audio", str(tmp_path / "text.wav"), "-o", str(tmp_path / "a.mp4")], "text.wav"),
        (["--audio", str(tmp_path / "empty.wav"), "-o", str(tmp_path / "a.mp4")], "empty.wav"),
    ):
        assert cli.main([*files, *more]) == 2
        assert text in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "a.mp4").exists()

"""A web page with a stand-in for the pipeline, on a free port."""

import gc
import queue
import threading
import time

import numpy as np
import pytest
from PIL import Image

from emo_jax.app.settings import Settings
from emo_jax.generation.video import FrameStream
from emo_jax.media.timing import frame_count


class StandIn:
    """Makes frames of one grey each, eight at a time, each group after `delay` seconds."""

    fps, name = 25.0, "stand-in"

    def __init__(self):
        self.delay, self.options = 0.0, []

    def stream(self, portrait, audio, **options):
        self.options.append(options)
        total = frame_count(len(audio), self.fps)

        def segments():
            for first in range(0, total, 8):
                time.sleep(self.delay)
                levels = np.arange(first, min(first + 8, total)) % 200
                yield np.broadcast_to(levels[:, None, None, None], (len(levels), 96, 64, 3)).astype(np.uint8)

        return FrameStream(segments(), (96, 64), total)


def write_sound(path, seconds, channels=1, rate=16000):
    import wave

    times = np.arange(round(seconds * rate)) / rate
    tones = np.stack([np.sin(2 * np.pi * (220 + 110 * channel) * times) for channel in range(channels)], 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((8000 * tones).astype("<i2").tobytes())


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Two portraits and two songs."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "portraits").mkdir()
    (folder / "songs").mkdir()
    for name, color in (("ada", "teal"), ("bob", "brown")):
        Image.new("RGB", (120, 160), color).save(folder / "portraits" / f"{name}.png")
    write_sound(folder / "songs" / "long.wav", 30)
    write_sound(folder / "songs" / "short.wav", 1)
    write_sound(folder / "songs" / "six.wav", 6)
    write_sound(folder / "songs" / "two.wav", 2, channels=2)
    return folder


@pytest.fixture
def start(library):
    """Returns a function that starts a page with settings and returns (server, stand-in, address)."""
    pytest.importorskip("gradio", reason="the extra app is not installed")
    from emo_jax.app.server import Server

    running = []

    def begin(**settings):
        pipe, address = StandIn(), queue.Queue()
        fields = dict(portraits=library / "portraits", songs=library / "songs", port=0, max_megabytes=1) | settings
        server = Server(Settings(**fields), lambda: [pipe])
        thread = threading.Thread(target=server.run, args=(address.put,))
        thread.start()
        running.append((server, thread))
        return server, pipe, address.get(timeout=60)

    yield begin
    for server, thread in running:
        server.stop()
        thread.join(timeout=30)
    gc.collect()  # Gradio and its client leave sockets open; here their warnings belong to the test

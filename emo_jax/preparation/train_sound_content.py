"""Trains the network of `preparation.sound_content` on mixtures of synthetic voices and music.

    python -m emo_jax.preparation.train_sound_content --data data/people -o sound_content.safetensors

Voices are those of rendered records (`emo prepare synthetic --world people`); music is made here: chords, bass and
drums. Mixtures are filtered, reverberated and made noisy at random, so that the network also reads recordings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from scipy.signal import fftconvolve

from emo_jax.data.records import open_records
from emo_jax.files import atomic_write
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.preparation import sound_content as content
from emo_jax.progress import Progress

FRAMES = 74
"""Frames of a training sample that are judged."""
SECONDS = (FRAMES + 2 * content.REACH) * content.HOP / SAMPLE_RATE
OVERLAP_DB, MUSIC_DB = 12.0, 20.0
"""A voice is heard if it is at most this far below the other one; music, below the voice."""
SILENT_DB = -25.0
"""A voice pauses where its level is this far below its loud parts."""
RECORDS = 600
"""Number of records, evenly spaced, whose voices are used."""


def make_music(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Returns synthetic music, float32 (samples,), of chords, and perhaps a bass, a melody and drums."""
    count = round(seconds * SAMPLE_RATE)
    beat, root = 60 / rng.uniform(60, 170), rng.uniform(45, 57)
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10])
    sustain, partials = rng.uniform(0.1, 1.5), int(rng.integers(2, 14))
    slope, voices = rng.uniform(0.5, 2.0), int(rng.integers(1, 5))
    out = np.zeros(count + SAMPLE_RATE * 3, np.float32)
    for start in np.arange(0, seconds, beat * rng.choice([1, 2, 4])):
        degree = int(rng.integers(7))
        for k in range(voices):
            pitch = root + 12 * rng.integers(0, 2) + scale[(degree + 2 * k) % 7]
            _add_note(rng, out, start, pitch, sustain, partials, slope)
    if rng.random() < 0.6:  # a melody
        for start in np.arange(0, seconds, beat / rng.choice([1, 2])):
            if rng.random() < 0.8:
                _add_note(rng, out, start, root + 12 + rng.choice(scale) + 12 * rng.integers(2), beat, partials, slope)
    if rng.random() < 0.6:
        for start in np.arange(0, seconds, beat):
            _add_note(rng, out, start, root - 12 + scale[int(rng.integers(7))], beat, 6, 1.0)
    if rng.random() < 0.6:
        _add_drums(rng, out, seconds, beat)
    out = out[:count]
    return out / max(float(np.sqrt(np.mean(out**2))), 1e-6)


def _add_note(
    rng: np.random.Generator, out: np.ndarray, start: float, pitch: float, sustain: float, partials: int, slope: float
) -> None:
    begin = int(start * SAMPLE_RATE)
    time = np.arange(min(int(2.5 * sustain * SAMPLE_RATE), len(out) - begin)) / SAMPLE_RATE
    numbers = np.arange(1, partials + 1)
    frequencies = 440 * 2 ** ((pitch - 69) / 12) * numbers
    levels = numbers**-slope * rng.uniform(0.3, 1, partials) * (frequencies < 7000)
    phases = rng.uniform(0, 2 * np.pi, (partials, 1))
    wave = levels @ np.sin(2 * np.pi * frequencies[:, None] * time + phases)
    envelope = np.minimum(time / rng.uniform(0.003, 0.05), 1) * np.exp(-2 * time / sustain)
    out[begin : begin + len(time)] += (wave * envelope * rng.uniform(0.5, 1)).astype(np.float32)


def _add_drums(rng: np.random.Generator, out: np.ndarray, seconds: float, beat: float) -> None:
    level = rng.uniform(0.3, 2)
    for number, start in enumerate(np.arange(0, seconds, beat / 2)):
        begin, time = int(start * SAMPLE_RATE), np.arange(SAMPLE_RATE // 5) / SAMPLE_RATE
        hit = rng.normal(0, 1, len(time)) * np.exp(-time * rng.uniform(30, 120))
        if number % 2 == 0:
            hit = 2 * np.sin(2 * np.pi * rng.uniform(50, 90) * time) * np.exp(-time * 25)
        out[begin : begin + len(time)] += (level * hit).astype(np.float32)


def _colour(rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    """Filters a sound by a random smooth curve, and adds reverberation to half of them."""
    spectrum = np.fft.rfft(sound)
    curve = np.interp(np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, 8), rng.normal(0, 5, 8))
    sound = np.fft.irfft(spectrum * 10 ** (curve / 20), len(sound)).astype(np.float32)
    if rng.random() < 0.5:
        tail = np.arange(int(rng.uniform(0.05, 0.6) * SAMPLE_RATE))
        echo = rng.normal(0, 1, len(tail)) * np.exp(-6.9 * tail / len(tail))
        echo *= rng.uniform(0.1, 1) / np.sqrt(np.sum(echo**2) + 1e-9)
        echo[0] = 1
        sound = fftconvolve(sound, echo.astype(np.float32))[: len(sound)]
    return sound / max(float(np.sqrt(np.mean(sound**2))), 1e-6)


def _levels(sound: np.ndarray, frames: int) -> np.ndarray:
    """Returns levels (N,) in dB of the surroundings of each frame, `frames` long."""
    power = np.pad(sound, (0, -len(sound) % content.HOP)).reshape(-1, content.HOP).astype(np.float64) ** 2
    return 10 * np.log10(np.convolve(power.mean(1), np.ones(frames) / frames, mode="same") + 1e-12)


class Mixtures:
    """Draws training samples.

    Args:
        voices: float32 (samples,) each.
        names: the speaker of each.
        music: float32 (samples,) each.
        seed: seed of all draws.
    """

    def __init__(self, voices: list[np.ndarray], names: list[str], music: list[np.ndarray], seed: int):
        self._voices, self._names, self._music = voices, names, music
        self._rng = np.random.default_rng(seed)

    def batch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns features (size, FRAMES + 2 * REACH, BANDS) and labels (size, FRAMES, 2) in {0, 1}."""
        features, labels = zip(*(self._sample() for _ in range(size)), strict=True)
        return np.stack(features), np.stack(labels)

    def _piece(self, sounds: list[np.ndarray], index: int) -> np.ndarray:
        rng, count = self._rng, round(SECONDS * SAMPLE_RATE)
        speed = np.exp(rng.uniform(-0.15, 0.15))  # changes the pitch, too
        places = np.arange(round(count)) * speed
        start = rng.uniform(0, max(len(sounds[index]) - places[-1] - 2, 1))
        piece = np.interp(places + start, np.arange(len(sounds[index])), sounds[index]).astype(np.float32)
        return _colour(rng, piece) if np.any(piece) else piece

    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        rng = self._rng
        first = int(rng.integers(len(self._voices)))
        voice = self._piece(self._voices, first) * (rng.random() < 0.93)
        mix, sounding = voice.copy(), _levels(voice, 5)
        labels = np.zeros((len(sounding), 2), np.float32)
        if rng.random() < 0.5:
            second = int(rng.integers(len(self._voices)))
            while self._names[second] == self._names[first]:
                second = int(rng.integers(len(self._voices)))
            other = self._piece(self._voices, second) * 10 ** (rng.uniform(-OVERLAP_DB, 3) / 20)
            mix, found = mix + other, _levels(other, 5)
            both = (sounding > sounding.max() + SILENT_DB) & (found > found.max() + SILENT_DB)
            labels[:, 1] = both & (np.abs(sounding - found) < OVERLAP_DB)
        if rng.random() < 0.5:
            music = self._piece(self._music, int(rng.integers(len(self._music))))
            music *= 10 ** (rng.uniform(-MUSIC_DB, 5) / 20)
            reference = max(10 * np.log10(np.mean(voice**2) + 1e-12), _levels(music, 25).max() - MUSIC_DB)
            labels[:, 0] = _levels(music, 25) > reference - MUSIC_DB
            mix = mix + music
        noise = np.cumsum(rng.normal(0, 1, len(mix))) if rng.random() < 0.3 else rng.normal(0, 1, len(mix))
        noise = _colour(rng, (noise - noise.mean()).astype(np.float32))
        mix = mix + noise * 10 ** (rng.uniform(-60, -12) / 20)
        features = content.spectral_rows(mix)[0]
        return features[: FRAMES + 2 * content.REACH], labels[content.REACH : content.REACH + FRAMES]


def init(seed: int) -> dict[str, np.ndarray]:
    """Returns new weights."""
    rng, weights, channels, bands = np.random.default_rng(seed), {}, 1, content.BANDS

    def kernel(*shape: int) -> np.ndarray:
        return (rng.normal(0, 1, shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)

    for level, (frames, width, stride, out) in enumerate(content.KERNELS):
        weights |= {f"conv_{level}": kernel(frames, width, channels, out), f"bias_{level}": np.zeros(out, np.float32)}
        channels, bands = out, (bands - width) // stride + 1
    weights |= dict(hidden=kernel(bands * channels, content.HIDDEN), hidden_bias=np.zeros(content.HIDDEN, np.float32))
    weights |= dict(out=kernel(content.HIDDEN, 2), out_bias=np.zeros(2, np.float32))
    return weights | dict(scale=np.full(1, 0.5, np.float32), shift=np.ones(1, np.float32))


def apply(weights: Mapping[str, Any], features: Any) -> jax.Array:
    """Computes `sound_content.forward` for a batch (B, N + 2 * REACH, BANDS)."""
    x = features[..., None] * weights["scale"] + weights["shift"]
    for level, (_, _, stride, _) in enumerate(content.KERNELS):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weights[f"conv_{level}"], (1, stride), "VALID", dimension_numbers=numbers)
        x = jax.nn.relu(x + weights[f"bias_{level}"])
    x = jax.nn.relu(x.reshape(*x.shape[:2], -1) @ weights["hidden"] + weights["hidden_bias"])
    total = jnp.pad(jnp.cumsum(x, 1), ((0, 0), (1, 0), (0, 0)))
    means = (total[:, content.MEAN :] - total[:, : -content.MEAN]) / content.MEAN
    return means @ weights["out"] + weights["out_bias"]


def train(mixtures: Mixtures, steps: int, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Trains for a number of steps with AdamW and a cosine schedule; prints the loss ten times."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(50, steps // 4), steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)

    @jax.jit
    def step(weights, state, features, labels):
        def loss(weights):
            return optax.sigmoid_binary_cross_entropy(apply(weights, features), labels).mean()

        value, gradients = jax.value_and_grad(loss)(weights)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state, value

    weights = init(seed)
    state, losses = optimizer.init(weights), []
    with Progress(steps, "training", "step") as progress:
        for number in range(1, steps + 1):
            weights, state, value = step(weights, state, *mixtures.batch(batch))
            losses.append(float(value))
            if number % max(steps // 10, 1) == 0:
                print(f"step {number}: loss {np.mean(losses[-max(steps // 10, 1) :]):.4f}", flush=True)
            progress.add()
    return {name: np.asarray(value) for name, value in weights.items()}


def read_voices(directories: list[str], split: str) -> tuple[list[np.ndarray], list[str]]:
    """Returns the voices of records, and their speakers."""
    sources = [open_records(directory, split) for directory in directories]
    places = [(source, index) for source in sources for index in range(len(source))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), RECORDS)).round().astype(int))
    voices, names = [], []
    for source, index in (places[k] for k in chosen):
        record = source[index]
        if len(record["audio"]):
            voices.append(record["audio"].astype(np.float32) / 32768)
            names.append(record["source"].split("voice: ")[-1].replace("song, ", "").replace("laughter, ", ""))
    return voices, names


def main(arguments: list[str] | None = None) -> None:
    """Trains, tests on the split validation, and writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="directories of rendered records")
    parser.add_argument("-o", "--output", default=str(content.WEIGHTS), help="safetensors file")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--music", type=int, default=200, help="number of pieces of music of 6 s")
    args = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    music = [make_music(rng, 6.0) for _ in range(args.music)]
    weights = train(Mixtures(*read_voices(args.data, "train"), music, 1), args.steps, args.batch)
    rng = np.random.default_rng(1 << 20)
    held_out = Mixtures(*read_voices(args.data, "validation"), [make_music(rng, 6.0) for _ in range(20)], 2)
    features, labels = held_out.batch(128)
    found = np.asarray(apply(weights, features)) > 0
    for k, name in enumerate(content.OUTPUTS):
        hits, false = found[..., k][labels[..., k] > 0].mean(), found[..., k][labels[..., k] == 0].mean()
        print(f"{name}: {hits:.0%} of its moments found, {false:.0%} of the others taken for it")
    with atomic_write(args.output) as partial:
        save_file({name: value.astype(np.float16) for name, value in weights.items()}, partial)


if __name__ == "__main__":
    main()

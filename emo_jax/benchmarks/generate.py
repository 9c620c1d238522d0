"""Time of generation on this machine, by part, and of two models in turn."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from emo_jax.benchmarks.timing import alternating_seconds
from emo_jax.generation.inputs import ASSETS, load_portrait, load_voice
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.progress import Progress

PARTS = ("denoising step", "clip", "decoded clip", "first frames", "video")


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights and how they are sampled.

    Attributes:
        weights: a preset, a folder of weights, or the folder of a run.
        sampling: fields of the config's `sampling` to replace.
    """

    weights: str
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure(models: Sequence[Model], seconds: float = 2.0, rounds: int = 3) -> list[dict]:
    """Measures the parts of a generation, with compiled programs and the bundled portrait and voice.

    Two models take turns (A B A B), because the speed of a machine changes with what else runs on it.

    Args:
        models: one model, or two.
        seconds: length of the video.
        rounds: number of measured videos of each model.

    Returns:
        A row for each of PARTS with the median seconds of each model, A and B, and the median of the ratios B / A of
        neighbouring measurements; then rows of frames per second, their ratio to real time, and the peak memory of
        this process. A denoising step is a clip divided by their number.

    Raises:
        ValueError: weights or a field that cannot be used.
    """
    portrait, voice = load_portrait(ASSETS / "portrait.png"), load_voice(ASSETS / "voice.wav").samples
    voice = np.resize(voice, round(seconds * SAMPLE_RATE))
    names = [chr(ord("A") + index) for index in range(len(models))]
    pipes = [EmoPipeline.from_pretrained(model.weights, **model.sampling) for model in models]
    times = {name: {part: [] for part in PARTS} for name in names}

    def run(name: str, pipe: EmoPipeline) -> Callable[[], None]:
        def generate() -> None:
            for part, spent in _parts(pipe, portrait, voice).items():
                times[name][part].append(spent)

        return generate

    runs = {name: run(name, pipe) for name, pipe in zip(names, pipes, strict=True)}
    with Progress((rounds + 1) * len(runs), "generate", "video") as progress:
        for generate in runs.values():
            generate()  # compiles
            progress.add()
        for measured in times.values():
            for part in PARTS:
                measured[part].clear()
        alternating_seconds(runs, rounds, lambda name, spent: progress.add())
    return _rows(times, [pipe.fps for pipe in pipes], seconds)


def _parts(pipe: EmoPipeline, portrait: np.ndarray, voice: np.ndarray) -> dict[str, float]:
    """Generates a video and returns the seconds of its parts; programs are waited for, so that each has its own."""
    sampler, spent = pipe.sampler(pipe.config.sampling), dict(clip=0.0, decoded=0.0)
    clips = -(-round(len(voice) / SAMPLE_RATE * pipe.fps) // pipe.config.clip.frames)
    started = time.perf_counter()
    frames, first = pipe.stream(portrait, voice, framing="crop"), 0.0
    for _ in frames:
        first = first or time.perf_counter() - started
    total = time.perf_counter() - started
    segment, decode = sampler._segment, sampler._decode
    try:
        sampler._segment = _timed(segment, spent, "clip")
        sampler._decode = _timed(decode, spent, "decoded")
        for _ in pipe.stream(portrait, voice, framing="crop"):
            pass
    finally:
        sampler._segment, sampler._decode = segment, decode
    clip = spent["clip"] / clips
    step, decoded = clip / pipe.config.sampling.steps, spent["decoded"] / clips
    return dict(zip(PARTS, (step, clip, decoded, first, total), strict=True))


def _timed(program: Callable, spent: dict[str, float], name: str) -> Callable:
    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = jax.block_until_ready(program(*arguments))
        spent[name] += time.perf_counter() - started
        return result

    return call


def _rows(times: dict[str, dict[str, list[float]]], fps: Sequence[float], seconds: float) -> list[dict]:
    rows = []
    for part in PARTS:
        row: dict[str, Any] = {"part": part, "unit": "s"}
        row |= {name: float(np.median(measured[part])) for name, measured in times.items()}
        rows.append(row)
    video = rows[-1]
    rows.append({"part": "frames a second", "unit": "1/s"})
    rows.append({"part": "speed", "unit": "of real time"})
    for name, rate in zip(times, fps, strict=True):
        rows[-2][name] = seconds * rate / video[name]
        rows[-1][name] = seconds / video[name]
    if len(times) == 2:
        a, b = times.values()
        for row, part in zip(rows, PARTS, strict=False):
            row["B / A"] = float(np.median(np.divide(b[part], a[part])))
        for row in rows[len(PARTS) :]:
            row["B / A"] = 1 / video["B / A"] * (fps[1] / fps[0] if row["unit"] == "1/s" else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    memory: dict[str, Any] = {"part": "peak memory", "unit": "GB of this process", "A": peak}
    return [*rows, memory | {name: "" for name in rows[0] if name not in ("part", "unit", "A")}]


def compare(rows: list[dict], earlier: list[dict]) -> list[dict]:
    """Adds the values of an earlier table, and the ratios of A to them, to rows of `measure`.

    Raises:
        ValueError: the earlier table has other parts.
    """
    before = {row.get("part"): row.get("A") for row in earlier}
    missing = [row["part"] for row in rows if not isinstance(before.get(row["part"]), (int, float))]
    if missing:
        raise ValueError(f"the earlier table has no {missing[0]!r}; give a file that emo bench generate wrote")
    return [row | {"earlier": before[row["part"]], "A / earlier": row["A"] / before[row["part"]]} for row in rows]

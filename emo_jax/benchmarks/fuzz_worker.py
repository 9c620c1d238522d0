"""The process in which the fuzzer reads changed inputs: one line on stdin names an input, one on stdout the outcome.

    python -m emo_jax.benchmarks.fuzz_worker KIND GIGABYTES [VALID_INPUT ...]

The process reads the valid inputs first, so that its limit of memory counts from there, and prints "ready".
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from emo_jax.benchmarks import fuzz_inputs

REJECTED, ACCEPTED, FAILED = "rejected", "accepted", "failed"
"""Outcomes: an error that the command line prints as one line; a valid result; anything else."""
_ONE_LINE = (ValueError, OSError, FloatingPointError)
"""What `emo_jax.cli.main` prints as one line."""
_LONGEST = 2000
"""Characters of an error that still is one line for a person."""


def main(arguments: list[str]) -> None:
    """Reads inputs until stdin ends."""
    kind, gigabytes, *valid = arguments
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    read = READERS[kind]
    for path in valid:
        read(Path(path))
    _limit_memory(float(gigabytes))
    _answer(answers, "ready", "")
    for line in sys.stdin:
        _answer(answers, *outcome(read, Path(json.loads(line))))


def outcome(read: Callable[[Path], None], path: Path) -> tuple[str, str]:
    """Returns the outcome of reading an input, and the error if there is one."""
    try:
        read(path)
    except _ONE_LINE as error:
        text = str(error)
        if not text.strip() or len(text) > _LONGEST:
            return FAILED, f"an error of {len(text)} characters: {text[:200]}"
        return REJECTED, text
    except BaseException:  # also MemoryError, KeyboardInterrupt and SystemExit
        return FAILED, traceback.format_exc()
    return ACCEPTED, ""


def _answer(answers: TextIO, state: str, text: str) -> None:
    answers.write(json.dumps([state, text]) + "\n")
    answers.flush()


def _limit_memory(gigabytes: float) -> None:
    """Limits the address space to its present size plus a number of gigabytes."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return
    limit = used + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(f"broken result: {text}")


def _read_picture(path: Path) -> None:
    from emo_jax.generation.inputs import load_portrait, place_portrait

    image = load_portrait(path)
    _require(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0, str(image.shape))
    height, width = image.shape[:2]
    box = (width * 0.2, height * 0.2, width * 0.8, height * 0.9)
    placed = place_portrait(image, fuzz_inputs.small_config().clip, box, path)
    _require(placed.crop.shape == (64, 64, 3) and placed.crop.dtype == np.uint8, f"a crop of {placed.crop.shape}")
    _require(bool(np.isin(placed.mask, (0, 1)).all()), "a mask of other values than 0 and 1")


def _read_sound(path: Path) -> None:
    from emo_jax.generation.inputs import load_voice
    from emo_jax.media.loudness import audibility_warning, normalise

    voice = load_voice(path)
    _check_samples(voice.samples)
    audibility_warning(voice.samples)
    _check_samples(normalise(voice.samples))
    track = voice.track.read()
    _require(bool(np.isfinite(track).all()), "samples of the sound track")


def _check_samples(samples: np.ndarray) -> None:
    _require(samples.ndim == 1 and samples.size > 0 and bool(np.isfinite(samples).all()), f"sound {samples.shape}")
    _require(float(np.abs(samples).max()) <= 1.0 + 1e-6, f"a peak of {np.abs(samples).max()}")


def _read_video(path: Path) -> None:
    from emo_jax.media.audio import decode_audio
    from emo_jax.media.video import probe, read_video

    info = probe(path)
    _require(info["frames"] < 10**6 and np.isfinite(info["seconds"]), str(info))
    for image, time in read_video(path, fuzz_inputs.FPS):
        _require(image.dtype == np.uint8 and image.ndim == 3 and np.isfinite(time), f"{image.shape} at {time}")
    if info["audio_rate"]:
        _check_samples(decode_audio(path, align_to_video=True).samples)


def _read_config(path: Path) -> None:
    from emo_jax import EmoPipeline

    EmoPipeline.from_pretrained(path)


def _read_records(path: Path) -> None:
    from emo_jax.data.records import open_record, open_records
    from emo_jax.media.mp4 import decode_video

    source = open_records(path, "train")
    index, reliable = source.index(), source.reliable_speed()
    _require(len(source) == len(reliable) == len(index["frames"]), f"{len(source)} records, {len(reliable)} rows")
    for position in range(len(source)):
        with open_record(source, position) as record:
            count = len(record["boxes"])
            for name in ("boxes", "rotation", "speed", "landmarks"):
                _require(bool(np.isfinite(record[name]).all()), f"{name} of record {position}")
            frames = decode_video(record["video"], 0, min(count, 8))
            _require(len(frames) == min(count, 8), f"{len(frames)} frames of record {position}")


def _read_weights(path: Path) -> None:
    from emo_jax import EmoPipeline

    loaded = EmoPipeline.from_pretrained(path)
    pipe = _compiled.setdefault(loaded.config.to_json_best_effort(), loaded)
    pipe.params = loaded.params
    for sampler in pipe._samplers.values():
        sampler.params = loaded.params
    frames = np.concatenate(
        list(pipe.stream(fuzz_inputs.picture(96), fuzz_inputs.voice(0.3), face_box=(20, 20, 70, 80)))
    )
    _require(frames.dtype == np.uint8 and float(frames.std()) > 0, f"frames {frames.shape} of one colour")


_compiled: dict[str, Any] = {}
"""{config: the pipeline that has compiled its programs}: other weights of that config use the same programs."""

READERS: dict[str, Callable[[Path], None]] = {
    "picture": _read_picture,
    "sound": _read_sound,
    "video": _read_video,
    "config": _read_config,
    "records": _read_records,
    "weights": _read_weights,
}
"""What reads each kind of input, as the verbs do."""

if __name__ == "__main__":
    main(sys.argv[1:])

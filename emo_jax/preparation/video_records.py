"""From one video file to records: measured in a first pass, cut out and encoded in a second, never held whole."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from emo_jax.data.records import Record, record_example
from emo_jax.faces.analyzer import FaceAnalyzer, analyzer_flags
from emo_jax.faces.rotation import rotation_speed
from emo_jax.media.audio import decode_audio
from emo_jax.media.container import open_media
from emo_jax.media.loudness import level_gain, remove_offset
from emo_jax.media.mp4 import encode_video
from emo_jax.media.timing import SAMPLE_RATE, cut
from emo_jax.media.video import read_video
from emo_jax.preparation.shots import STEADY, Measurements, Meter, Rules, Stretch, choose_stretches, cut_square

FPS = 25
SAMPLES = SAMPLE_RATE // FPS  # of a frame
SOUND_MAY_LACK = 0.5  # seconds at the end of a video without sound, filled with silence
SILENT = 1e-3  # root mean square, as recorded, below which a sound track says nothing (-60 dBFS)
THUMBNAIL = 96
MEASURED = 0.7  # share of the work that is measuring, for the progress shown


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `emo prepare videos` was asked for: the rules of a stretch, the face analyzer, the licence of the videos."""

    rules: Rules = Rules()
    faces: str = "auto"
    face_model: str | None = None
    licence: str = "unknown"


@dataclasses.dataclass(frozen=True)
class Sound:
    """The sound track of a video.

    samples: int16 at SAMPLE_RATE from the first frame on, as loud as they were recorded; none where there is no sound.
    gain: by which the whole track is levelled, as `emo generate` levels its recording. flag: what is wrong; or "".
    """

    samples: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int16))
    gain: float = 1.0
    flag: str = ""


@dataclasses.dataclass
class Outcome:
    """What became of one video, for the report.

    dropped: frames left out for each reason. reason: why nothing or not all could be used; "" where there is no fault.
    """

    source: str
    frames: int = 0
    records: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    reason: str = ""


def video_records(
    path: pathlib.Path, name: str, settings: Settings, analyzer: FaceAnalyzer, tick: Callable[[float], None]
) -> Iterator[tuple[dict, dict]]:
    """The records of one video, as `record_example` gives them, each with a row for the report; returns the `Outcome`.

    path: of the file. name: of the video in ids and report. tick: is told the share of the video that was done since.
    Any fault of the file ends the iteration; the outcome's reason says which.
    """
    outcome = Outcome(name)
    try:
        yield from _records(path, settings, analyzer, tick, outcome)
    except Exception as error:  # decoders raise what they like, and one bad video must not stop the run
        known = isinstance(error, ValueError)
        text = " ".join(str(error).split()).replace(str(path), name)
        outcome.reason = text if known else f"{type(error).__name__}: {text}"
    return outcome


def _records(path, settings, analyzer, tick, outcome) -> Iterator[tuple[dict, dict]]:
    stated = _stated_seconds(path)
    seen, size = _measure(path, analyzer, lambda done: tick(done * MEASURED), stated)
    outcome.frames = len(seen)
    flags = [] if len(seen) / FPS > 0.95 * stated - 0.2 else ["truncated"]
    sound = _sound(path)
    flags += [sound.flag] if sound.flag else []
    end = len(sound.samples) // SAMPLES
    borders = (end,) if 0 < end < len(seen) - SOUND_MAY_LACK * FPS else ()
    stretches, outcome.dropped = choose_stretches(seen, settings.rules, FPS, size, borders)
    if not stretches:
        worst = max(outcome.dropped, key=outcome.dropped.get)
        share = outcome.dropped[worst] / len(seen)
        outcome.reason = f"no stretch can be used: {worst} in {share:.0%} of {len(seen)} frames"
        return
    flags += analyzer_flags(analyzer)
    for stretch, frames in _cut_out(path, stretches, settings.rules.size):
        record = _record(outcome.source, settings, analyzer, seen, stretch, frames, sound, flags)
        outcome.records += 1
        yield record_example(record), _row(record, seen, stretch, frames)
        tick((1 - MEASURED) / len(stretches))


def _measure(path, analyzer, tick, stated: float) -> tuple[Measurements, tuple[int, int]]:
    """(measurements of the frames on the grid of FPS, (height, width) of the upright frames)."""
    analyzer.reset()
    meter, size, told = Meter(analyzer), (0, 0), 0
    for image, _ in read_video(path, FPS):
        if size != (0, 0) and image.shape[:2] != size:
            raise ValueError(f"{path} changes its frame size from {size} to {image.shape[:2]}; split it there")
        meter.add(image)
        size, told = image.shape[:2], told + 1
        if told % FPS == 0 and told <= stated * FPS:
            tick(1 / stated)
    return meter.measurements(), size


def _stated_seconds(path) -> float:
    """How long the file says its pictures last; 0 where it does not say."""
    with open_media(path) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None or not stream.duration:
            return 0.0
        return float(stream.duration * stream.time_base)


def _sound(path) -> Sound:
    with open_media(path) as container:
        if not container.streams.audio:
            return Sound(flag="no-sound")
    try:
        sound, flags = decode_audio(path, align_to_video=True)
    except ValueError:
        return Sound(flag="bad-sound")
    sound = remove_offset(sound)
    return Sound(np.round(sound * 32767).astype(np.int16), level_gain(sound), " ".join(flags))


def _cut_out(path, stretches: list[Stretch], size: int) -> Iterator[tuple[Stretch, np.ndarray]]:
    """Each stretch with its frames, uint8 (N, size, size, 3)."""
    waiting, frames = list(stretches), []
    for index, (image, _) in enumerate(read_video(path, FPS)):
        stretch = waiting[0]
        if index < stretch.start:
            continue
        frames.append(cut_square(image, stretch.window, size))
        if index + 1 == stretch.stop:
            yield waiting.pop(0), np.stack(frames)
            frames = []
            if not waiting:
                return


def _record(source, settings, analyzer, seen, stretch, frames, sound, flags) -> Record:
    rows = slice(stretch.start, stretch.stop)
    left, top, side = stretch.window
    size = settings.rules.size
    boxes = (_smooth(seen.box[rows]) - (left, top, left, top)) * (size / side)
    rotation, speed, trust = head_motion(seen.rotation[rows])
    audio = cut(sound.samples, stretch.start * SAMPLES, len(frames) * SAMPLES)
    flags = [*flags, *stretch.flags]
    if stretch.start * SAMPLES >= len(sound.samples):
        audio, more = audio[:0], [] if {"no-sound", "bad-sound"} & set(flags) else ["no-sound"]
        flags += more
    elif _loudness(audio) < SILENT:
        audio = audio[:0]
        flags.append("silent")
    levelled = np.clip(np.round(audio * sound.gain), -32768, 32767).astype(np.int16)
    return Record(
        id=f"{record_id(source)}-{stretch.start:06d}",
        source=source,
        licence=settings.licence,
        video=encode_video(frames, FPS),
        audio=levelled,
        fps=float(FPS),
        boxes=np.clip(boxes, 0, size).astype(np.float32),
        landmarks=(seen.landmarks[rows] - (left, top)) * (size / side),
        rotation=rotation.astype(np.float32),
        speed=speed,
        speed_confidence=(seen.confidence[rows] * trust).astype(np.float32),
        span=np.array([stretch.start / FPS, stretch.stop / FPS], np.float32),
        analyzer=f"{analyzer.name}: {analyzer.measures}",
        flags=" ".join(flags),
    )


def record_id(source: str) -> str:
    """Unique for each source; begins with the file's name."""
    return f"{pathlib.PurePath(source).stem}-{hashlib.sha256(source.encode()).hexdigest()[:10]}"


def _smooth(values: np.ndarray) -> np.ndarray:
    """(N, K) means over STEADY frames, the ends repeated: raw frame-to-frame differences are mostly noise."""
    padded = np.pad(values, ((STEADY // 2, STEADY // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, STEADY, axis=0).mean(axis=-1)


def head_motion(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What frame by frame measurements (N, 3) of yaw, pitch and roll in degrees tell of a head's motion.

    Jitter adds to every difference of frames: its variance, estimated from third differences, in which a head's own
    motion hardly shows, is taken out of the squared speed.

    Returns:
      Smoothed angles (N, 3); speed (N,) float32 in degrees per frame; trust (N,): 1 where the speed is at least what
      jitter alone would show, less in proportion where it is not.
    """
    rotation = _smooth(measured)
    if len(measured) < 4:
        return rotation, rotation_speed(rotation), np.ones(len(rotation))
    spread = np.median(np.abs(np.diff(measured, 3, axis=0)), axis=0) / 0.6745  # of a normal distribution, robustly
    jitter = 2 * np.sum(spread**2 / 20) / STEADY**2  # (1, 3, 3, 1) squared and summed; of a mean's difference
    squared = _smooth(rotation_speed(rotation, 1)[:, None] ** 2)[:, 0]
    speed = np.sqrt(np.maximum(squared - jitter, 0)).astype(np.float32)
    return rotation, speed, np.minimum(1, speed / max(np.sqrt(jitter), 1e-6))


def _loudness(audio: np.ndarray) -> float:
    """Root mean square of int16 samples, of full scale."""
    return float(np.sqrt(np.mean((audio / 32768.0) ** 2))) if len(audio) else 0.0


def _row(record: Record, seen: Measurements, stretch: Stretch, frames: np.ndarray) -> dict:
    """What the report says of a record."""
    rows = slice(stretch.start, stretch.stop)
    small = cv2.resize(frames[len(frames) // 2], (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    picture = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
    rms = _loudness(record.audio)
    return dict(
        id=record.id,
        source=record.source,
        span=[stretch.start / FPS, stretch.stop / FPS],
        frames=len(frames),
        fps=record.fps,
        sound=bool(len(record.audio)),
        face_pixels=round(float(np.median(seen.box[rows, 3] - seen.box[rows, 1])), 1),
        speed=round(float(record.speed.mean()), 4),
        loudness=round(20 * float(np.log10(rms)), 2) if rms else None,
        flags=record.flags.split(),
        thumbnail=base64.b64encode(picture).decode(),
    )

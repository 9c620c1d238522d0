"""From one video file to records: a first pass measures the frames, a second one crops and encodes the chosen spans.

Frames are streamed; only those of one record are held in memory.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Generator, Iterator

import cv2
import numpy as np

from emo_jax.data.record import Record, has_reliable_speed, record_example
from emo_jax.faces.analyzer import FaceAnalyzer, analyzer_flags
from emo_jax.faces.rotation import rotation_speed
from emo_jax.media.audio import decode_audio
from emo_jax.media.container import open_media
from emo_jax.media.loudness import level_gain, remove_offset
from emo_jax.media.moments import audio_moments
from emo_jax.media.mp4 import encode_video
from emo_jax.media.timing import SAMPLE_RATE, cut
from emo_jax.media.video import read_video
from emo_jax.preparation.gates import measure_sound, sound_flags
from emo_jax.preparation.shots import (
    MEDIAN_FRAMES,
    Measurements,
    Meter,
    Rules,
    Span,
    choose_spans,
    crop_window,
    window_points,
)

FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
MAX_MISSING_SOUND = 0.5  # seconds without sound at the end of a video that are filled with silence
SILENCE_RMS = 1e-3  # root mean square of the recorded sound below which a record counts as silent (-60 dBFS)
THUMBNAIL_SIZE = 96  # height
MEASURING_SHARE = 0.7  # share of the work that measuring takes, for the progress
SMOOTHING_FRAMES = MEDIAN_FRAMES


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of `emo prepare videos` that the records depend on.

    Attributes:
        rules: requirements for a record.
        faces: name of the face analyzer.
        face_models: folder of its model files; None for the default.
        licence: licence of the videos.
        max_offset: largest offset in frames between sound and lips that is not flagged.
        drop: flags whose records are left out.
    """

    rules: Rules = Rules()
    faces: str = "auto"
    face_models: str | None = None
    licence: str = "unknown"
    max_offset: int = 5
    drop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sound:
    """The sound track of a video.

    Attributes:
        samples: (samples,) int16 at SAMPLE_RATE from the first frame on, at the recorded level; (0,) without sound.
        gain: factor that normalizes the loudness of the track, as `emo generate` does.
        flag: warning for the records; "" if there is none.
    """

    samples: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int16))
    gain: float = 1.0
    flag: str = ""

    @functools.cached_property
    def moments(self) -> np.ndarray:
        """The moments of the normalized track, see `media.moments`."""
        return audio_moments(self.samples) * np.float32(self.gain)


@dataclasses.dataclass
class Outcome:
    """The outcome of one video, for the report.

    Attributes:
        source: name of the video.
        frames: number of its frames.
        records: number of records made from it.
        dropped: {reason: number of frames left out}.
        reason: why the video was rejected or only partly used; "" if there was no fault.
    """

    source: str
    frames: int = 0
    records: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    reason: str = ""


def video_records(
    path: pathlib.Path, name: str, settings: Settings, analyzer: FaceAnalyzer, tick: Callable[[float], None]
) -> Generator[tuple[dict, dict], None, Outcome]:
    """Makes the records of one video.

    A fault of the file ends the iteration; the outcome contains the reason.

    Args:
        path: path of the file.
        name: name of the video in ids and in the report.
        settings: settings that the records depend on.
        analyzer: the face analyzer.
        tick: called with the share of the work that was done since the last call.

    Yields:
        The record as an example, see `record_example`, and its row of the report.

    Returns:
        The outcome.
    """
    outcome = Outcome(name)
    try:
        yield from _make_records(path, settings, analyzer, tick, outcome)
    except Exception as error:  # decoders raise exceptions of all kinds, and one bad video must not stop the run
        message = " ".join(str(error).split()).replace(str(path), name)
        outcome.reason = message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
    return outcome


def _make_records(
    path: pathlib.Path, settings: Settings, analyzer: FaceAnalyzer, tick: Callable[[float], None], outcome: Outcome
) -> Iterator[tuple[dict, dict]]:
    stated = _stated_seconds(path)
    measurements, size = _measure(path, analyzer, lambda done: tick(done * MEASURING_SHARE), stated)
    outcome.frames = len(measurements)
    flags = [] if len(measurements) / FPS > 0.95 * stated - 0.2 else ["truncated"]
    sound = _read_sound(path, outcome)
    flags += [sound.flag] if sound.flag else []
    sound_end = len(sound.samples) // SAMPLES_PER_FRAME
    borders = (sound_end,) if 0 < sound_end < len(measurements) - MAX_MISSING_SOUND * FPS else ()
    spans, outcome.dropped = choose_spans(measurements, settings.rules, FPS, size, borders)
    if not spans:
        reason, count = max(outcome.dropped.items(), key=lambda item: item[1])
        share = count / len(measurements)
        no_span = f"no usable span: {reason} in {share:.0%} of {len(measurements)} frames"
        outcome.reason = "; ".join(filter(None, (no_span, outcome.reason)))
        return
    flags += analyzer_flags(analyzer)
    for span, frames in _read_spans(path, spans, settings.rules.frame_shape):
        record = _make_record(outcome.source, settings, analyzer, measurements, span, frames, sound, flags)
        measures = measure_sound(record.audio, record.landmarks, FPS)
        record.flags = " ".join([*record.flags.split(), *sound_flags(measures, settings.max_offset)])
        tick((1 - MEASURING_SHARE) / len(spans))
        if unwanted := [flag for flag in record.flags.split() if flag in settings.drop]:
            reason = f"flag {unwanted[0]}"
            outcome.dropped[reason] = outcome.dropped.get(reason, 0) + len(frames)
            continue
        outcome.records += 1
        yield record_example(record), _report_row(record, measurements, span, frames) | measures.row()
    reasons = ", ".join(reason for reason in outcome.dropped if reason.startswith("flag "))
    if reasons and not outcome.records:
        outcome.reason = "; ".join(filter(None, (f"all records dropped: {reasons}", outcome.reason)))


def _measure(
    path: pathlib.Path, analyzer: FaceAnalyzer, tick: Callable[[float], None], stated: float
) -> tuple[Measurements, tuple[int, int]]:
    """Returns the measurements of the frames, resampled to FPS, and the (height, width) of the upright frames."""
    analyzer.reset()
    meter, size, count = Meter(analyzer), (0, 0), 0
    for image, _ in read_video(path, FPS):
        if size != (0, 0) and image.shape[:2] != size:
            raise ValueError(f"{path} changes its frame size from {size} to {image.shape[:2]}; split it there")
        meter.add(image)
        size, count = image.shape[:2], count + 1
        if count % FPS == 0 and count <= stated * FPS:
            tick(1 / stated)
    return meter.measurements(), size


def _stated_seconds(path: pathlib.Path) -> float:
    """Returns the duration of the video track according to the file; 0 if the file does not contain it."""
    with open_media(path) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None or not stream.duration or stream.time_base is None:
            return 0.0
        return float(stream.duration * stream.time_base)


def _read_sound(path: pathlib.Path, outcome: Outcome) -> Sound:
    """Returns the sound of a video; if it cannot be used, the reason is added to the outcome."""
    with open_media(path) as container:
        if not container.streams.audio:
            return Sound(flag="no-sound")
    try:
        sound, flags = decode_audio(path, align_to_video=True)
    except ValueError as error:
        outcome.reason = f"sound not used: {error}".replace(str(path), outcome.source)
        return Sound(flag="bad-sound")
    sound = remove_offset(sound)
    return Sound(np.round(sound * 32767).astype(np.int16), level_gain(sound), " ".join(flags))


def _read_spans(path: pathlib.Path, spans: list[Span], shape: tuple[int, int]) -> Iterator[tuple[Span, np.ndarray]]:
    """Yields each span with its cropped frames, uint8 (frames, *shape, 3)."""
    pending, frames = list(spans), []
    for index, (image, _) in enumerate(read_video(path, FPS)):
        span = pending[0]
        if index < span.start:
            continue
        frames.append(crop_window(image, span.window, shape))
        if index + 1 == span.stop:
            yield pending.pop(0), np.stack(frames)
            frames = []
            if not pending:
                return


def _make_record(
    source: str,
    settings: Settings,
    analyzer: FaceAnalyzer,
    measurements: Measurements,
    span: Span,
    frames: np.ndarray,
    sound: Sound,
    flags: list[str],
) -> Record:
    rows = slice(span.start, span.stop)
    shape = settings.rules.frame_shape
    boxes = window_points(_smooth(measurements.box[rows]), span.window, shape)
    rotation, speed, confidence = head_motion(measurements.rotation[rows])
    flags = [*flags, *span.flags]
    audio, audio_flags = _span_audio(sound, span)
    if not {"no-sound", "bad-sound"} & set(flags):
        flags += audio_flags
    return Record(
        id=f"{record_id(source)}-{span.start:06d}",
        source=source,
        licence=settings.licence,
        video=encode_video(frames, FPS),
        audio=audio,
        audio_moments=sound.moments if len(audio) else audio_moments(audio),
        fps=float(FPS),
        boxes=np.clip(boxes, 0, shape[::-1] * 2).astype(np.float32),
        landmarks=window_points(measurements.landmarks[rows], span.window, shape),
        rotation=rotation.astype(np.float32),
        speed=speed,
        speed_confidence=(measurements.confidence[rows] * confidence).astype(np.float32),
        span=np.array([span.start / FPS, span.stop / FPS], np.float32),
        analyzer=f"{analyzer.name}: {analyzer.measures}",
        flags=" ".join(flags),
    )


def _span_audio(sound: Sound, span: Span) -> tuple[np.ndarray, list[str]]:
    """Returns the normalized audio (samples,) int16 of a span, (0,) if it has none or is silent, and its flags."""
    begin, length = span.start * SAMPLES_PER_FRAME, (span.stop - span.start) * SAMPLES_PER_FRAME
    if begin >= len(sound.samples):
        return sound.samples[:0], ["no-sound"]
    audio = cut(sound.samples, begin, length)
    if _root_mean_square(audio) < SILENCE_RMS:
        return audio[:0], ["silent"]
    return np.clip(np.round(audio * sound.gain), -32768, 32767).astype(np.int16), []


def record_id(source: str) -> str:
    """Returns an id that is unique for each source and begins with the stem of its file name."""
    return f"{pathlib.PurePath(source).stem}-{hashlib.sha256(source.encode()).hexdigest()[:10]}"


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns running means (N, K) with the ends repeated: differences of single frames are mostly noise."""
    padded = np.pad(values, ((SMOOTHING_FRAMES // 2, SMOOTHING_FRAMES // 2), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING_FRAMES, axis=0).mean(axis=-1)


def head_motion(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates the motion of a head from noisy measurements of its rotation.

    Jitter adds to every difference between frames. Its variance is estimated from third differences, to which the
    motion of a head contributes little, and is subtracted from the squared speed.

    Args:
        measured: (N, 3) yaw, pitch and roll in degrees.

    Returns:
        rotation (N, 3), smoothed; speed (N,) float32 in degrees per frame; confidence (N,): 1 where the speed is at
        least the speed that jitter alone would give, and proportionally less below it.
    """
    rotation = _smooth(measured)
    if len(measured) < 4:
        return rotation, rotation_speed(rotation), np.ones(len(rotation))
    deviation = np.median(np.abs(np.diff(measured, 3, axis=0)), axis=0) / 0.6745  # robust, for a normal distribution
    # 20 is the sum of the squared coefficients (1, 3, 3, 1); the rest is the variance of a difference of running means.
    jitter = 2 * np.sum(deviation**2 / 20) / SMOOTHING_FRAMES**2
    squared = _smooth(rotation_speed(rotation, 1)[:, None] ** 2)[:, 0]
    speed = np.sqrt(np.maximum(squared - jitter, 0)).astype(np.float32)
    return rotation, speed, np.minimum(1, speed / max(np.sqrt(jitter), 1e-6))


def _root_mean_square(audio: np.ndarray) -> float:
    """Returns the root mean square of int16 samples, relative to full scale."""
    return float(np.sqrt(np.mean((audio / 32768.0) ** 2))) if len(audio) else 0.0


def _report_row(record: Record, measurements: Measurements, span: Span, frames: np.ndarray) -> dict:
    rows = slice(span.start, span.stop)
    height, width = frames.shape[1:3]
    thumbnail_size = round(THUMBNAIL_SIZE * width / height), THUMBNAIL_SIZE
    small = cv2.resize(frames[len(frames) // 2], thumbnail_size, interpolation=cv2.INTER_AREA)
    thumbnail = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
    rms = _root_mean_square(record.audio)
    return dict(
        id=record.id,
        source=record.source,
        span=[span.start / FPS, span.stop / FPS],
        frames=len(frames),
        fps=record.fps,
        sound=bool(len(record.audio)),
        reliable_speed=has_reliable_speed(record.speed_confidence, record.flags),
        aspect=width / height,
        face_pixels=round(float(np.median(measurements.box[rows, 3] - measurements.box[rows, 1])), 1),
        speed=round(float(record.speed.mean()), 4),
        loudness=round(20 * float(np.log10(rms)), 2) if rms else None,
        flags=record.flags.split(),
        thumbnail=base64.b64encode(thumbnail).decode(),
    )

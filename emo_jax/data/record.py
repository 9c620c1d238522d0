"""A record: one continuous shot of one person, and its TFDS schema."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from emo_jax.media.moments import audio_moments
from emo_jax.media.mp4 import count_frames
from emo_jax.media.timing import SAMPLE_RATE, exact_fps

MIN_SPEED_CONFIDENCE = 0.5
"""Minimum confidence of a head rotation speed that is used."""
BYTES_FIELDS = ("id", "source", "licence", "video", "analyzer", "flags", "phonemes")


@dataclasses.dataclass
class Record:
    """One shot of N frames.

    Attributes:
        id: unique name within the split.
        source: name of the source of the shot.
        licence: licence of the source.
        video: mp4 file (H.264, GOP 16, no audio track); see `mp4.encode_video`.
        audio: (round(N / fps * 16000),) int16, 16 kHz mono; (0,) if the record has no sound.
        fps: frames per second.
        boxes: (N, 4) float32, face box (x0, y0, x1, y1) of each frame in pixels.
        rotation: (N, 3) float32, yaw, pitch and roll in degrees.
        speed: (N,) float32, smoothed head rotation speed in degrees per frame.
        mouth: (N, 2) float32, true opening and width in [0, 1] of a rendered head; (0, 2) for a real video.
        appearance: (K,) float32, identity attributes of a rendered head, each roughly in [0, 1]; (0,) for a real video.
        speed_confidence: (N,) float32 in [0, 1], reliability of `speed`; (0,) if it is exact (rendered heads).
        span: (2,) float32, begin and end in the source, in seconds from its first frame; (0, 0) for a rendered head.
        analyzer: the face analyzer and what it measures, for example "haar: box and roll"; "" for a rendered head.
        landmarks: (N, P, 2) face landmarks in pixels, stored as float16, in the order of the analyzer's mesh (478
            points of face_landmarker); (0, 0, 2) if the analyzer has none, and for a rendered head.
        phonemes: of a rendered person: "begin end symbol" per line, in seconds and IPA, without silences; "" otherwise.
        flags: space-separated warnings, for example "no-sound low-fps"; "" if there are none.
        audio_moments: (20, 10) float32, mean and covariance of the recording that the audio is a part of, by which the
            input of wav2vec 2.0 is normalized, see `media.moments`; (0, 10): those of the audio itself.
    """

    id: str
    source: str
    licence: str
    video: bytes
    audio: np.ndarray
    fps: float
    boxes: np.ndarray
    rotation: np.ndarray
    speed: np.ndarray
    mouth: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.float32))
    appearance: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    speed_confidence: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0,), np.float32))
    span: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((2,), np.float32))
    analyzer: str = ""
    flags: str = ""
    phonemes: str = ""
    landmarks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))
    audio_moments: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 10), np.float32))


def has_reliable_speed(confidence: np.ndarray, flags: str) -> bool:
    """Returns whether the head rotation speeds of a record can be used.

    Args:
        confidence: the record's speed_confidence (frames,); (0,) if its speeds are exact.
        flags: its flags. With roll-only, yaw and pitch are unknown.
    """
    if not len(confidence):
        return True
    return float(np.mean(confidence)) >= MIN_SPEED_CONFIDENCE and "roll-only" not in flags.split()


def record_features() -> tfds.features.FeaturesDict:
    """Returns the TFDS schema of a `Record`, which every builder of records uses."""
    floats = {"boxes": (None, 4), "rotation": (None, 3), "speed": (None,), "mouth": (None, 2), "appearance": (None,)}
    floats |= {"speed_confidence": (None,), "span": (2,), "audio_moments": (None, 10)}
    return tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in (*BYTES_FIELDS, "landmarks")}  # TFDS is slow for lists of floats
        | {"audio": tfds.features.Tensor(shape=(None,), dtype=np.int16), "fps": tfds.features.Scalar(np.float32)}
        | {name: tfds.features.Tensor(shape=shape, dtype=np.float32) for name, shape in floats.items()}
    )


def record_example(record: Record) -> dict[str, Any]:
    """Validates a `Record` and converts it to an example of `record_features`.

    Raises:
        ValueError: if a field has the wrong shape or type, or the fields disagree about the number of frames.
    """
    count = count_frames(record.video)
    if not record.fps > 0:
        raise ValueError(f"record {record.id!r}: fps is {record.fps}, expected more than 0")
    samples = round(count * SAMPLE_RATE / exact_fps(record.fps))
    audio = np.asarray(record.audio)
    if audio.dtype != np.int16 or audio.shape not in ((0,), (samples,)):
        raise ValueError(
            f"record {record.id!r}: audio is {audio.dtype}{audio.shape}, expected int16({samples},) for {count} frames "
            f"at {record.fps:g} fps, or int16(0,) for no sound; pad or trim it"
        )
    example = {name: getattr(record, name) for name in BYTES_FIELDS} | {"audio": audio, "fps": np.float32(record.fps)}
    shapes = {"boxes": (count, 4), "rotation": (count, 3), "speed": (count,), "mouth": (count, 2)}
    shapes |= {"speed_confidence": (count,), "span": (2,)}
    for name, shape in shapes.items():
        value = np.asarray(getattr(record, name), np.float32)
        if value.shape != shape and not (name in ("mouth", "speed_confidence") and value.shape == (0, *shape[1:])):
            raise ValueError(
                f"record {record.id!r}: {name} has shape {value.shape}, expected {shape}: one row per video frame"
            )
        if not np.isfinite(value).all():
            raise ValueError(
                f"record {record.id!r}: {name} contains values that are not finite; drop or repair the record"
            )
        example[name] = value
    landmarks = np.asarray(record.landmarks, np.float16)
    valid = landmarks.ndim == 3 and landmarks.shape[::2] == (count, 2) and np.isfinite(landmarks).all()
    if landmarks.size and not valid:
        raise ValueError(
            f"record {record.id!r}: landmarks have shape {landmarks.shape}, expected ({count}, P, 2), finite: drop them"
        )
    example["landmarks"] = landmarks.tobytes()
    moments = np.asarray(record.audio_moments, np.float32)
    example["audio_moments"] = moments if moments.size else audio_moments(audio)
    if example["audio_moments"].shape != (20, 10) or not np.isfinite(moments).all():
        raise ValueError(f"record {record.id!r}: audio_moments has shape {moments.shape}, expected (20, 10), finite")
    example["appearance"] = np.asarray(record.appearance, np.float32).reshape(-1)
    return example

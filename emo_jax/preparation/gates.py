"""Measures whether the sound of a record belongs to its face, and the flags that follow from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from emo_jax.faces.lip_sync import lip_sync
from emo_jax.faces.mesh import POINTS, lip_gap
from emo_jax.media.activity import FRAME, voice_activity
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.preparation.sound_content import sound_content

MIN_CONFIDENCE, MIN_CORRELATION = 0.3, 0.15
"""Confidence and correlation of `lip_sync` under which an offset means little."""
STILL_LIPS = 0.02
"""Standard deviation of the lip gap over a second below which lips are still: twice the jitter of landmarks."""
WINDOW, STEP, VOICED = 1.0, 0.2, 0.9
"""Length and distance in seconds of the windows in which still lips are looked for, and their share of voice."""
OFF_SCREEN, MUSIC, OVERLAP = 0.25, 0.4, 0.13
"""Shares from which on a record is flagged."""
FLAGS = (
    *("off-sync", "weak-sync", "off-screen", "music", "overlap"),
    *("no-sound", "silent", "bad-sound", "sound-gaps", "sound-overlaps", "sound-restarts", "one-channel"),
    *("other-track", "low-fps", "truncated", "short", "enlarged", "roll-only"),
)
"""All flags of records from videos; see docs/data.md."""


@dataclasses.dataclass(frozen=True)
class SoundMeasures:
    """What was measured of a record's sound; None where it cannot be measured.

    Attributes:
        sync_offset: frames by which the sound is late, see `faces.lip_sync`.
        sync_correlation: how well the sound predicts the lips there.
        sync_confidence: how much better than at other offsets.
        off_screen: share of the voice during which the lips are still.
        music: share of audible moments with music.
        overlap: share of audible moments with two voices at once.
    """

    sync_offset: int | None = None
    sync_correlation: float | None = None
    sync_confidence: float | None = None
    off_screen: float | None = None
    music: float | None = None
    overlap: float | None = None

    def row(self) -> dict[str, float | None]:
        """Returns the measures, rounded for the report."""
        values = dataclasses.asdict(self)
        return {name: value if value is None else round(value, 3) for name, value in values.items()}


def measure_sound(audio: np.ndarray, landmarks: np.ndarray, fps: float) -> SoundMeasures:
    """Measures the sound of a record.

    Args:
        audio: (samples,) int16 at 16 kHz; (0,) without sound.
        landmarks: (N, P, 2) in pixels; lips are measured if they are those of face_landmarker (P is 478).
        fps: frames per second.
    """
    if not len(audio):
        return SoundMeasures()
    sound = audio.astype(np.float32) / 32768
    content = sound_content(sound)
    measures = SoundMeasures(music=content.music, overlap=content.overlap)
    if landmarks.shape[1:2] != (POINTS,):
        return measures
    gap = np.array([lip_gap(points) for points in landmarks])
    measures = dataclasses.replace(measures, off_screen=off_screen_share(gap, sound, fps))
    if (sync := lip_sync(gap, sound, fps)) is None:
        return measures
    synced = dict(sync_offset=sync.offset, sync_correlation=sync.correlation, sync_confidence=sync.confidence)
    return dataclasses.replace(measures, **synced)


def off_screen_share(gap: np.ndarray, sound: np.ndarray, fps: float) -> float | None:
    """Returns the share of the voice during which the lips are still; None without a second of voice.

    Args:
        gap: (N,) gap between the lips, see `faces.mesh.lip_gap`.
        sound: float32 (samples,) at 16 kHz.
        fps: frames per second.
    """
    active = voice_activity(sound)
    moments = ((np.arange(len(gap)) + 0.5) / fps * SAMPLE_RATE / FRAME).astype(int)
    voiced = np.append(active, False)[np.minimum(moments, len(active))]
    length, step = round(WINDOW * fps), max(round(STEP * fps), 1)
    judged, still = np.zeros(len(gap), bool), np.zeros(len(gap), bool)
    for start in range(0, len(gap) - length + 1, step):
        frames = slice(start, start + length)
        if voiced[frames].mean() >= VOICED:
            judged[frames] = True
            still[frames] |= gap[frames].std() < STILL_LIPS
    return float(still[judged].mean()) if judged.any() else None


def sound_flags(measures: SoundMeasures, max_offset: int) -> list[str]:
    """Returns the flags of a record.

    Args:
        measures: what was measured.
        max_offset: largest offset in frames of sound that is in sync.
    """
    flags = []
    offset, correlation, confidence = measures.sync_offset, measures.sync_correlation, measures.sync_confidence
    if offset is not None and correlation is not None and confidence is not None:
        if confidence < MIN_CONFIDENCE or correlation < MIN_CORRELATION:
            flags.append("weak-sync")
        elif abs(offset) > max_offset:
            flags.append("off-sync")
    shares = {"off-screen": (measures.off_screen, OFF_SCREEN), "music": (measures.music, MUSIC)}
    shares["overlap"] = (measures.overlap, OVERLAP)
    return flags + [name for name, (share, least) in shares.items() if share is not None and share >= least]


def check_options(max_offset: int, drop: Sequence[str]) -> None:
    """Raises ValueError if an option of `emo prepare videos` is out of range."""
    if max_offset < 0:
        raise ValueError(f"--max-offset is {max_offset}; expected 0 frames or more")
    for flag in drop:
        if flag not in FLAGS:
            raise ValueError(f"--drop has {flag!r}; expected flags out of {', '.join(FLAGS)}")

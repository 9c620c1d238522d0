"""Figures of one video from its `FaceTrack`: identity, lips, eyes, head motion, seams and drift."""

from __future__ import annotations

from typing import Any

import numpy as np

from emo_jax.evaluation import lip_voice
from emo_jax.evaluation.face_track import FaceTrack
from emo_jax.faces.lip_sync import lip_sync
from emo_jax.preparation.video_records import head_motion

CLOSED_LIPS = 0.2
"""Lips count as closed below this share of the 90th percentile of their gap."""
CLOSED_EYES = 0.5
"""An eye counts as closed below this share of its median opening."""
MAX_BLINK = 0.6
"""Longest blink in seconds."""
REPEATED = 0.1
"""Mean change, of 255, up to which a frame repeats the one before it."""
DRIFT_SHARE = 5
"""Drift compares the first and the last fifth of a video."""

MEASURES = {
    "face_found": "share of frames with a face",
    "identity": "F-SIM: median SFace similarity to the portrait, or else to the first frame",
    "rank": "rank of the own portrait among all portraits, by median similarity; 1 is best",
    "sync_offset": "frames by which the sound is late",
    "sync_correlation": "Pearson's r of the lip gap predicted from the sound, at this offset",
    "sync_confidence": "this r minus the median over offsets; under 0.3 the offset means little",
    "voice_offset": "frames by which the sound is late, by the package's network of lips and voices",
    "voice_confidence": "mean cosine of lips and voice at this offset minus the median over offsets",
    "sync_c": "Sync-C: SyncNet's confidence, higher is better (--syncnet)",
    "sync_d": "Sync-D: SyncNet's distance, lower is better (--syncnet)",
    "syncnet_offset": "frames by which the sound is late, by SyncNet (--syncnet)",
    "lip_gap": "mean gap between the lips / length of the nose",
    "lips_closed": "share of frames with closed lips",
    "blinks": "blinks a minute",
    "eyes_good": "share of frames whose eyes are alike in opening and as sharp as the reference's, within half",
    "head_speed": "mean rotation of the head in degrees a frame",
    "head_range": "diversity of head motion: standard deviation of yaw, pitch and roll in degrees, root mean square",
    "repeated": "share of frames that repeat the one before",
    "seams": "change of frames at clip borders / inside clips (--clip)",
    "identity_drift": "similarity in the last fifth minus that in the first",
    "colour_drift": "distance of the face's mean colour between the last and the first fifth, CIELAB",
    "sharpness_drift": "sharpness of the face, last fifth / first fifth",
}
"""What `measure_track` measures."""


def measure_track(
    track: FaceTrack,
    sound: np.ndarray,
    fps: float,
    reference: FaceTrack | None = None,
    portraits: dict[str, np.ndarray] | None = None,
    own: str | None = None,
    clip: int = 0,
    change: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Computes the figures of a video.

    Args:
        track: its frames.
        sound: float (samples,) at 16 kHz from the first frame on; (0,) without sound.
        fps: frames per second.
        reference: the portrait that the video was made from, as a track of one frame; None: the first frame.
        portraits: embeddings (128,) of all portraits, for the rank.
        own: name of the own portrait in `portraits`.
        clip: number of frames in a clip, for seams; 0: unknown.
        change: (N,) changes between the file's own frames, as `FaceTrack.change`; None: those of the track.

    Returns:
        {name of MEASURES: figure}; None where it cannot be measured.
    """
    figures: dict[str, float | None] = dict.fromkeys(MEASURES)
    figures["face_found"] = float(track.found.mean())
    change = track.change if change is None else change
    figures["repeated"], figures["seams"] = repeated_share(change), seam_change(change, clip)
    if not track.found.any():
        return figures
    if sync := lip_sync(track.lip_gap, sound, fps):
        figures |= dict(
            sync_offset=sync.offset, sync_correlation=sync.correlation, sync_confidence=sync.confidence
        )
    if fps == lip_voice.FPS and (sync := lip_voice.lip_voice_sync(track.lip_gap, track.mouth_width, sound)):
        figures |= dict(voice_offset=sync.offset, voice_confidence=sync.confidence)
    gap = track.lip_gap[track.found]
    figures["lip_gap"] = float(gap.mean())
    figures["lips_closed"] = float((gap < CLOSED_LIPS * np.percentile(gap, 90)).mean())
    figures["blinks"] = blinks_per_minute(track.eye_opening, fps)
    sharp = np.nanmedian(track.eye_sharpness, 0) if reference is None else reference.eye_sharpness[0]
    figures["eyes_good"] = good_eyes(track.eye_opening, track.eye_sharpness, sharp)
    rotation, speed, _ = head_motion(track.rotation[track.found])
    figures["head_speed"] = float(speed.mean())
    figures["head_range"] = float(np.sqrt((rotation.std(0) ** 2).mean()))
    figures |= drift(track)
    target = track.embeddings[:1] if reference is None else reference.embeddings[:1]
    if len(target) and len(track.embeddings):
        similarity = track.embeddings @ target[0]
        figures["identity"] = float(np.median(similarity))
        figures["identity_drift"] = _last_minus_first(similarity)
    if portraits and own in portraits and len(track.embeddings):
        scores = {name: float(np.median(track.embeddings @ portrait)) for name, portrait in portraits.items()}
        figures["rank"] = 1.0 + sum(score > scores[own] for score in scores.values())
    return figures


def repeated_share(change: np.ndarray) -> float | None:
    """Returns the share of frames that repeat the one before, from the changes (N,); None for a single frame."""
    known = change[~np.isnan(change)]
    return float((known <= REPEATED).mean()) if len(known) else None


def seam_change(change: np.ndarray, clip: int) -> float | None:
    """Returns the mean change at the borders of clips of `clip` frames, relative to that inside; None if unknown."""
    if clip < 2 or len(change) <= clip:
        return None
    border = (np.arange(len(change)) % clip == 0) & ~np.isnan(change)
    inside = ~border & ~np.isnan(change)
    return float(change[border].mean() / max(change[inside].mean(), 1e-9))


def blinks_per_minute(opening: np.ndarray, fps: float) -> float:
    """Counts blinks: both eyes closed for at most MAX_BLINK seconds, and open before and after.

    Args:
        opening: (N, 2) of the eyes; NaN without a face.
        fps: frames per second.
    """
    closed = np.asarray(opening < CLOSED_EYES * np.nanmedian(opening, 0)).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], closed, [0]])))
    starts, ends = edges[::2], edges[1::2]
    short = (ends - starts <= MAX_BLINK * fps) & (starts > 0) & (ends < len(opening))
    return float(short.sum() / (len(opening) / fps) * 60)


def good_eyes(opening: np.ndarray, sharp: np.ndarray, reference: np.ndarray) -> float:
    """Returns the share of all frames in which the eyes look right.

    Both are about equally open, and at least half as sharp as the reference's unless they are closed.

    Args:
        opening: (N, 2) of the eyes; NaN without a face.
        sharp: (N, 2) sharpness of the eyes.
        reference: (2,) sharpness of the reference's eyes.
    """
    usual = np.nanmedian(opening)
    alike = np.abs(opening[:, 0] - opening[:, 1]) <= 0.5 * np.maximum(opening.max(1), usual)
    blurred = (sharp < 0.5 * reference) & (opening >= CLOSED_EYES * usual)
    return float((alike & ~blurred.any(axis=1)).mean())


def drift(track: FaceTrack) -> dict[str, float | None]:
    """Returns the drift of colour and sharpness between the first and the last fifth of the frames with a face."""
    found = track.found
    part = max(int(found.sum()) // DRIFT_SHARE, 1)
    colour, sharp = track.colour[found], track.face_sharpness[found]
    return {
        "colour_drift": float(np.linalg.norm(colour[-part:].mean(0) - colour[:part].mean(0))),
        "sharpness_drift": float(sharp[-part:].mean() / max(sharp[:part].mean(), 1e-9)),
    }


def curves(track: FaceTrack, fps: float) -> dict[str, list[Any]]:
    """Returns means per second of what may drift: similarity to the first frame, colour and sharpness of the face."""
    seconds = (np.arange(len(track)) / fps).astype(int)
    rows: dict[str, list[Any]] = {"second": [], "lightness": [], "a": [], "b": [], "sharpness": [], "similarity": []}
    for second in np.unique(seconds):
        of_second = (seconds == second) & track.found
        embedded = np.flatnonzero(seconds[track.embedded] == second) if len(track.embedded) else []
        values = track.colour[of_second].mean(0).tolist() if of_second.any() else [None] * 3
        sharp = float(track.face_sharpness[of_second].mean()) if of_second.any() else None
        similar = float((track.embeddings[embedded] @ track.embeddings[0]).mean()) if len(embedded) else None
        for name, value in zip(rows, (int(second), *values, sharp, similar), strict=True):
            rows[name].append(value)
    return rows


def _last_minus_first(values: np.ndarray) -> float:
    part = max(len(values) // DRIFT_SHARE, 1)
    return float(np.mean(values[-part:]) - np.mean(values[:part]))

"""The rows of `emo evaluate` that are measured by landmarks and SFace, if their model files are on this machine.

The probe has seen only drawn people. Landmarks and SFace were trained on photographs by others, so they judge lips,
likeness and eyes independently of it, for any model.
"""

from __future__ import annotations

import math

import numpy as np

from emo_jax.evaluation.face_track import EMBED_EVERY, FaceMeter, FaceTrack
from emo_jax.evaluation.properties import LEAD_IN, Row
from emo_jax.evaluation.sync import lip_correlation
from emo_jax.evaluation.video_measures import good_eyes
from emo_jax.progress import Progress


def face_rows(ev, frames: np.ndarray) -> list[Row]:
    """Returns the rows lip-gap, likeness and eyes, as far as they are wanted.

    Args:
        ev: the `Evaluation`.
        frames: its generated videos, uint8 (P, N, H, W, 3).

    Raises:
        ValueError: a model file is missing.
    """
    people = ev.people
    with Progress(2 * len(frames), "landmarks", "video") as progress:
        tracks, rendered = ([_track(video, progress) for video in videos] for videos in (frames, people.renders))
    references = [_track(reference[None]) for reference in people.references]
    makers = {"lip-gap": _lip_gap_row, "likeness": _likeness_row, "eyes": _eyes_row}
    return [makers[name](ev, tracks, rendered, references) for name in makers if name in ev.wanted]


def _track(video: np.ndarray, progress: Progress | None = None) -> FaceTrack:
    meter = FaceMeter()
    for image in video:
        meter.add(image)
    if progress:
        progress.add()
    return meter.track()


def _lip_gap_row(ev, tracks: list[FaceTrack], rendered: list[FaceTrack], references: list[FaceTrack]) -> Row:
    spoken = np.s_[:, round(LEAD_IN * ev.clip.fps) :]
    r = lip_correlation(_gaps(tracks)[spoken], ev.people.openings[spoken])
    drawn = lip_correlation(_gaps(rendered)[spoken], ev.people.rendered_openings[spoken])
    return Row(
        "lip-gap", "median Pearson r of lip gap (landmarks) and voice", float(np.median(r)), 0.8, aim=0.9,
        renders=float(np.median(drawn)), detail={"each": r.tolist()},
    )  # fmt: skip


def _likeness_row(ev, tracks: list[FaceTrack], rendered: list[FaceTrack], references: list[FaceTrack]) -> Row:
    portraits = {index: track.embeddings[0] for index, track in enumerate(references) if len(track.embeddings)}
    first, similarity = _retrieval(tracks, portraits)
    drawn_first, drawn_similarity = _retrieval(rendered, portraits)
    return Row(
        "likeness", "frames nearest to their reference by SFace, among all", first, 0.95, renders=drawn_first,
        detail={
            "similarity": similarity, "similarity_renders": drawn_similarity,
            "face_found": float(np.mean([track.found.mean() for track in tracks])),
            "references_found": len(portraits),
        },
    )  # fmt: skip


def _eyes_row(ev, tracks: list[FaceTrack], rendered: list[FaceTrack], references: list[FaceTrack]) -> Row:
    return Row(
        "eyes", "frames whose eyes are alike and as sharp as the reference's", _eyes(tracks, references), 0.95,
        renders=_eyes(rendered, references),
    )  # fmt: skip


def _retrieval(tracks: list[FaceTrack], portraits: dict[int, np.ndarray]) -> tuple[float, float | None]:
    """Returns the share of frames, with or without a face, nearest to their own portrait, and the median similarity."""
    names, hits, total, similar = list(portraits), 0, 0, []
    for index, track in enumerate(tracks):
        total += math.ceil(len(track) / EMBED_EVERY)
        if index not in portraits or not len(track.embeddings):
            continue
        scores = track.embeddings @ np.stack(list(portraits.values())).T
        hits += int((scores.argmax(1) == names.index(index)).sum())
        similar += scores[:, names.index(index)].tolist()
    return hits / max(total, 1), float(np.median(similar)) if similar else None


def _eyes(tracks: list[FaceTrack], references: list[FaceTrack]) -> float:
    shares = [
        good_eyes(track.eye_opening, track.eye_sharpness, reference.eye_sharpness[0]) if track.found.any() else 0.0
        for track, reference in zip(tracks, references, strict=True)
    ]
    return float(np.mean(shares))


def _gaps(tracks: list[FaceTrack]) -> np.ndarray:
    """Returns the lip gaps (P, N); frames without a face are interpolated, and a video without any is constant."""
    rows = []
    for track in tracks:
        known = np.flatnonzero(track.found)
        times = np.arange(len(track))
        rows.append(np.interp(times, known, track.lip_gap[known]) if len(known) else np.zeros(len(track)))
    return np.stack(rows)

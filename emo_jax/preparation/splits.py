"""Splits of videos by identity, and people who are in both splits nevertheless."""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from emo_jax.data.records import RecordSource, open_records
from emo_jax.faces.landmarks import find_landmarks, load_networks
from emo_jax.faces.models import has_models
from emo_jax.faces.networks import Recognizer, five_points
from emo_jax.files import write_text
from emo_jax.media.mp4 import decode_video
from emo_jax.progress import Progress

TRAIN, HELD_OUT = "train", "validation"
SAME_PERSON, SURELY_SAME = 0.5, 0.8
"""Bounds of the similarity from which on two records count as one person, see `person_threshold`."""
ALL_ALIKE = 0.66
"""If half of all pairs are at least so similar, the data set shows one person."""
FALSE_WARNINGS = 0.05
"""Expected number of pairs of different people above the threshold."""
MIN_PAIRS = 30
"""Number of pairs from which on their spread is estimated."""
VIEWS = (0.1, 0.5, 0.9)
"""Places in a record whose faces are averaged."""
MAX_TRAINED = 2000
"""Number of records that train, evenly spaced, with which held-out ones are compared."""
MATCHES_FILE = "same_people.jsonl"


def held_out_videos(names: Sequence[str], share: float, identity_from: str = "") -> set[str]:
    """Chooses the videos of a share of the people, whatever the other videos are called.

    The people with the smallest hashes are held out: at least one, and not all.

    Args:
        names: names of the videos.
        share: share of the people, at least 0 and below 1; 0: none.
        identity_from: regular expression that finds the person in a name: its first group, or all that matches. "":
            each video is of another person.

    Returns:
        The names of the videos that are held out.

    Raises:
        ValueError: a share out of range, an invalid expression, a name that it does not match, or a single person.
    """
    if not 0 <= share < 1:
        raise ValueError(f"--held-out is {share}; expected at least 0 (off) and below 1")
    if not share:
        if identity_from:
            raise ValueError("--identity-from is given without --held-out; expected both")
        return set()
    people: dict[str, list[str]] = {}
    for name in names:
        people.setdefault(_identity(name, identity_from), []).append(name)
    if len(people) < 2:
        raise ValueError(f"--held-out is {share}, but all {len(names)} videos are of one person; expected two or more")
    count = min(max(math.floor(share * len(people) + 0.5), 1), len(people) - 1)
    ranked = sorted(people, key=lambda person: hashlib.sha256(person.encode()).digest())
    return {name for person in ranked[:count] for name in people[person]}


def _identity(name: str, expression: str) -> str:
    if not expression:
        return name
    try:
        found = re.search(expression, name)
    except re.error as error:
        raise ValueError(f"--identity-from is {expression!r}, which is no regular expression ({error})") from error
    if found is None:
        raise ValueError(f"--identity-from is {expression!r}, which does not match the video {name}")
    return found[1] if found.re.groups and found[1] is not None else found[0]


def same_people(directory: pathlib.Path, face_models: str | None = None) -> list[str]:
    """Compares the faces of a dataset's splits; writes `same_people.jsonl` if a person is in both.

    Args:
        directory: the dataset.
        face_models: folder of the model files; None for the default.

    Returns:
        Warnings; none if no face is in both splits. Without model files, or without a split, nothing is compared.
    """
    if not has_models("yunet", "face_landmarker", "sface", folder=face_models):
        return ["the faces of the two splits were not compared, because model files are missing: emo models download"]
    try:
        sources = [open_records(directory, split) for split in (TRAIN, HELD_OUT)]
    except ValueError:  # all videos of a split were rejected
        return [f"{directory} has no records in one of the splits {TRAIN} and {HELD_OUT}; see rejected.jsonl"]
    chosen = [np.unique(np.linspace(0, len(s) - 1, min(len(s), MAX_TRAINED)).round().astype(int)) for s in sources]
    with Progress(sum(map(len, chosen)), "comparing faces", "record") as progress:
        trained, held_out = (
            _embed_records(source, positions, face_models, progress)
            for source, positions in zip(sources, chosen, strict=True)
        )
    if not trained or not held_out:
        return []
    similarity, threshold = compare_people(*(np.stack([e for _, e in split]) for split in (held_out, trained)))
    matches = [
        dict(held_out=held_out[k][0], trained=trained[row.argmax()][0], similarity=round(float(row.max()), 3))
        for k, row in enumerate(similarity)
        if row.max() > threshold
    ]
    if not matches:
        return []
    file = directory / MATCHES_FILE
    write_text(file, "".join(json.dumps(match, ensure_ascii=False) + "\n" for match in matches))
    first = max(matches, key=lambda match: match["similarity"])
    return [
        f"{len(matches)} held-out records may show people who also train, such as {first['held_out']} and "
        f"{first['trained']} (similarity {first['similarity']}); see {file}, and --identity-from"
    ]


def _embed_records(
    source: RecordSource, positions: np.ndarray, face_models: str | None, progress: Progress
) -> list[tuple[str, np.ndarray]]:
    """Returns the source's name and the mean embedding (128,) of each record that shows a face."""
    recognizer, networks = Recognizer(face_models), load_networks(face_models)
    found = []
    for position in positions:
        record, embeddings = source[int(position)], []
        for view in VIEWS:
            image = decode_video(record["video"], int(view * len(record["boxes"])), 1)[0]
            faces = find_landmarks(image, networks)
            if faces and faces[0].landmarks is not None:
                embeddings.append(recognizer.embed(image, five_points(faces[0].landmarks)))
        if embeddings:
            found.append((record["source"], np.mean(embeddings, 0)))
        progress.add()
    return found


def compare_people(held_out: np.ndarray, trained: np.ndarray) -> tuple[np.ndarray, float]:
    """Compares embeddings of records.

    The mean of all records is subtracted, because people who are rendered, or filmed, in one manner have much in common
    that does not belong to the person. A data set that shows one person only is compared without it.

    Args:
        held_out: (H, 128).
        trained: (T, 128).

    Returns:
        Cosines (H, T), and the threshold above which they count as one person.
    """
    raw = _cosines(held_out, trained)
    if np.median(raw) > ALL_ALIKE:
        return raw, SAME_PERSON
    centre = np.concatenate([held_out, trained]).mean(0)
    similarity = _cosines(held_out - centre, trained - centre)
    return similarity, person_threshold(similarity)


def person_threshold(similarity: np.ndarray) -> float:
    """Returns the similarity that FALSE_WARNINGS of the given pairs exceed if all show different people.

    Median and spread of the pairs are those of different people, because few pairs show one person.
    """
    if similarity.size < MIN_PAIRS:
        return SAME_PERSON
    low, median, high = np.quantile(similarity, [0.25, 0.5, 0.75])
    deviations = NormalDist().inv_cdf(1 - FALSE_WARNINGS / similarity.size)
    return float(np.clip(median + deviations * (high - low) / 1.349, SAME_PERSON, SURELY_SAME))


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9) for a in (first, second))
    return first @ second.T

"""Splits of videos by identity, and people who are in both splits nevertheless."""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from emo_jax.data.records import open_records
from emo_jax.faces.landmarks import find_landmarks, load_networks
from emo_jax.faces.models import has_models
from emo_jax.faces.networks import Recognizer, five_points
from emo_jax.files import write_text
from emo_jax.media.mp4 import decode_video
from emo_jax.progress import Progress

TRAIN, HELD_OUT = "train", "validation"
SAME_PERSON = 0.5
"""Similarity of two SFace embeddings from which on they count as one person; 0.36 is OpenCV's, for pictures."""
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
    recognizer, networks = Recognizer(face_models), load_networks(face_models)
    chosen = [np.unique(np.linspace(0, len(s) - 1, min(len(s), MAX_TRAINED)).round().astype(int)) for s in sources]
    names: list[list[str]] = [[], []]
    embeddings: list[list[np.ndarray]] = [[], []]
    with Progress(sum(map(len, chosen)), "comparing faces", "record") as progress:
        for split, (source, positions) in enumerate(zip(sources, chosen, strict=True)):
            for position in positions:
                record = source[int(position)]
                image = decode_video(record["video"], len(record["boxes"]) // 2, 1)[0]
                faces = find_landmarks(image, networks)
                if faces and faces[0].landmarks is not None:
                    names[split].append(record["source"])
                    embeddings[split].append(recognizer.embed(image, five_points(faces[0].landmarks)))
                progress.add()
    if not all(embeddings):
        return []
    similarity = np.stack(embeddings[1]) @ np.stack(embeddings[0]).T
    matches = [
        dict(held_out=names[1][k], trained=names[0][int(row.argmax())], similarity=round(float(row.max()), 3))
        for k, row in enumerate(similarity)
        if row.max() > SAME_PERSON
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

"""Shows which measure of `emo evaluate --videos` sees which fault, on rendered people.

    python -m benchmarks.metric_faults FOLDER --people 4

Renders people who talk, and copies with one fault each: the sound is late, frames are frozen, another person's face
moves in the same way, the colours drift. Prints for each fault by how much each measure differs from the video without
it, at least and at most over the people, and the spread of the measure among videos without faults. Needs the model
files of `emo models download`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np
from PIL import Image

from emo_jax.evaluation.videos import evaluate_videos
from emo_jax.media.loudness import normalise
from emo_jax.media.video_writer import VideoWriter
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render
from emo_jax.synthetic.voices import LANGUAGES, Speaker, mouth_track, synthesise
from emo_jax.synthetic.world import Track
from emo_jax.tables import format_table

FPS, RATE, SIZE = 25, 16_000, 192
LATE, FROZEN, OTHER = 8, (40, 75), 100
"""Frames by which the sound is late, the frozen frames, and the difference between the seeds of the two people."""
TINT = (1.12, 1.0, 0.8)
"""Gains of red, green and blue at the end of the video whose colours drift."""
SEEN_BY = {"sound late": "sync_offset", "frozen": "repeated", "other face": "identity", "colour drift": "colour_drift"}
"""{fault: the measure that should see it}."""
RESOLUTION = {"sync_offset": 1.0, "repeated": 0.02, "identity": 0.0, "colour_drift": 2.3}
"""Differences below these mean nothing, however small the spread is; 2.3 in CIELAB is just noticeable (Mahy 1994)."""


def write_videos(folder: pathlib.Path, seeds: list[int], frames: int = 120) -> None:
    """Writes for each seed the portrait, the video and its faulty copies, in a folder for each kind."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        sound = normalise(synthesise(rng, frames / FPS, next(iter(LANGUAGES)), Speaker.sample(rng, False)))
        mouth = mouth_track(sound, FPS, frames)
        track = Track.sample(rng, frames, FPS, mouth[:, 0])
        slow = track.rotation * 0.4  # turned far, a face is hard to recognize
        columns = [slow, track.shift, track.blink[:, None], track.brow[:, None], track.gaze, mouth]
        states = [State(*row) for row in np.concatenate(columns, axis=1).tolist()]
        own, other = (
            np.stack([render(Identity.sample(person), state, SIZE) for state in states])
            for person in (seed, seed + OTHER)
        )
        frozen = own.copy()
        frozen[slice(*FROZEN)] = own[FROZEN[0]]
        gains = 1 + np.linspace(0, 1, frames)[:, None] * (np.array(TINT) - 1)
        tinted = np.clip(own * gains[:, None, None], 0, 255).astype(np.uint8)
        late = np.concatenate([np.zeros(LATE * RATE // FPS, np.float32), sound])[: len(sound)]
        kinds = {"clean": (own, sound), "sound late": (own, late), "frozen": (frozen, sound)}
        kinds |= {"other face": (other, sound), "colour drift": (tinted, sound)}
        for kind, (video, voice) in kinds.items():
            place = folder / kind
            place.mkdir(parents=True, exist_ok=True)
            with VideoWriter(place / f"{seed}.mp4", (SIZE, SIZE), FPS, voice.astype(np.float32)) as file:
                file.write(video)
        (folder / "portraits").mkdir(exist_ok=True)
        Image.fromarray(render(Identity.sample(seed), State(), SIZE)).save(folder / "portraits" / f"{seed}.png")


def differences(folder: pathlib.Path) -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
    """Measures the videos of `write_videos`.

    Returns:
        ({measure: spread among the videos without faults}, {fault: {measure: differences (people,) to the video
        without it}}).
    """
    found = {}
    for kind in ("clean", *SEEN_BY):
        results = evaluate_videos(str(folder / kind), str(folder / f"{kind} measured"), str(folder / "portraits"))
        found[kind] = {m: np.array([result.figures[m] for result in results], float) for m in SEEN_BY.values()}
    clean = found["clean"]
    spread = {m: max(float(np.ptp(values)), RESOLUTION[m]) for m, values in clean.items()}
    return spread, {fault: {m: found[fault][m] - clean[m] for m in clean} for fault in SEEN_BY}


def failures(spread: dict[str, float], changes: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """Returns which faults are not seen in each video by their measure, or are seen in one by another measure."""
    found = []
    for fault, seen in changes.items():
        for measure, values in seen.items():
            beyond = np.abs(values) > spread[measure]
            if measure == SEEN_BY[fault] and not beyond.all():
                found.append(f"{fault} is not seen by {measure}")
            if measure != SEEN_BY[fault] and beyond.any():
                found.append(f"{fault} is seen by {measure}")
    return found


def main() -> int:
    """Prints the table; the exit status is 1 if a fault is not seen, or seen by another measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--people", type=int, default=4)
    args = parser.parse_args()
    write_videos(args.folder, list(range(1, args.people + 1)))
    spread, changes = differences(args.folder)
    measures = list(SEEN_BY.values())
    rows = [("spread without faults", *(f"{spread[m]:.3g}" for m in measures))]
    for fault, seen in changes.items():
        rows.append((fault, *(f"{seen[m].min():.3g} to {seen[m].max():.3g}" for m in measures)))
    print("\n".join([format_table(rows, ("fault", *measures), align="<>>>>"), *failures(spread, changes)]))
    return int(bool(failures(spread, changes)))


if __name__ == "__main__":
    sys.exit(main())

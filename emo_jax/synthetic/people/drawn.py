"""Drawn people who speak as the rendered ones do: the part of the mix that keeps drawings from being foreign."""

from __future__ import annotations

import cv2
import numpy as np

from emo_jax.data.records import Record
from emo_jax.media.audio import quantise
from emo_jax.media.mp4 import encode_video
from emo_jax.synthetic.people.geometry import Head
from emo_jax.synthetic.people.identity import APPEARANCE_NAMES, Person
from emo_jax.synthetic.people.visemes import articulate, mouth_weights, phone_lines, sample_frames
from emo_jax.synthetic.people.world import loudness, make_voice
from emo_jax.synthetic.world import Identity, Track, face_box, render

WIDE_OPEN = 0.42  # the lip gap at which a drawn mouth is fully open


def make_drawn_record(
    seed: int, *, seconds: float, size: int = 256, fps: float = 25, head_motion: float = 1.0
) -> Record:
    """Returns a record as `people.world.make_record` does, of a drawn person.

    Its `mouth` holds the lip gap of an average rendered person with the same phonemes. It has no landmarks, and its
    `appearance` is all zeros.
    """
    frames = round(seconds * fps)
    cv2.setNumThreads(1)
    seconds = frames / fps
    identity = Identity.sample(seed)
    voice = make_voice(np.random.default_rng([seed, 21]), seconds)
    energy = loudness(voice.sound, seconds)
    moved = sample_frames(articulate(voice.phones, seconds, energy), fps, frames)
    head = Head(Person.sample(3))
    shapes = [head.deform(mouth_weights(row)) for row in moved]
    mouth = np.array([(head.gap(shape), 0.5 + head.width(shape) - 1) for shape in shapes])
    drawn = np.column_stack([mouth[:, 0] / WIDE_OPEN, 0.5 + 3 * (mouth[:, 1] - 0.5)]).clip(0, 1)
    track = Track.sample(np.random.default_rng([seed, 22]), frames, fps, drawn[:, 0], head_motion=head_motion)
    states = [track.state(index, drawn[index]) for index in range(frames)]
    return Record(
        id=f"people-{seed:010d}",
        source=f"emo_jax.synthetic.people.drawn, voice: {voice.source}",
        licence="CC0-1.0",
        video=encode_video(np.stack([render(identity, state, size) for state in states]), fps),
        audio=quantise(voice.sound),
        fps=float(fps),
        boxes=np.stack([face_box(identity, state, size) for state in states]),
        rotation=track.rotation.astype(np.float32),
        speed=track.speed,
        mouth=mouth.clip(0, 1).astype(np.float32),
        appearance=np.zeros(len(APPEARANCE_NAMES), np.float32),
        analyzer="drawn",
        phonemes=phone_lines(voice.phones),
    )

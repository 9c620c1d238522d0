"""The procedural world: any number of drawn people who talk, with the truth about every frame.

Everything follows from integer seeds. `Track` moves the head, a voice moves the mouth and `rendering.render` draws one
frame; `make_record` makes the record of one person, `prepare_synthetic` a data set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from emo_jax.data.records import Record, write_records
from emo_jax.faces.rotation import rotation_speed
from emo_jax.media.audio import quantise
from emo_jax.media.loudness import normalise
from emo_jax.media.mp4 import encode_video
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.progress import Progress
from emo_jax.synthetic.espeak import espeak_available, espeak_passage
from emo_jax.synthetic.head import State
from emo_jax.synthetic.identities import APPEARANCE_NAMES, Identity
from emo_jax.synthetic.pauses import SHARE, add_noise, draw_pause, insert_pause
from emo_jax.synthetic.rendering import face_box, mouth_box, nose_tip, render
from emo_jax.synthetic.voices import LANGUAGES, Speaker, mouth_track, synthesise
from emo_jax.workers import map_in_order

__all__ = [
    "APPEARANCE_NAMES",
    "Identity",
    "State",
    "Track",
    "face_box",
    "make_record",
    "make_voice",
    "mouth_box",
    "nose_tip",
    "prepare_synthetic",
    "render",
]
POSE_LIMITS = np.array([30.0, 18.0, 15.0])  # yaw, pitch, roll in degrees
SLOWEST, FASTEST = 0.15, 2.5
"""Range of a record's mean head rotation speed in degrees per frame at 25 fps."""
SPLIT_SEEDS = 1 << 24
"""Number of seeds of one split. People and voices of "validation" have seeds that training never uses."""
_SHARES = np.array([1.0, 0.5, 0.38])  # relative amplitude of yaw, pitch and roll


@dataclass(frozen=True)
class Track:
    """The head motion of one person in N frames; the mouth follows the voice."""

    rotation: np.ndarray  # (N, 3) yaw, pitch, roll in degrees
    shift: np.ndarray  # (N, 2) in image heights
    blink: np.ndarray  # (N,) in [0, 1]
    brow: np.ndarray  # (N,) in [0, 1]
    gaze: np.ndarray  # (N, 2) in [-1, 1]
    speed: np.ndarray  # (N,) degrees per frame, see `rotation_speed`

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        frames: int,
        fps: float,
        opening: np.ndarray | None = None,
        follow: float = 0.0,
        head_motion: float = 1.0,
    ) -> Track:
        """Draws a track whose mean speed is log-uniform in 0.15-2.5 degrees per frame at 25 fps, times `head_motion`.

        Args:
            rng: source of randomness.
            frames: number of frames, at least 2.
            fps: frames per second.
            opening: mouth opening (N,), which raises the brows.
            follow: fraction of the head's speed that follows the voice; with 1 the head moves only while the mouth is
                open.
            head_motion: factor of the head's speed, and of how far it turns and moves, in (0, 1].

        Raises:
            ValueError: there are fewer than two frames, or `fps` is not positive.
        """
        if frames < 2 or not fps > 0:
            raise ValueError(
                f"cannot draw a track of {frames} frames at {fps} fps; give two frames or more and a positive rate"
            )
        time = np.arange(frames) / fps
        level = np.exp(rng.uniform(np.log(SLOWEST), np.log(FASTEST))) * 25 / fps
        rotation = _turns(rng, _clock(time, opening, follow), level, fps, head_motion)
        shift = 0.012 * head_motion * np.stack([_wander(rng, time, 0.12), _wander(rng, time, 0.1)], 1)
        loud = (
            np.zeros(frames)
            if opening is None
            else np.convolve(np.pad(opening, 6, mode="edge"), np.full(13, 1 / 13), "valid")
        )
        brow = np.clip(0.25 * _wander(rng, time, 0.3) + 0.5 * loud * rng.uniform(0.2, 1.2), 0, 1)
        look = np.stack([_wander(rng, time, 0.25), 0.6 * _wander(rng, time, 0.2)], 1)
        gaze = np.clip(np.round(look * 2) / 2 - rotation[:, :2] / 45, -1, 1)  # saccades; the eyes return to the camera
        kernel = np.array([0.25, 0.5, 0.25])
        gaze = np.stack([np.convolve(np.pad(column, 1, mode="edge"), kernel, "valid") for column in gaze.T], 1)
        return cls(rotation, shift, _blinks(rng, time), brow, gaze, rotation_speed(rotation))

    def __len__(self) -> int:
        return len(self.rotation)

    def state(self, frame: int, mouth: np.ndarray) -> State:
        """Returns the state of one frame; `mouth` is (opening, width)."""
        values = (
            *self.rotation[frame],
            *self.shift[frame],
            self.blink[frame],
            self.brow[frame],
            *self.gaze[frame],
            *mouth,
        )
        return State(*(float(value) for value in values))


def _wander(rng: np.random.Generator, time: np.ndarray, hertz: float) -> np.ndarray:
    """Returns a smooth band-limited random walk around 0, mostly within +-1."""
    waves = [np.sin(2 * np.pi * (hertz * rng.uniform(0.5, 1.7) * time + rng.random())) for _ in range(4)]
    return np.tanh(0.62 * np.sum(waves, 0))


def _clock(time: np.ndarray, opening: np.ndarray | None, follow: float) -> np.ndarray:
    """Returns the head's own time (N,) in seconds: faster while the mouth is open, with the same total."""
    if not follow or opening is None or not opening.any():
        return time
    pace = 1 - follow + follow * opening / opening.mean()
    return np.cumsum(pace) * time[1]


def _turns(rng: np.random.Generator, time: np.ndarray, level: float, fps: float, scale: float) -> np.ndarray:
    """Returns angles (N, 3) within POSE_LIMITS that turn by `scale` times `level` degrees per frame on average."""
    per_second = level * fps
    reach = np.clip(4.0 + 0.55 * per_second, 5, 26) * _SHARES * rng.uniform(0.75, 1.25, 3)
    reach = np.minimum(reach, POSE_LIMITS * 0.9)
    middle = rng.uniform(-1, 1, 3) * (POSE_LIMITS * 0.95 - reach) * 0.8
    rates, phases = rng.uniform(0.5, 1.7, (3, 4)), rng.random((3, 4))
    hertz = per_second / (4 * reach[0])
    for _ in range(8):  # the speed of the sum has no closed form: measure it and correct the tempo
        waves = np.sin(2 * np.pi * (hertz * rates[:, :, None] * time + phases[:, :, None])).sum(1)
        angles = middle + scale * reach * np.tanh(0.62 * waves).T
        hertz *= np.clip(scale * level / max(rotation_speed(angles).mean(), 1e-6), 0.5, 2)
        hertz = min(hertz, 2.0)  # faster than any person shakes their head
    return angles


def _blinks(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
    blink, at = np.zeros(len(time)), rng.uniform(0.3, 3)
    while at < time[-1]:
        blink = np.maximum(blink, np.clip(1.5 - np.abs(time - at) / 0.09, 0, 1))
        at += rng.uniform(2, 4)
    return blink


def make_voice(rng: np.random.Generator, seconds: float) -> tuple[np.ndarray, str]:
    """Returns a voice of normal loudness, float32 (round(seconds * 16000),), and the name of its synthesiser.

    One sixth of the voices sing, one third are espeak-ng if it is installed, the others speak by formants.
    """
    kind = rng.random()
    if kind < 1 / 3 and espeak_available():
        return normalise(espeak_passage(rng, seconds)), "espeak-ng"
    sings = kind > 5 / 6
    speaker = Speaker.sample(rng, sings)
    language = str(rng.choice(list(LANGUAGES)))
    return normalise(synthesise(rng, seconds, language, speaker)), "song" if sings else "formants"


def make_record(
    seed: int,
    *,
    seconds: float,
    size: int = 160,
    fps: float = 25,
    follow: float = 0.0,
    babble: float = 0.0,
    pauses: float = 0.0,
    head_motion: float = 1.0,
) -> Record:
    """Makes the record of one new person with a new voice.

    Equal arguments give equal records, on machines with the same espeak-ng.

    Args:
        seed: seed of person, voice and motion, >= 0.
        seconds: length; the record has round(seconds * fps) frames.
        size: side of the frames in pixels.
        fps: frames per second.
        follow: fraction of the head's speed that follows the voice, see `Track.sample`.
        babble: fraction of the sound's energy that is another speaker, whom the mouth does not follow.
        pauses: probability of a pause of more than a second, see `pauses.draw_pause`.
        head_motion: factor of the head's motion, see `Track.sample`.

    Raises:
        ValueError: the seed is negative, or there are fewer than two frames.
    """
    frames = round(seconds * fps)
    if seed < 0 or frames < 2:
        raise ValueError(
            f"cannot make a record from seed {seed} with {frames} frames; give a seed >= 0 and two frames or more"
        )
    cv2.setNumThreads(1)
    identity = Identity.sample(seed)
    seconds = round(frames / fps * SAMPLE_RATE) / SAMPLE_RATE
    rng = np.random.default_rng([seed, 2])
    sound, kind = make_voice(rng, seconds)
    pause = draw_pause(rng, sound, pauses)
    sound = sound if pause is None else insert_pause(sound, pause)
    audio = quantise(sound)
    mouth = mouth_track(audio / np.float32(32767), fps, frames)
    if pause is not None:
        sound = add_noise(sound, pause)  # the mouth does not follow it
        audio = quantise(sound)
    if babble:
        other, _ = make_voice(np.random.default_rng([seed, 3]), seconds)
        audio = quantise(np.sqrt(1 - babble) * sound + np.sqrt(babble) * other)
    track = Track.sample(np.random.default_rng([seed, 1]), frames, fps, mouth[:, 0], follow, head_motion)
    states = [track.state(index, mouth[index]) for index in range(frames)]
    return Record(
        id=f"synthetic-{seed:010d}",
        source=f"emo_jax.synthetic.world, voice: {kind}",
        licence="CC0-1.0",
        video=encode_video(np.stack([render(identity, state, size) for state in states]), fps),
        audio=audio,
        fps=float(fps),
        boxes=np.stack([face_box(identity, state, size) for state in states]),
        rotation=track.rotation.astype(np.float32),
        speed=track.speed,
        mouth=mouth,
        appearance=identity.appearance,
    )


def prepare_synthetic(
    output: str,
    *,
    records: int = 800,
    held_out: int = 32,
    seconds: float = 5.0,
    size: int = 160,
    fps: float = 25.0,
    seed: int = 0,
    follow: float = 0.0,
    babble: float = 0.0,
    head_motion: float = 1.0,
    workers: int = 2,
    make: Callable[[int], Record] | None = None,
) -> None:
    """Writes the splits "train" and "validation" of the procedural world to `output`.

    Equal arguments give equal records, for any number of workers. `make` takes a seed and makes a record of another
    world in place of `make_record`; it is pickled for the workers. See `emo prepare synthetic --help` for the others.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, least in (
        ("--records", records, 1),
        ("--held-out", held_out, 1),
        ("--workers", workers, 1),
        ("--seed", seed, 0),
    ):
        if value < least or value >= SPLIT_SEEDS:
            raise ValueError(f"{name} is {value}; give an integer from {least} to {SPLIT_SEEDS - 1}")
    if size % 2 or size < 16:
        raise ValueError(f"--size is {size}; video needs an even side of at least 16 pixels")
    if not seconds * fps >= 2:
        raise ValueError(f"--seconds {seconds} at --fps {fps} is less than two frames; make the records longer")
    for name, share in (("--follow", follow), ("--babble", babble)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; give a share from 0 to 1")
    if not 0 < head_motion <= 1:
        raise ValueError(f"--head-motion is {head_motion}; give a factor above 0 and at most 1")
    if make is None:
        options = dict(follow=follow, babble=babble, pauses=SHARE, head_motion=head_motion)
        make = functools.partial(make_record, seconds=seconds, size=size, fps=fps, **options)
    first = 2 * seed * SPLIT_SEEDS

    def split(name: str, start: int, count: int) -> Iterator[Record]:
        return _with_progress(map_in_order(make, range(start, start + count), workers), count, name)

    write_records(
        output,
        {
            "train": lambda: split("train", first, records),
            "validation": lambda: split("validation", first + SPLIT_SEEDS, held_out),
        },
        progress=False,
    )


def _with_progress(items: Iterable[Record], count: int, name: str) -> Iterator[Record]:
    """Yields the items and shows progress."""
    with Progress(count, name, "record", every=10) as progress:
        for item in items:
            yield item
            progress.add()

"""Records of rendered people who talk: `make_record` makes one from a seed, `prepare_people` a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from emo_jax.data.records import Record
from emo_jax.faces.rotation import rotation_speed
from emo_jax.media.audio import quantise
from emo_jax.media.loudness import normalise
from emo_jax.media.mp4 import encode_video
from emo_jax.media.timing import SAMPLE_RATE
from emo_jax.synthetic.pauses import add_noise, draw_pause, insert_pause
from emo_jax.synthetic.people.geometry import (
    POINT_NAMES,
    Camera,
    Head,
    face_vertices,
    head_matrix,
    neck_weight,
    point_vertices,
)
from emo_jax.synthetic.people.identity import APPEARANCE_NAMES, Person
from emo_jax.synthetic.people.looks import Look
from emo_jax.synthetic.people.renderer import Pose, Studio
from emo_jax.synthetic.people.scenes import paint_background, sample_camera, sample_light, turn_light
from emo_jax.synthetic.people.singing import laugh, sing
from emo_jax.synthetic.people.visemes import RATE, Phone, articulate, mouth_weights, phone_lines, sample_frames
from emo_jax.synthetic.people.voices import Voice, shift_phones, speak_passage
from emo_jax.synthetic.world import Track

__all__ = ["APPEARANCE_NAMES", "POINT_NAMES", "Performance", "make_record", "perform"]


@dataclass(frozen=True, eq=False)
class Performance:
    """What one person does in N frames: `poses` and the sound, float32 at 16 kHz, with its phones."""

    poses: list[Pose]
    light_turns: np.ndarray  # (N,) degrees
    sound: np.ndarray
    phones: list[Phone]
    source: str


class Scene(NamedTuple):
    """A person in front of a camera."""

    person: Person
    head: Head
    camera: Camera
    look: Look
    studio: Studio


def set_scene(seed: int, size: int) -> Scene:
    """Returns the person of a seed with light, camera and background, for pictures of size x size pixels."""
    rng = np.random.default_rng([seed, 23])
    person = Person.sample(seed)
    head = Head(person)
    light, camera = sample_light(rng, person.skin), sample_camera(rng)
    look = Look(person.look, rng, size)
    studio = Studio(head, light, camera, paint_background(rng, size), size, look.toon)
    return Scene(person, head, camera, look, studio)


def make_voice(rng: np.random.Generator, seconds: float) -> Voice:
    """Returns a voice of exactly `seconds`: seven in ten speak, two sing, one laughs between sentences.

    Some pause for more than a second, see `pauses.draw_pause`.
    """
    kind = rng.random()
    voice = sing(rng, seconds) if kind < 0.2 else laugh(rng, seconds) if kind < 0.3 else speak_passage(rng, seconds)
    count = round(seconds * SAMPLE_RATE)
    sound = np.pad(voice.sound, (0, max(count - len(voice.sound), 0)))[:count]
    sound, phones = normalise(sound.astype(np.float32)), voice.phones
    pause = draw_pause(rng, sound)
    if pause is not None:
        sound, later = add_noise(insert_pause(sound, pause), pause), pause.start / SAMPLE_RATE
        before = [p for p in phones if (p.start + p.end) / 2 < later]
        phones = before + shift_phones(phones[len(before) :], pause.length / SAMPLE_RATE)
    phones = [Phone(p.symbol, p.start, min(p.end, seconds), p.stressed) for p in phones if p.start < seconds]
    return Voice(sound, phones, voice.source)


def loudness(sound: np.ndarray, seconds: float) -> np.ndarray:
    """Returns the energy of a voice at `visemes.RATE`, 1 on average where it is heard."""
    count = round(seconds * RATE)
    step = SAMPLE_RATE // RATE
    padded = np.pad(sound.astype(np.float64) ** 2, (0, max(count * step - len(sound), 0)))[: count * step]
    power = np.sqrt(padded.reshape(count, step).mean(1))
    smooth = np.convolve(np.pad(power, 5, mode="edge"), np.hanning(13)[1:-1] / np.hanning(13).sum(), "valid")
    audible = smooth > 0.1 * np.percentile(smooth, 95) + 1e-6
    return smooth / (smooth[audible].mean() if audible.any() else 1.0)


def perform(seed: int, seconds: float, fps: float, head_motion: float = 1.0) -> Performance:
    """Returns what the person of a seed does and says in round(seconds * fps) frames; see `Track.sample`."""
    frames = round(seconds * fps)
    rng = np.random.default_rng([seed, 20])
    voice = make_voice(np.random.default_rng([seed, 21]), seconds)
    energy = loudness(voice.sound, seconds)
    moved = articulate(voice.phones, seconds, energy, effort=float(rng.uniform(0.75, 1.3)))
    mouth = sample_frames(moved, fps, frames)
    raised = np.clip(mouth[:, 0] * 1.5, 0, 1)
    track = Track.sample(np.random.default_rng([seed, 22]), frames, fps, raised, head_motion=head_motion)
    time = (np.arange(frames) + 0.5) / fps
    smile = _smile(rng, time, voice.source)
    brow = np.clip(track.brow * 0.6 + _stress(voice.phones, time, rng), 0, 1)
    wide = Person.sample(seed).look == "anime"
    lid, squint = rng.uniform(0.0, 0.13) * (not wide), rng.uniform(0, 0.2) * (not wide)
    frown, worry, jaw_side = max(rng.normal(-0.1, 0.12), 0), max(rng.normal(0.1, 0.15), 0), rng.normal(0, 0.04)
    poses = []
    for index in range(frames):
        weights = mouth_weights(mouth[index], smile[index])
        look_x, look_y = track.gaze[index] * (20, 13)
        weights |= _eyes(max(track.blink[index], lid), squint + 0.2 * smile[index], look_x, -look_y)
        weights |= {
            "eyeWideLeft": 0.4 * wide,
            "eyeWideRight": 0.4 * wide,
            "browInnerUp": 0.5 * brow[index] + worry,
            "browOuterUpLeft": 0.55 * brow[index],
            "browOuterUpRight": 0.55 * brow[index],
            "browDownLeft": frown,
            "browDownRight": frown,
            "jawLeft": max(jaw_side, 0),
            "jawRight": max(-jaw_side, 0),
        }
        shift = (*(3.6 * track.shift[index] * (1, -1)), 0.0)
        rotation = tuple(float(v) for v in track.rotation[index])
        poses.append(Pose(weights, rotation, shift, (float(look_x), float(-look_y))))  # pyright: ignore[reportArgumentType]
    turns = np.interp(time, [0, seconds], rng.uniform(-70, 70, 2)) if rng.random() < 0.2 else np.zeros(frames)
    return Performance(poses, turns, voice.sound, voice.phones, voice.source)


def _smile(rng: np.random.Generator, time: np.ndarray, source: str) -> np.ndarray:
    """Returns a smile in [0, 1] per frame: most people smile now and then."""
    level = rng.uniform(0, 0.7) * (rng.random() < 0.6)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.05, 0.25) * time + rng.random()))
    smile = level * wave
    return np.maximum(smile, 0.75) if source.startswith("laughter") else smile


def _stress(phones: list[Phone], time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns how far the brows rise with stressed phones, per frame."""
    rise = np.zeros(len(time))
    for phone in phones:
        if phone.stressed and rng.random() < 0.35:
            rise = np.maximum(rise, rng.uniform(0.2, 0.7) * np.exp(-(((time - phone.start - 0.05) / 0.16) ** 2)))
    return rise


def _eyes(blink: float, squint: float, x: float, y: float) -> dict[str, float]:
    """Returns the blend shapes of the eyelids for a blink, and a gaze in degrees to the image's right and up."""
    out, up = x / 30, y / 30
    return {
        "eyeBlinkLeft": blink,
        "eyeBlinkRight": blink,
        "eyeSquintLeft": squint,
        "eyeSquintRight": squint,
        "eyeLookOutLeft": max(out, 0),
        "eyeLookInRight": max(out, 0),
        "eyeLookInLeft": max(-out, 0),
        "eyeLookOutRight": max(-out, 0),
        "eyeLookUpLeft": max(up, 0),
        "eyeLookUpRight": max(up, 0),
        "eyeLookDownLeft": max(-up, 0),
        "eyeLookDownRight": max(-up, 0),
    }


def mouth_of(head: Head, vertices: np.ndarray) -> tuple[float, float]:
    """Returns the mouth's opening and width as `Record.mouth` has them."""
    return head.gap(vertices), 0.5 + (head.width(vertices) - 1)


def make_record(
    seed: int, *, seconds: float, size: int = 256, fps: float = 25, head_motion: float = 1.0
) -> Record:
    """Returns one shot of one person with a voice, N = round(seconds * fps) frames of size x size pixels.

    Equal arguments give equal records on machines with the same speech synthesisers and OpenGL.
    """
    frames = round(seconds * fps)
    if seed < 0 or frames < 2:
        raise ValueError(
            f"cannot make a record from seed {seed} with {frames} frames; give a seed >= 0 and two frames or more"
        )
    cv2.setNumThreads(1)
    seconds = frames / fps
    person, head, camera, look, studio = set_scene(seed, size)
    light = studio.light
    done = perform(seed, seconds, fps, head_motion)
    pictures, boxes, points, mouth = [], [], [], []
    for pose, turn in zip(done.poses, done.light_turns, strict=True):
        studio.light = turn_light(light, float(turn))
        picture, vertices = studio.render(pose)
        pictures.append(look(picture))
        places = head.turn(vertices, neck_weight(), head_matrix(np.array(pose.rotation)), np.array(pose.shift))
        pixels = camera.project(places[np.concatenate([point_vertices(), face_vertices()])], size)
        points.append(pixels[: len(POINT_NAMES)])
        face = pixels[len(POINT_NAMES) :]
        boxes.append(np.concatenate([face.min(0), face.max(0)]))
        mouth.append(mouth_of(head, vertices))
    rotation = np.array([pose.rotation for pose in done.poses], np.float32)
    return Record(
        id=f"people-{seed:010d}",
        source=f"emo_jax.synthetic.people, voice: {done.source}",
        licence="CC0-1.0",
        video=encode_video(np.stack(pictures), fps),
        audio=quantise(done.sound),
        fps=float(fps),
        boxes=np.array(boxes, np.float32),
        rotation=rotation,
        speed=rotation_speed(rotation),
        mouth=np.clip(mouth, 0, 1).astype(np.float32),
        appearance=person.appearance,
        landmarks=np.array(points, np.float32),
        phonemes=phone_lines(done.phones),
        analyzer=f"people: {len(POINT_NAMES)} points",
    )

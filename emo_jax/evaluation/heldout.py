"""Held-out people and voices of an evaluation: training never sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from emo_jax.data.records import Record, open_records
from emo_jax.data.transforms import crop, middle_window
from emo_jax.faces.boxes import mask_from_box
from emo_jax.media.mp4 import decode_video
from emo_jax.media.timing import SAMPLE_RATE, exact_fps
from emo_jax.synthetic import world as drawn
from emo_jax.synthetic.identities import Identity
from emo_jax.synthetic.rendering import render
from emo_jax.synthetic.world import Track, make_voice

FIRST_SEED = 3 << 23
"""Middle of the first block of 2**24 validation seeds of `emo prepare synthetic`."""
LONG_SEEDS = 100_000
"""Added to a person's number to get the seed of the voice of a long video."""
MASK_PAD = 0.02
"""The union of a clip's face boxes is larger than one box by about this fraction of the image on each side."""


@dataclasses.dataclass
class People:
    """P people to animate. Person p speaks with the voice of record p + 1, the last one with that of record 0.

    Attributes:
        references: portraits, uint8 (P, H, W, 3).
        others: portraits of D other people, uint8 (D, H, W, 3).
        boxes: face box (x0, y0, x1, y1) in each reference in pixels, (P, 4).
        voices: float32 (P, samples) at 16 kHz.
        openings: mouth opening that belongs to each voice, (P, N).
        widths: mouth width that belongs to each voice, (P, N).
        renders: the records' frames, in which each person speaks with their own voice, uint8 (P, N, H, W, 3).
        rendered_openings: true mouth opening in `renders`, (P, N).
        rendered_speeds: true head rotation speed in `renders` in degrees per frame, (P, N).
        seeds: seed of each person, or None for people who cannot be rendered again.
        scale: side of a view relative to the record's frame.
    """

    references: np.ndarray
    others: np.ndarray
    boxes: np.ndarray
    voices: np.ndarray
    openings: np.ndarray
    widths: np.ndarray
    renders: np.ndarray
    rendered_openings: np.ndarray
    rendered_speeds: np.ndarray
    seeds: list[int | None]
    scale: float

    def masks(self, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
        """Returns the face masks, uint8 (P, H, W, 1), moved by `shift` (x, y) as a fraction of the image."""
        height, width = self.references.shape[1:3]
        moved = self.boxes + np.tile([shift[0] * width, shift[1] * height], 2)
        return np.stack([mask_from_box(tuple(box), height, width, MASK_PAD) for box in moved])


def choose_people(
    count: int, others: int, seconds: float, clip, data, records: str | None = None, world: str = "drawn"
) -> People:
    """Returns the first `count` held-out people, and `others` further people among whom they must be recognised.

    Args:
        count: number of people to animate.
        others: number of further people.
        seconds: length of each voice.
        clip: `config.clip`, for fps and image_size.
        data: `config.data`, for the crops.
        records: directory of records whose split "validation" is used. By default people are rendered, from FIRST_SEED
            on.
        world: "drawn" or "people", which needs the extra `people`: the world of rendered people.

    Raises:
        ValueError: the records are too few, too short or silent, or have no truth about the mouth.
    """
    frames = round(seconds * clip.fps)
    if count < 2 or frames < 2:
        raise ValueError(f"{count} identities of {frames} frames; an evaluation needs two of each at least")
    scale = sum(data.crop_scale) / 2
    found = _stored(records, count, others) if records else _rendered(world, count, others, seconds, clip, scale)
    rows, distractors, size = [], [], tuple(clip.image_size)
    for number, record in enumerate(found):
        middle = len(record["boxes"]) // 2
        frame_size = decode_video(record["video"], 0, 1).shape[1:3]
        window = middle_window(frame_size, size, data, clip, record["boxes"][middle])
        picture, box = _view(record, middle, window, size)
        if number >= count:
            distractors.append(picture)
            continue
        _check(record, frames, clip.fps)
        video = crop(decode_video(record["video"], 0, frames), window, size)
        rows.append((record, picture, box, video))
    samples = round(frames / exact_fps(clip.fps) * SAMPLE_RATE)
    own = [row[0] for row in rows]
    speaks = own[1:] + own[:1]
    return People(
        references=np.stack([row[1] for row in rows]),
        others=np.stack(distractors) if distractors else np.zeros((0, *size, 3), np.uint8),
        boxes=np.stack([row[2] for row in rows]),
        voices=np.stack([r["audio"][:samples].astype(np.float32) / 32768 for r in speaks]),
        openings=np.stack([r["mouth"][:frames, 0] for r in speaks]),
        widths=np.stack([r["mouth"][:frames, 1] for r in speaks]),
        renders=np.stack([row[3] for row in rows]),
        rendered_openings=np.stack([r["mouth"][:frames, 0] for r in own]),
        rendered_speeds=np.stack([r["speed"][:frames] for r in own]),
        seeds=[None if data.get("face_crop") else _seed(r["id"]) for r in own],
        scale=scale,
    )


def long_voices(count: int, seconds: float) -> np.ndarray:
    """Returns held-out voices of `seconds` seconds, float32 (count, samples) at 16 kHz."""
    seeds = [FIRST_SEED + LONG_SEEDS + number for number in range(count)]
    return np.stack([make_voice(np.random.default_rng([seed, 2]), seconds)[0] for seed in seeds])


def rendered(people: People, person: int, at: list[int], fps: float) -> np.ndarray | None:
    """Renders a person with the voice that the evaluation gives them.

    The head moves as in the person's record (unless it follows the voice there), so that only the mouth can be compared
    with a generated video.

    Args:
        people: the people of the evaluation.
        person: index of the person.
        at: frame indices.
        fps: frames per second.

    Returns:
        uint8 (len(at), H, W, 3), or None if the person has no seed or the frames are not square.
    """
    seed, (height, width) = people.seeds[person], people.references.shape[1:3]
    if seed is None or height != width:
        return None
    opening = people.openings[person]
    identity = Identity.sample(seed)
    track = Track.sample(np.random.default_rng([seed, 1]), len(opening), fps, opening)
    mouths = np.stack([opening, people.widths[person]], 1)
    full = _record_size(height, people.scale)
    frames = np.stack([render(identity, track.state(t, mouths[t]), full) for t in at])
    edge = (full - height) // 2
    return frames[:, edge : edge + height, edge : edge + width]


def _record_size(side: int, scale: float) -> int:
    return 2 * round(side / scale / 2)


def _rendered(world: str, count: int, others: int, seconds: float, clip, scale: float) -> Iterator[dict]:
    size = _record_size(max(clip.image_size), scale)
    make_record = _maker(world)
    for number in range(count + others):
        length = seconds if number < count else 5 / clip.fps  # only one frame of the others is needed
        yield dataclasses.asdict(make_record(FIRST_SEED + number, seconds=length, size=size, fps=clip.fps))


def _maker(world: str) -> Callable[..., Record]:
    """Returns the function that makes a record of a world."""
    if world == "drawn":
        return drawn.make_record
    if world != "people":
        raise ValueError(f"the world is {world!r}; choose one of drawn, people")
    from emo_jax.synthetic.people import prepare
    from emo_jax.synthetic.people import world as people

    prepare.check_tools()
    return people.make_record


def _stored(data: str, count: int, others: int) -> Iterator[dict]:
    source = open_records(data, "validation")
    if len(source) < count:
        raise ValueError(f"{data}, split validation: {len(source)} records, expected {count}: lower --identities")
    for position in range(min(count + others, len(source))):
        yield source[position]


def _check(record: dict, frames: int, fps: float) -> None:
    if exact_fps(record["fps"]) != exact_fps(fps):
        raise ValueError(f"record {record['id']} has {record['fps']:g} fps, the model {fps:g}; leave --data out")
    if len(record["boxes"]) < frames:
        raise ValueError(f"record {record['id']} has {len(record['boxes'])} frames, expected {frames}: lower --seconds")
    if len(record["mouth"]) < frames or not len(record["audio"]):
        raise ValueError(f"record {record['id']} has no sound or no mouth track; leave --data out")


def _view(record: dict, at: int, window, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns one frame cropped to a window (top, left, height, width), and its face box in the crop."""
    top, left, height, width = window
    picture = crop(decode_video(record["video"], at, 1), window, image_size)[0]
    scale = np.array([image_size[1] / width, image_size[0] / height])
    return picture, (record["boxes"][at] - np.tile([left, top], 2)) * np.tile(scale, 2)


def _seed(name: str) -> int | None:
    kind, _, number = name.rpartition("-")
    return int(number) if kind == "synthetic" and number.isdigit() else None

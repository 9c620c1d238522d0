"""A contact sheet and a short video of records and of the clips that training draws from them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from emo_jax.data.clip_sampler import ClipSampler, make_clip_sampler
from emo_jax.data.records import open_records
from emo_jax.data.sources import select_records
from emo_jax.files import atomic_write
from emo_jax.media.mp4 import decode_video
from emo_jax.media.timing import AUDIO_MARGIN, SAMPLE_RATE, context_samples
from emo_jax.media.video_writer import VideoWriter

SHEET_FILE, CLIPS_FILE = "contact_sheet.png", "clips.mp4"
TILE, GAP, TEXT, PLOT = 112, 2, 14, 64
BOX, FACE_REGION, SOUND, SPEED, INK = (255, 60, 60), (255, 220, 0), (70, 110, 180), (210, 80, 30), (0, 0, 0)


def inspect_records(
    directory: str, folder: str, split: str, records: int, seed: int, config: ConfigDict
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the contact sheet and the video of some records of a split, spaced evenly.

    Args:
        directory: directory of the records.
        folder: folder of the results.
        split: name of the split.
        records: number of records to show.
        seed: seed of the clips.
        config: config of the training; its `clip` and `data` are used.

    Returns:
        The paths of the sheet and of the video.

    Raises:
        ValueError: if an argument is out of range, or no record is long enough for a clip.
    """
    if records < 1 or seed < 0:
        raise ValueError(f"--records is {records} and --seed {seed}; expected at least 1 and 0")
    source = open_records(directory, split)
    selected = select_records(source, config.clip)
    if not len(selected):
        raise ValueError(f"{directory}: no record is as long as a clip of {config.clip.frames} frames; see --config")
    positions = selected[np.linspace(0, len(selected) - 1, min(records, len(selected))).round().astype(int)]
    sampler = make_clip_sampler(source, config.data, config.clip)
    clips = {position: sampler(position, np.random.default_rng([seed, position])) for position in positions.tolist()}
    return write_sheet(sampler, clips, folder), write_clips(sampler, clips.values(), folder)


def write_sheet(sampler: ClipSampler, clips: dict[int, dict], folder: str | os.PathLike) -> pathlib.Path:
    """Writes `contact_sheet.png`.

    For each record the sheet shows its id, length, speed and flags; evenly spaced frames with the face box in red; the
    waveform (blue) and the head rotation speed (orange); and a clip as training draws it: the reference, the motion
    frames and the frames with the face region in yellow, and the audio and speed of the clip.

    Args:
        sampler: the sampler of the clips.
        clips: {position of the record: clip}.
        folder: folder of the file; created if necessary.

    Returns:
        The path of the sheet.
    """
    rows = [_record_row(sampler, sampler.source[position], clip) for position, clip in clips.items()]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / SHEET_FILE) as partial:
        sheet.save(partial, format="png")
    return folder / SHEET_FILE


def write_clips(sampler: ClipSampler, clips: Iterable[dict], folder: str | os.PathLike) -> pathlib.Path:
    """Writes `clips.mp4`: the clips in sequence, with their sound.

    Each frame shows the reference, the frame of the clip, and the audio and speed with a line at the current time.

    Args:
        sampler: the sampler of the clips.
        clips: the clips.
        folder: folder of the file.

    Returns:
        The path of the video.
    """
    path, clips = pathlib.Path(folder) / CLIPS_FILE, list(clips)
    per_frame = SAMPLE_RATE / sampler.fps
    first, length = AUDIO_MARGIN + round(sampler.audio_window * per_frame), round(sampler.frames * per_frame)
    sound = np.concatenate([_window_audio(sampler, clip)[first : first + length] for clip in clips])
    with VideoWriter(path, (2 * TILE + PLOT + GAP, 4 * TILE), sampler.fps, sound) as writer:
        for clip in clips:
            writer.write(np.stack(list(_clip_frames(sampler, clip))))
    return path


def _window_audio(sampler: ClipSampler, sample: dict) -> np.ndarray:
    """Returns the audio (samples,) of the time that the speeds of the sample cover, without the context."""
    context = context_samples(sampler.audio_context)
    return sample["audio"][context : len(sample["audio"]) - context]


def _clip_frames(sampler: ClipSampler, sample: dict) -> Iterator[np.ndarray]:
    """Yields the frames of the video as uint8 RGB: images above, audio and speed of the clip below."""
    side = 2 * TILE
    plot = _plot(_window_audio(sampler, sample), sample["speed"], 2 * side)
    image = Image.new("RGB", (2 * side, side + plot.height), "white")
    for k, frame in enumerate(sample["frames"]):
        for column, picture in enumerate((sample["reference"], _draw_mask_outline(frame, sample["mask"]))):
            image.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (column * side, 0))
        image.paste(plot, (0, side))
        now = (sampler.audio_window + k + 0.5) / len(sample["speed"]) * 2 * side
        ImageDraw.Draw(image).line((now, side, now, side + PLOT), fill=INK)
        yield np.array(image)


def _draw_mask_outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the image with the outline of its mask (height, width, 1)."""
    inside = mask[..., 0] > 0
    core = inside.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            core &= np.roll(inside, step, axis)
    return np.where((inside & ~core)[..., None], np.array(FACE_REGION, np.uint8), image)


def _record_row(sampler: ClipSampler, record: dict, sample: dict) -> Image.Image:
    columns = 1 + sampler.motion_frames + sampler.frames
    width = columns * (TILE + GAP)
    count, fps = len(record["boxes"]), float(record["fps"])
    start, stop = record["span"]
    origin = f"{start:.2f} to {stop:.2f} s of {record['source']}" if stop else record["source"]
    lines = [
        f"{record['id']}: {count} frames at {fps:g} per second, {origin}",
        f"{record['analyzer'] or 'rendered'}; {record['licence']}; speed {record['speed'].mean():.2f} degrees per frame"
        f"; flags: {record['flags'] or 'none'}",
    ]
    parts = [
        _text(lines, width),
        _row_of_tiles(_record_tiles(record, columns)),
        _plot(record["audio"] / 32768, record["speed"], width),
        _text([_clip_line(sampler, sample)], width),
        _row_of_tiles(_clip_tiles(sampler, sample)),
        _plot(_window_audio(sampler, sample), sample["speed"], width),
    ]
    row = Image.new("RGB", (width, sum(part.height for part in parts) + 3 * GAP), "white")
    top = 0
    for part in parts:
        row.paste(part, (0, top))
        top += part.height
    return row


def _clip_line(sampler: ClipSampler, sample: dict) -> str:
    first = "" if sample["has_motion"] else " (none: the first clip of a video)"
    return (
        f"a clip: reference | {sampler.motion_frames} motion frames{first} | {sampler.frames} frames; "
        f"audio and speed cover {sampler.audio_window} more frames on each side"
    )


def _record_tiles(record: dict, count: int) -> list[Image.Image]:
    tiles = []
    for index in np.linspace(0, len(record["boxes"]) - 1, count).round().astype(int):
        frame = decode_video(record["video"], int(index), 1)[0]
        tile = Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.BOX)
        scale = np.tile([TILE / frame.shape[1], TILE / frame.shape[0]], 2)
        draw = ImageDraw.Draw(tile)
        draw.rectangle(tuple((record["boxes"][index] * scale).tolist()), outline=BOX)
        draw.text((2, TILE - 12), str(index), fill=BOX)
        tiles.append(tile)
    return tiles


def _clip_tiles(sampler: ClipSampler, sample: dict) -> list[Image.Image]:
    rows, columns = np.nonzero(sample["mask"][..., 0])
    pictures = [sample["reference"], *sample["motion"], *sample["frames"]]
    tiles = [Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BOX) for picture in pictures]
    if len(rows):
        height, width = sample["mask"].shape[:2]
        scale = np.tile([TILE / width, TILE / height], 2)
        region = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * scale
        for tile in tiles[1 + sampler.motion_frames :]:
            ImageDraw.Draw(tile).rectangle(tuple((region - (0, 0, 1, 1)).tolist()), outline=FACE_REGION)
    return tiles


def _row_of_tiles(tiles: list[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (len(tiles) * (TILE + GAP), TILE + GAP), "white")
    for k, tile in enumerate(tiles):
        row.paste(tile, (k * (TILE + GAP), 0))
    return row


def _text(lines: list[str], width: int) -> Image.Image:
    image = Image.new("RGB", (width, TEXT * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    for k, line in enumerate(lines):
        draw.text(
            (2, k * TEXT), line.encode("latin-1", "replace").decode("latin-1"), fill=INK
        )  # the font has no other characters
    return image


def _plot(audio: np.ndarray, speed: np.ndarray, width: int) -> Image.Image:
    """Draws the waveform of audio (samples,) in [-1, 1] and the curve of speed (N,) over the same time."""
    image = Image.new("RGB", (width, PLOT + GAP), (245, 245, 245))
    draw = ImageDraw.Draw(image)
    if len(audio):
        edges = np.linspace(0, len(audio), width + 1).astype(int)
        for x, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            piece = audio[a : max(b, a + 1)]
            ends = (PLOT / 2 * (1 - piece.max()), PLOT / 2 * (1 - piece.min()))
            draw.line((x, ends[0], x, ends[1]), fill=SOUND)
    else:
        draw.text((2, 2), "no sound", fill=SOUND)
    top = max(1.0, float(speed.max()))
    xs, ys = np.linspace(0, width - 1, len(speed)), PLOT - (PLOT - 2) * speed / top
    draw.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=SPEED, width=2)
    label = f"{len(audio) / SAMPLE_RATE:.2f} s; speed up to {speed.max():.2f}, the top is {top:.2f}"
    draw.text((width - 6 * len(label), 2), label, fill=SPEED)
    return image

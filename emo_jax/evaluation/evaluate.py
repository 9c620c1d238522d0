"""One evaluation: generates videos of held-out people with held-out voices, for the measures in `properties`.

All measures are taken from the frames alone, by a small network that was trained on rendered frames (`probe`). Lips,
identity, seams and place each have a control: a generation without the part of EMO that is responsible for the
property, which must fail. The column "renders" gives the same measure on rendered videos, which is the score of a
perfect model.
"""

from __future__ import annotations

import math
import pathlib
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from emo_jax.diffusion.clips import segments
from emo_jax.evaluation.properties import (
    LONG_PEOPLE,
    MOVED_SECONDS,
    SHIFTS,
    Row,
    length_row,
    memory_row,
    place_row,
    speed_row,
    talk_rows,
)
from emo_jax.evaluation.report import table, write_report
from emo_jax.progress import Progress

FACE_PROPERTIES = ("lip-gap", "likeness", "eyes")
"""Properties that are measured by landmarks and SFace; they need the files of `emo models`."""
PROPERTIES = ("lips", "silence", "identity", "seams", "speed", "place", "length", "memory")
TALKING = {"lips", "silence", "identity", "seams", *FACE_PROPERTIES}
"""Properties that are measured on the videos in which people talk."""
STRANGERS = 64
"""Number of further people among whom a face must be recognised."""


def evaluate(
    checkpoint: str,
    output: str,
    *,
    data: str | None = None,
    world: str = "drawn",
    identities: int = 16,
    seconds: float = 4.0,
    long: float = 60.0,
    properties: list[str] | None = None,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
) -> list[Row]:
    """Evaluates a model, writes report.json and frames.png to a folder, and prints a table.

    Args:
        checkpoint: a preset, a folder of weights, or the folder of a training run.
        output: the folder to write to.
        data: records whose split validation is used; None: newly rendered people.
        world: "drawn" or "people", the world of newly rendered people.
        identities: number of people.
        seconds: length of each video.
        long: length of the long videos in seconds; 0 skips them.
        properties: some of PROPERTIES and FACE_PROPERTIES; None: see `select_properties`.
        seed: seed of the noise.
        sampling: fields of the config's `sampling` to override.

    Returns:
        One row per measure.

    Raises:
        ValueError: no such weights, an output that cannot be written, or a setting that cannot be used.
    """
    from emo_jax.cache import keep_programs
    from emo_jax.config import set_fields
    from emo_jax.distributed.processes import check_devices
    from emo_jax.evaluation.picture import save_picture, side_by_side
    from emo_jax.generation.options import check_sampling
    from emo_jax.synthetic.espeak import espeak_available
    from emo_jax.weights.store import load_model

    started, folder, sampling = time.monotonic(), pathlib.Path(output), sampling or {}
    properties = properties or select_properties(long=long)
    check_lengths(identities, seconds, long, "--")
    keep_programs()
    check_devices()
    emo, params = load_model(checkpoint)
    config = ConfigDict(emo.config)  # a copy that is not frozen
    set_fields(config.sampling, sampling, "sampling")
    check_sampling(config.sampling, config.diffusion.train_steps)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output} cannot be created ({error.strerror}); choose another folder") from error
    options = dict(seed=seed, long=long, wanted=properties)
    evaluation = new_evaluation(config, params, identities, seconds, STRANGERS, data, world, **options)
    rows, frames = measured_rows(evaluation)
    people = evaluation.people
    if frames is not None:
        save_picture(folder / "frames.png", side_by_side(people, frames, config.clip.fps))
    if "memory" in evaluation.wanted:
        rows.append(memory_row(checkpoint, people.references[0], long or 60.0, sampling.get("steps")))
    settings = dict(
        checkpoint=checkpoint,
        output=output,
        data=data,
        world=world,
        identities=identities,
        seconds=seconds,
        long=long,
        properties=properties,
        seed=seed,
        sampling=config.sampling.to_dict(),
        seconds_taken=time.monotonic() - started,
        espeak=espeak_available(),
    )
    write_report(folder / "report.json", rows, settings)
    print(table(rows))
    print(f"{folder}/report.json; {(time.monotonic() - started) / 60:.1f} min")
    return rows


def check_lengths(identities: int, seconds: float, long: float, prefix: str) -> None:
    """Checks the number of people and the lengths of their videos.

    Args:
        identities: number of people.
        seconds: length of each video.
        long: length of the long videos in seconds; 0 for none.
        prefix: what precedes these names where the user sets them.

    Raises:
        ValueError: there are fewer than two people, or a length is not positive.
    """
    if identities < 2 or not seconds > 0 or not long >= 0:
        raise ValueError(
            f"{prefix}identities is {identities}, {prefix}seconds {seconds:g} and {prefix}long {long:g}; "
            "expected at least two people and positive lengths"
        )


def new_evaluation(
    config: ConfigDict,
    params: Any,
    identities: int,
    seconds: float,
    strangers: int,
    data: str | None = None,
    world: str = "drawn",
    **options: Any,
) -> Evaluation:
    """Chooses held-out people and returns their evaluation.

    Args:
        config: config of the weights, with the `sampling` fields to use.
        params: params tree of the weights.
        identities: number of people to animate.
        seconds: length of each video.
        strangers: number of further people among whom a face must be recognised.
        data: records whose split validation is used; None: newly rendered people.
        world: "drawn" or "people", the world of newly rendered people.
        **options: seed, long and wanted, as `Evaluation` takes them.
    """
    from emo_jax.evaluation.heldout import choose_people
    from emo_jax.evaluation.probe import load_probe

    people = choose_people(identities, strangers, seconds, config.clip, config.data, data, world)
    return Evaluation(config, params, people, load_probe(), **options)


def measured_rows(evaluation: Evaluation) -> tuple[list[Row], np.ndarray | None]:
    """Returns the rows of an evaluation's wanted properties, without "memory", and the frames of the talking people."""
    rows, frames = [], None
    if evaluation.wanted & TALKING:
        rows, frames = talk_rows(evaluation)
        if evaluation.wanted & set(FACE_PROPERTIES):
            from emo_jax.evaluation.face_rows import face_rows

            rows += face_rows(evaluation, frames)
    for name, measure in (("speed", speed_row), ("place", place_row), ("length", length_row)):
        if name in evaluation.wanted:
            rows.append(measure(evaluation))
    evaluation.progress.close()
    return rows, frames


def select_properties(only: list[str] | None = None, memory: bool = False, long: float = 60.0) -> list[str]:
    """Returns the properties to measure.

    Args:
        only: the properties asked for; None: all but "memory", and those of FACE_PROPERTIES if their models are here.
        memory: whether to add "memory".
        long: length of the long videos in seconds; 0 leaves out "length".

    Raises:
        ValueError: an unknown property.
    """
    from emo_jax.faces.models import MODELS, has_models

    known = (*PROPERTIES, *FACE_PROPERTIES)
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        raise ValueError(f"unknown property {unknown[0]!r}; expected some of {', '.join(known)}")
    faces = FACE_PROPERTIES if has_models(*(model.name for model in MODELS)) else ()
    names = only or [*(name for name in PROPERTIES if name != "memory" or memory), *faces]
    return [name for name in names if name != "length" or long]


class Evaluation:
    """Networks, people and compiled samplers of one evaluation.

    Args:
        config: config of the weights, with the `sampling` fields to use.
        params: params tree of the weights.
        people: the people to animate, from `heldout.choose_people`.
        probe: the measuring network's params, from `probe.load_probe`.
        seed: seed of the noise.
        long: length of the long videos in seconds; 0 skips them.
        wanted: the properties to measure, a subset of PROPERTIES.
    """

    def __init__(self, config, params, people, probe, *, seed: int = 0, long: float = 60, wanted=PROPERTIES):
        from emo_jax.models.emo import build

        self.config, self.people, self.probe = config, people, probe
        self.seed, self.long = seed, long
        self.emo, self.samplers = build(config), {}
        self.clip = config.clip
        self.use(params, wanted)

    def use(self, params, wanted) -> None:
        """Sets the weights and the wanted properties of the next rows; compiled programs are kept."""
        self.params, self.wanted = params, set(wanted)
        for sampler in self.samplers.values():
            sampler.params = params
        self.progress = Progress(self._segments(), "evaluate", "segment", every=10)

    def _segments(self) -> int:
        """Returns the number of segments to generate, for the progress bar; segments of fewer people count less."""
        wanted, talk = self.wanted, len(self._clips_of(self.people.openings.shape[1]))
        runs = bool(wanted & TALKING) + len(wanted & {"lips", "identity", "seams"})
        moved = len(self._clips_of(math.ceil(MOVED_SECONDS * self.clip.fps)))
        total = talk * runs + moved * (3 * ("speed" in wanted) + 2 * len(SHIFTS) * ("place" in wanted))
        people = len(self.people.references)
        share = min(LONG_PEOPLE, people) / people
        long = len(self._clips_of(math.ceil(self.long * self.clip.fps))) if "length" in wanted else 0
        return math.ceil(total + share * long)

    def _clips_of(self, frames: int) -> list[int]:
        return segments(frames, self.clip.frames, self.config.sampling.clips, 1)

    def generate(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """Returns videos of the people, uint8 (P, N, H, W, 3).

        Args:
            what: label for the progress bar.
            off: parts of EMO to switch off, see `VideoSampler`.
            voices: float32 (P, samples) at 16 kHz in place of the people's voices.
            masks: uint8 (P, H, W, 1) in place of the people's face masks.
            speed: head rotation speed in degrees per frame in place of the config's.
            people: generate only the first so many people.
        """
        options = dict(off=off, voices=voices, masks=masks, speed=speed, people=people)
        return np.concatenate(list(self.stream(what, **options)), 1)

    def stream(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """Yields the videos of `generate` segment by segment.

        All runs with the same parts switched off share one sampler, and so one compiled program.
        """
        import jax

        from emo_jax.generation.window_sampler import make_sampler

        if off not in self.samplers:
            self.samplers[off] = make_sampler(self.emo, self.params, self.config.sampling, off=off)
        masks = self.people.masks() if masks is None else masks
        voices = self.people.voices if voices is None else voices
        arrays = [a[:people] for a in (self.people.references, masks, voices)]
        for frames in self.samplers[off].stream(*arrays, speed=speed, key=jax.random.key(self.seed)):
            yield frames
            self.progress.add(len(frames) / len(self.people.references), what)

    def measure(self, frames) -> dict:
        """Returns `probe.measure` of frames uint8 (..., H, W, 3) of any size."""
        import cv2

        from emo_jax.evaluation import probe

        if frames.shape[-3:-1] != (probe.SIZE, probe.SIZE):
            flat = frames.reshape(-1, *frames.shape[-3:])
            small = [cv2.resize(f, (probe.SIZE, probe.SIZE), interpolation=cv2.INTER_AREA) for f in flat]
            frames = np.stack(small).reshape(*frames.shape[:-3], probe.SIZE, probe.SIZE, 3)
        return probe.measure(self.probe, frames)

    def short(self, seconds: float) -> np.ndarray:
        """Returns the voices cut to `seconds`, repeated where they are shorter, float32 (P, samples)."""
        from emo_jax.media.timing import SAMPLE_RATE

        wanted = round(seconds * SAMPLE_RATE)
        return np.tile(self.people.voices, (1, math.ceil(wanted / self.people.voices.shape[1])))[:, :wanted]

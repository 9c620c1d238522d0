"""`emo evaluate`: generates videos of held-out people with held-out voices, and measures them.

emo evaluate --checkpoint tiny --output out/evaluation

All measures are taken from the frames alone, by a small network that was trained on rendered frames (metrics/probe.py).
Lips, identity, seams and place have a control, a generation without the part that should bring it about, which must
fail. The column "renders" tells what the same measure gives for rendered videos: what a perfect model would score.
"""

from __future__ import annotations

import json
import math
import pathlib
import time

import numpy as np

from emo_jax.files import write_text
from emo_jax.metrics.properties import (
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
from emo_jax.progress import Progress

PROPERTIES = ("lips", "silence", "identity", "seams", "speed", "place", "length", "memory")
STRANGERS = 64  # more people to tell a face apart from


class Evaluation:
    """One evaluation: networks, people, and the videos made so far.

    Args:
        config: of the weights, with `sampling` as it is to be used. params: their params tree.
        people: metrics.heldout.People. probe: of metrics.probe.load_probe. seed: of the noise.
        long: seconds of the long videos; 0 for none. wanted: some of PROPERTIES.
    """

    def __init__(self, config, params, people, probe, *, seed: int = 0, long: float = 60, wanted=PROPERTIES):
        from emo_jax.models.emo import build

        self.config, self.params, self.people, self.probe = config, params, people, probe
        self.seed, self.long, self.wanted = seed, long, set(wanted)
        self.emo, self.samplers = build(config), {}
        self.clip = config.clip
        self.segment = config.sampling.clips * config.clip.frames
        self.progress = Progress(self._segments(), "evaluate", "segment", every=10)

    def _segments(self) -> int:
        """Segments of all people to be generated, for the progress: those of a few people count less."""
        wanted, talk = self.wanted, math.ceil(self.people.openings.shape[1] / self.segment)
        runs = bool(wanted & {"lips", "silence", "identity", "seams"}) + len(wanted & {"lips", "identity", "seams"})
        moved = math.ceil(MOVED_SECONDS * self.clip.fps / self.segment)
        total = talk * runs + moved * (3 * ("speed" in wanted) + 2 * len(SHIFTS) * ("place" in wanted))
        people = len(self.people.references)
        share = min(LONG_PEOPLE, people) / people
        return math.ceil(total + share * self.long * self.clip.fps / self.segment * ("length" in wanted))

    def generate(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """Videos uint8 (P, N, H, W, 3) of the (first) people; voices and masks default to theirs."""
        options = dict(off=off, voices=voices, masks=masks, speed=speed, people=people)
        return np.concatenate(list(self.stream(what, **options)), 1)

    def stream(self, what: str, *, off=(), voices=None, masks=None, speed=None, people: int | None = None):
        """The same, segment by segment. One sampler serves all runs with the same parts off, one program all of P."""
        import jax

        from emo_jax.sampling import VideoSampler

        if off not in self.samplers:
            self.samplers[off] = VideoSampler(self.emo, self.params, self.config.sampling, off=off)
        masks = self.people.masks() if masks is None else masks
        voices = self.people.voices if voices is None else voices
        arrays = [a[:people] for a in (self.people.references, masks, voices)]
        for frames in self.samplers[off].stream(*arrays, speed=speed, key=jax.random.key(self.seed)):
            yield frames
            self.progress.add(len(frames) / len(self.people.references), what)

    def measure(self, frames) -> dict:
        """`metrics.probe.measure` of frames of any size."""
        import cv2

        from emo_jax.metrics import probe

        if frames.shape[-3:-1] != (probe.SIZE, probe.SIZE):
            flat = frames.reshape(-1, *frames.shape[-3:])
            small = [cv2.resize(f, (probe.SIZE, probe.SIZE), interpolation=cv2.INTER_AREA) for f in flat]
            frames = np.stack(small).reshape(*frames.shape[:-3], probe.SIZE, probe.SIZE, 3)
        return probe.measure(self.probe, frames)

    def short(self, seconds: float) -> np.ndarray:
        """The voices, cut to so many seconds (repeated where they are shorter)."""
        from emo_jax.data.audio import SAMPLE_RATE

        wanted = round(seconds * SAMPLE_RATE)
        return np.tile(self.people.voices, (1, math.ceil(wanted / self.people.voices.shape[1])))[:, :wanted]


# ---- the command


def add_parser(subparsers) -> None:
    """Adds the verb `evaluate` to the command line."""
    parser = subparsers.add_parser("evaluate", help="measure a model on held-out people", description=__doc__)
    parser.add_argument("--checkpoint", default="tiny", help="preset, folder of emo export, or run of emo train")
    parser.add_argument("--data", help="records whose split validation is used (default: people drawn on the spot)")
    parser.add_argument("--output", required=True, help="folder for report.json and frames.png")
    parser.add_argument("--identities", type=int, default=16, help="people (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each video (default %(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--sampling", nargs="+", metavar="FIELD=VALUE", default=[], help="of the config's `sampling`")
    parser.add_argument("--long", type=float, default=60.0, help="seconds of the long videos; 0: none")
    parser.add_argument("--memory", action="store_true", help="also measure the memory of emo generate")
    parser.add_argument("--only", nargs="+", metavar="PROPERTY", help=f"some of {', '.join(PROPERTIES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    parser.set_defaults(main=main)


def main(args) -> None:
    """Runs `emo evaluate`. Whether the bars are reached is told by the table, not by the exit status."""
    from emo_jax.cache import keep_programs
    from emo_jax.data.espeak import espeak_available
    from emo_jax.metrics.heldout import choose_people
    from emo_jax.metrics.picture import save_picture, side_by_side
    from emo_jax.metrics.probe import load_probe
    from emo_jax.sampling import check_sampling
    from emo_jax.training.processes import check_devices
    from emo_jax.weights.store import load_model

    started, wanted = time.monotonic(), wanted_properties(args)
    output = pathlib.Path(args.output)
    keep_programs()
    check_devices()
    emo, params = load_model(args.checkpoint)
    config, probe = emo.config, load_probe()
    if args.steps is not None:
        config.sampling.steps = args.steps
    set_sampling(config.sampling, args.sampling)
    check_sampling(config.sampling, config.diffusion.train_steps)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output} cannot be made ({error.strerror}); choose another folder") from error
    scale = sum(config.data.crop_scale) / 2
    people = choose_people(args.identities, STRANGERS, args.seconds, config.clip, scale, args.data)
    ev = Evaluation(config, params, people, probe, seed=args.seed, long=args.long, wanted=wanted)
    rows, frames = [], None
    if ev.wanted & {"lips", "silence", "identity", "seams"}:
        rows, frames = talk_rows(ev)
        save_picture(output / "frames.png", side_by_side(people, frames, config.clip.fps))
    for name, make in (("speed", speed_row), ("place", place_row), ("length", length_row)):
        if name in ev.wanted:
            rows.append(make(ev))
    ev.progress.close()
    if "memory" in ev.wanted:
        rows.append(memory_row(args.checkpoint, people.references[0], args.long or 60.0, args.steps))
    settings = {k: v for k, v in vars(args).items() if k not in ("main", "verb")}
    took = time.monotonic() - started
    settings |= {"sampling": config.sampling.to_dict(), "seconds_taken": took, "espeak": espeak_available()}
    write_report(output / "report.json", rows, settings)
    print(table(rows))
    print(f"{output}/report.json; {took / 60:.1f} min")


def set_sampling(config, changes: list[str]) -> None:
    """Sets fields of the `sampling` config by texts such as 'steps=8'. Raises ValueError for what it does not take."""
    for change in changes:
        field, _, value = change.partition("=")
        if field not in config or not value:
            raise ValueError(f"--sampling got {change!r}; expected FIELD=VALUE with one of {', '.join(config)}")
        kind = type(config[field])
        try:
            config[field] = kind(value)
        except ValueError:
            raise ValueError(f"--sampling got {change!r}; {field} is of type {kind.__name__}") from None


def wanted_properties(args) -> list[str]:
    """What is to be measured. Raises ValueError for unknown names and numbers that make no sense."""
    unknown = sorted(set(args.only or ()) - set(PROPERTIES))
    if unknown:
        raise ValueError(f"--only names {unknown[0]!r}; expected some of {', '.join(PROPERTIES)}")
    if args.identities < 2 or not args.seconds > 0 or not args.long >= 0:
        raise ValueError(
            f"--identities {args.identities}, --seconds {args.seconds:g}, --long {args.long:g}; "
            "expected two people or more and positive lengths"
        )
    names = args.only or [p for p in PROPERTIES if p != "memory" or args.memory]
    return [name for name in names if name != "length" or args.long]


def write_report(path, rows: list[Row], settings: dict) -> None:
    """report.json: the settings, and each row with what it is made of."""
    write_text(path, json.dumps({"settings": settings, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    """The rows as text."""
    head = ("property", "measure", "value", "bar", "", "renders", "control", "value", "bar", "")
    lines = [head]
    for row in rows:
        sign, held = ("<=" if row.below else ">="), row.control_failed
        lines.append((
            row.property, row.measure, _number(row.value), f"{sign} {row.bar:g}", "pass" if row.passed else "FAIL",
            _number(row.renders), row.control, _number(row.control_value),
            "" if row.control_bar is None else f"{'>' if row.below else '<='} {row.control_bar:.2g}",
            "" if held is None else ("fails, as it must" if held else "DOES NOT FAIL"),
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

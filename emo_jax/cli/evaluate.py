"""`emo evaluate`: generates videos of held-out people with held-out voices, and measures them.

emo evaluate --checkpoint tiny --output out/evaluation

All measures are taken from the frames alone, by a small network that was trained on rendered frames (metrics/probe.py).
Lips, identity, seams and place have a control, a generation without the part that should bring it about, which must
fail. The column "renders" tells what the same measure gives for rendered videos: what a perfect model would score.
"""

from __future__ import annotations

import pathlib
import time

from emo_jax.evaluation.evaluate import PROPERTIES, STRANGERS, Evaluation
from emo_jax.evaluation.properties import (
    length_row,
    memory_row,
    place_row,
    speed_row,
    talk_rows,
)
from emo_jax.evaluation.report import table, write_report


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
    from emo_jax.distributed.processes import check_devices
    from emo_jax.evaluation.heldout import choose_people
    from emo_jax.evaluation.picture import save_picture, side_by_side
    from emo_jax.evaluation.probe import load_probe
    from emo_jax.generation.sampler import check_sampling
    from emo_jax.synthetic.espeak import espeak_available
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

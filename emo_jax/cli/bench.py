"""Measures a part of emo_jax on this machine.

The config of pipeline, denoise and step is given by --config NAME_OR_FILE[:STAGE] and --config.key=value. Fields of the
sampling of generate are set by --sampling.field=value, and those of the model that it is compared with by
--against.field=value.

Examples:
  emo bench generate                        # seconds of a step, a clip, a video, with the bundled weights
  emo bench generate --against.steps=1      # the same weights with 4 steps (A) and with 1 (B), in turn
  emo bench pipeline                        # clips per CPU second that the input pipeline makes
  emo bench pipeline --data data/mine       # the same from your records or latents
  emo bench attention                       # accuracy and speed of attention, against float32
  emo bench denoise --config base:speed     # one guided denoising step, against its plan
  emo bench step --config base:video        # one training step, against its plan (some 60 GB at full size)
  emo bench fuzz --seconds 600 --seed 1     # damaged inputs of every kind; status 1 if one ends in more than one line
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from emo_jax.cli.arguments import add_output, add_verb, add_weights, weights


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `bench` to the command line."""
    parser = add_verb(subparsers, "bench", __doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    _add_generate(names)
    pipeline = names.add_parser("pipeline", help="clips per CPU second of the input pipeline")
    pipeline.add_argument("--data", metavar="DIR", help="records or latents (default: four rendered people)")
    pipeline.add_argument("--batches", type=int, default=40, help="measured batches of 4 (default %(default)s)")
    pipeline.set_defaults(main=main, takes_config=True, default_config="base:video", stage="video")
    attention = names.add_parser("attention", help="attention of the first levels at 512x512, forward and backward")
    attention.add_argument("--rounds", type=int, default=10, help="timed calls (default %(default)s)")
    attention.set_defaults(main=main)
    for name, stage, text in (
        ("denoise", "speed", "one guided denoising step of `emo generate`"),
        ("step", "video", "one training step with a single clip"),
    ):
        program = names.add_parser(name, help=f"{text}, on random weights, against its plan")
        program.add_argument("--rounds", type=int, default=20, help="timed calls (default %(default)s)")
        program.set_defaults(main=main, takes_config=True, default_config=f"base:{stage}", stage=stage)
    fuzz = names.add_parser("fuzz", help="damaged pictures, sounds, videos, weights, configs and records")
    fuzz.add_argument("--seconds", type=float, default=60.0, help="time for reading them (default %(default)g)")
    fuzz.add_argument("--seed", type=int, default=0, help="of the changes (default %(default)s)")
    fuzz.add_argument("--mutant", type=int, metavar="N", help="read only input N of the seed's sequence")
    fuzz.add_argument("--kind", action="append", help="read only inputs of this kind; may be repeated")
    fuzz.add_argument(
        "--keep", default="out/fuzz", metavar="DIR", help="folder for inputs that fail (default %(default)s)"
    )
    fuzz.set_defaults(main=main)
    for benchmark in names.choices.values():
        add_output(benchmark, "JSON file for the result, besides the printed table")


def _add_generate(names: argparse._SubParsersAction) -> None:
    generate = names.add_parser("generate", help="a video with the bundled portrait and voice, by part")
    add_weights(generate, seed=False)
    generate.add_argument("--against", metavar="DIR", help="weights to compare with, in turn (A B A B)")
    generate.add_argument("--seconds", type=float, default=2.0, help="length of the video (default %(default)g)")
    generate.add_argument("--rounds", type=int, default=3, help="measured videos of each model (default %(default)s)")
    generate.add_argument("--check", metavar="FILE", help="JSON of an earlier run to compare with")
    generate.set_defaults(main=main_generate, takes_more=True)


def main_generate(args: argparse.Namespace, rest: list[str]) -> int:
    """Runs `emo bench generate`; returns the exit status.

    Raises:
        ValueError: an option or weights that cannot be used.
    """
    from emo_jax import config as config_lib

    _check_counts(args)
    if not 0.1 <= args.seconds <= 600:
        raise ValueError(f"--seconds is {args.seconds}; expected 0.1 to 600")
    earlier = _read_rows(args.check) if args.check else None
    other = [text for text in rest if text.startswith("--against.")]
    fields = config_lib.parse_fields([text for text in rest if text not in other], "sampling")
    other_fields = config_lib.parse_fields(other, "against")
    from emo_jax.benchmarks import generate

    models = [generate.Model(weights(args), fields)]
    if args.against or other_fields:
        models.append(generate.Model(args.against or weights(args), other_fields))
    rows = generate.measure(models, args.seconds, args.rounds)
    _report(args, rows if earlier is None else generate.compare(rows, earlier))
    return 0


def _read_rows(path: str) -> list[dict]:
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--check {path} cannot be read ({error}); give a file of emo bench generate -o") from error
    if not isinstance(table, dict) or table.get("benchmark") != "generate":
        raise ValueError(f"--check {path} is not a table of emo bench generate; give a file of its option -o")
    return table["rows"]


def main(args: argparse.Namespace, config: Any = None) -> int:
    """Runs `emo bench`: prints a table and writes JSON if asked to.

    Returns:
        The exit status: 1 if an input of `emo bench fuzz` has failed.

    Raises:
        ValueError: a number or a kind is out of range.
    """
    _check_counts(args)
    if config is None and hasattr(args, "stage"):
        from emo_jax.configs.base import get_config

        config = get_config(args.stage)
    rows = measure(args, config)
    _report(args, rows)
    return int(any(row.get("failed", 0) for row in rows))


def _check_counts(args: argparse.Namespace) -> None:
    for option in ("rounds", "batches"):
        if getattr(args, option, 1) < 1:
            raise ValueError(f"--{option} is {getattr(args, option)}; expected at least 1")


def _report(args: argparse.Namespace, rows: list[dict]) -> None:
    """Prints the rows, and writes them if the command line names a file."""
    from emo_jax.files import write_text
    from emo_jax.tables import format_table

    names = list(rows[0])
    cells = [[_format(row[name]) for name in names] for row in rows]
    print(format_table(cells, names, align="<" + ">" * (len(names) - 1)))
    if args.output:
        import jax

        device = dict(device=jax.devices()[0].device_kind, jax=jax.__version__)
        write_text(args.output, json.dumps(dict(benchmark=args.name, **device, rows=rows), indent=1) + "\n")


def measure(args: argparse.Namespace, config: Any) -> list[dict]:
    """Runs the benchmark that the command line names and returns its rows."""
    if args.name == "fuzz":
        return _fuzz(args)
    from emo_jax.cache import keep_programs
    from emo_jax.distributed.processes import check_devices

    keep_programs()
    check_devices()
    if args.name == "pipeline":
        from emo_jax.benchmarks import pipeline

        return pipeline.measure(config, args.data, args.batches)
    if args.name == "attention":
        from emo_jax.benchmarks import attention

        return attention.measure(args.rounds)
    from emo_jax.benchmarks import program

    return program.measure(config, args.name, args.rounds)


def _fuzz(args: argparse.Namespace) -> list[dict]:
    import pathlib

    from emo_jax.benchmarks import fuzz

    kinds = tuple(args.kind or fuzz.KINDS)
    unknown = [kind for kind in kinds if kind not in fuzz.KINDS]
    if unknown:
        raise ValueError(f"--kind is {unknown[0]!r}; expected one of {', '.join(fuzz.KINDS)}")
    for option, low in (("seconds", 1), ("seed", 0), ("mutant", 0)):
        value = getattr(args, option)
        if value is not None and value < low:
            raise ValueError(f"--{option} is {value}; expected at least {low}")
    return fuzz.run(args.seconds, args.seed, pathlib.Path(args.keep), kinds, args.mutant)


def _format(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

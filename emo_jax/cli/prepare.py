"""Makes records to train on, inspects them, and encodes them to latents.

Example:
  emo prepare synthetic --records 8 --held-out 2 --seconds 2 -o data/synthetic
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from typing import TYPE_CHECKING

from emo_jax.cli.arguments import add_output, add_verb
from emo_jax.files import write_text
from emo_jax.preparation.prepare import prepare_images, prepare_videos
from emo_jax.synthetic.world import prepare_synthetic

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_CONFIG_EPILOG = "Also takes --config NAME_OR_FILE[:STAGE] (default: base:video) and --config.key=value."


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `prepare` to the command line."""
    parser = add_verb(subparsers, "prepare", __doc__)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    synthetic = sources.add_parser("synthetic", help="render talking people, with exact labels")
    add_output(synthetic, "output directory; must not exist, or be empty", required=True)
    synthetic.add_argument(
        "--world",
        default="drawn",
        choices=("drawn", "people", "mix"),
        help="drawn heads, rendered people (extra: people), or both (default %(default)s)",
    )
    synthetic.add_argument(
        "--records", type=int, default=800, help="records of the split train, one person each (default %(default)s)"
    )
    synthetic.add_argument(
        "--held-out",
        type=int,
        default=32,
        help="records of the split validation, with other people (default %(default)s)",
    )
    synthetic.add_argument(
        "--seconds", type=float, default=5.0, help="length of a record in seconds (default %(default)s)"
    )
    synthetic.add_argument(
        "--size", type=int, help="side of the frames in pixels, even (default 160 if drawn, otherwise 256)"
    )
    synthetic.add_argument("--fps", type=float, default=25.0, help="frames per second (default %(default)s)")
    synthetic.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
    synthetic.add_argument(
        "--follow",
        type=float,
        default=0.0,
        help="share of the head speed that follows the voice, 0 to 1 (default %(default)s)",
    )
    synthetic.add_argument(
        "--babble",
        type=float,
        default=0.0,
        help="share of the audio energy that is another voice, 0 to 1 (default %(default)s)",
    )
    synthetic.add_argument(
        "--head-motion",
        type=float,
        default=1.0,
        help="factor of how far and how fast the heads move, above 0 and at most 1 (default %(default)s)",
    )
    synthetic.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="number of processes; does not change the records (default %(default)s)",
    )
    synthetic.set_defaults(main=_main_synthetic)
    _add_videos(sources)
    _add_images(sources)
    _add_inspect(sources)
    _add_stats(sources)
    _add_latents(sources)


def _aspect(text: str) -> float:
    """Returns width / height of a text such as 9:16."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or 0 in map(int, match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTH:HEIGHT, such as 9:16")
    return int(match[1]) / int(match[2])


def _add_videos(sources: argparse._SubParsersAction) -> None:
    videos = sources.add_parser("videos", help="crop talking heads from videos")
    videos.add_argument(
        "--input", required=True, nargs="+", metavar="GLOB", help="files, folders, or patterns such as 'in/**/*.mp4'"
    )
    add_output(videos, "output directory; an interrupted run resumes", required=True)
    videos.add_argument(
        "--size", type=int, default=512, help="shorter side of the frames in pixels, even (default %(default)s)"
    )
    videos.add_argument(
        "--aspect", type=_aspect, default=1.0, metavar="W:H",
        help="width and height of the frames, such as 9:16 (default: 1:1); see data.buckets of emo train",
    )  # fmt: skip
    videos.add_argument(
        "--seconds", type=float, default=10.0, help="approximate length of a record in seconds (default %(default)s)"
    )
    videos.add_argument(
        "--min-seconds", type=float, default=2.0, help="minimum length of a record in seconds (default %(default)s)"
    )
    videos.add_argument(
        "--min-face",
        type=float,
        default=64.0,
        help="minimum height of the face in the source in pixels (default %(default)s)",
    )
    videos.add_argument(
        "--faces",
        default="auto",
        help="face analyzer: haar (built in; box and roll), landmarks (box, yaw, pitch and roll; see emo models), or "
        "auto (landmarks if their models are available)",
    )
    videos.add_argument("--face-models", metavar="DIR", help="folder of the model files (default: that of emo models)")
    videos.add_argument(
        "--held-out", type=float, default=0.0, metavar="SHARE",
        help="share of the people whose videos become the split validation (default: none)",
    )  # fmt: skip
    videos.add_argument(
        "--identity-from", default="", metavar="REGEX",
        help="finds the person in a video's name: its first group, such as '^(id\\d+)' (default: all videos differ)",
    )  # fmt: skip
    videos.add_argument(
        "--max-offset", type=int, default=5, metavar="FRAMES",
        help="largest offset of sound against lips that is not flagged as off-sync (default %(default)s)",
    )  # fmt: skip
    videos.add_argument(
        "--drop", nargs="+", default=(), metavar="FLAG",
        help="leave out records with these flags, such as off-sync weak-sync off-screen music overlap (default: none)",
    )  # fmt: skip
    videos.add_argument("--licence", default="unknown", help="licence of the videos, stored in each record")
    videos.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="number of processes; does not change the records (default %(default)s)",
    )
    videos.add_argument("--shards", type=int, default=256, help="maximum number of files (default %(default)s)")
    videos.add_argument(
        "--runner",
        help="Apache Beam runner to use instead of local processes: DirectRunner, FlinkRunner, SparkRunner, "
        "DataflowRunner or PortableRunner (needs the extra beam)",
    )
    videos.add_argument(
        "--runner-options",
        default="",
        metavar="TEXT",
        help="options of the runner, for example "
        "--runner-options='--job_endpoint=localhost:8099 --environment_type=LOOPBACK'",
    )
    videos.set_defaults(main=_main_videos)


def _add_images(sources: argparse._SubParsersAction) -> None:
    images = sources.add_parser("images", help="crop faces from single pictures, for the stages vae and image")
    images.add_argument("--input", required=True, nargs="+", metavar="GLOB", help="files, folders, or patterns")
    add_output(images, "output directory; must not exist, or be empty", required=True)
    images.add_argument(
        "--size", type=int, default=512, help="shorter side of the frames in pixels, even (default %(default)s)"
    )
    images.add_argument(
        "--aspect", type=_aspect, default=1.0, metavar="W:H",
        help="width and height of the frames, such as 9:16 (default: 1:1); see data.buckets of emo train",
    )  # fmt: skip
    images.add_argument(
        "--min-face", type=float, default=64.0, help="minimum height of the face in pixels (default %(default)s)"
    )
    images.add_argument("--faces", default="auto", help="face analyzer: haar, landmarks or auto, as for videos")
    images.add_argument("--face-models", metavar="DIR", help="folder of the model files (default: that of emo models)")
    images.add_argument("--licence", default="unknown", help="licence of the pictures, stored in each record")
    images.set_defaults(main=_main_images)


def _add_inspect(sources: argparse._SubParsersAction) -> None:
    inspect = sources.add_parser(
        "inspect", help="write a contact sheet and a video of the clips that training draws", epilog=_CONFIG_EPILOG
    )
    inspect.add_argument("directory", help="directory of records")
    add_output(inspect, "folder for contact_sheet.png and clips.mp4", required=True)
    inspect.add_argument("--split", default="train", help="split of the records (default %(default)s)")
    inspect.add_argument(
        "--records", type=int, default=8, help="number of records to show, spaced evenly (default %(default)s)"
    )
    inspect.add_argument("--seed", type=int, default=0, help="seed of the clips (default %(default)s)")
    inspect.set_defaults(main=_main_inspect, takes_config=True, default_config="base:video")


def _add_stats(sources: argparse._SubParsersAction) -> None:
    stats = sources.add_parser(
        "stats", help="fit the speed buckets and the position of the face to records", epilog=_CONFIG_EPILOG
    )
    stats.add_argument("directory", help="directory of records")
    stats.add_argument("--split", default="train", help="split of the records (default %(default)s)")
    stats.add_argument("--buckets", type=int, default=9, help="number of speed buckets (default %(default)s)")
    add_output(stats, "text file to write the printed options to as well")
    stats.set_defaults(main=_main_stats, takes_config=True, default_config="base:video")


def _add_latents(sources: argparse._SubParsersAction) -> None:
    latents = sources.add_parser(
        "latents",
        help="encode records to latents once, so that training need not do it in every step",
        epilog="Also takes --config NAME_OR_FILE[:STAGE] and --config.key=value (default: those of the checkpoint).",
    )
    latents.add_argument("directory", help="directory of records")
    add_output(latents, "output directory; an interrupted run resumes", required=True)
    latents.add_argument("--checkpoint", required=True, metavar="DIR", help="weights whose encoders are used")
    latents.add_argument("--split", default="train", help="split of the records (default %(default)s)")
    latents.add_argument(
        "--windows",
        type=int,
        default=2,
        help="crop windows per record (default %(default)s); with 1, reference and clip share a window",
    )
    latents.add_argument("--seed", type=int, default=0, help="seed of the crop windows (default %(default)s)")
    latents.add_argument(
        "--batch", type=int, default=8, help="frames per device and call of the encoder (default %(default)s)"
    )
    latents.add_argument("--shards", type=int, default=64, help="maximum number of files (default %(default)s)")
    latents.set_defaults(main=_main_latents, takes_more=True)


def _main_synthetic(args: argparse.Namespace) -> None:
    names = ("records", "held_out", "seconds", "fps", "seed", "follow", "babble", "head_motion", "workers")
    options = {name: getattr(args, name) for name in names}
    if args.world == "drawn":
        prepare_synthetic(args.output, size=args.size or 160, **options)
    else:
        from emo_jax.synthetic.people.prepare import prepare_world

        prepare_world(args.output, args.world, size=args.size or 256, **options)


def _main_videos(args: argparse.Namespace) -> None:
    names = ("size", "aspect", "seconds", "min_seconds", "min_face", "faces", "face_models", "licence")
    report = prepare_videos(
        args.input,
        args.output,
        held_out=args.held_out,
        identity_from=args.identity_from,
        max_offset=args.max_offset,
        drop=args.drop,
        runner=args.runner,
        runner_options=shlex.split(args.runner_options),
        workers=args.workers,
        shards=args.shards,
        **{name: getattr(args, name) for name in names},
    )
    print(
        f"{args.output}: {report['records']} records, {report['hours'] * 3600:.1f} s, from "
        f"{report['videos'] - report['videos_rejected']} of {report['videos']} videos; see report.html, rejected.jsonl"
    )


def _main_images(args: argparse.Namespace) -> None:
    names = ("size", "aspect", "min_face", "faces", "face_models", "licence")
    count, rejected = prepare_images(args.input, args.output, **{name: getattr(args, name) for name in names})
    print(f"{args.output}: {count} records; {rejected} pictures were rejected, see rejected.jsonl")


def _main_inspect(args: argparse.Namespace, config: ConfigDict | None) -> None:
    from emo_jax.preparation.contact_sheet import inspect_records

    config = config or _base_config()
    for path in inspect_records(args.directory, args.output, args.split, args.records, args.seed, config):
        print(path)


def _main_stats(args: argparse.Namespace, config: ConfigDict | None) -> None:
    from emo_jax.preparation.statistics import fit_config, format_config_options

    values, reliable = fit_config(args.directory, args.split, args.buckets, config or _base_config())
    if not reliable:
        print(
            "emo prepare: no speed is reliable, because only the roll was measured; prepare with --faces landmarks "
            "before training the stage speed",
            file=sys.stderr,
        )
    text = format_config_options(values)
    print(text)
    if args.output:
        write_text(args.output, text + "\n")


def _main_latents(args: argparse.Namespace, rest: list[str]) -> None:
    from emo_jax import config as config_lib
    from emo_jax.preparation.encode_latents import encode_records
    from emo_jax.weights.store import read_config

    config = config_lib.parse(rest, default=read_config(args.checkpoint)) if rest else None
    names = ("split", "windows", "seed", "batch", "shards")
    encode_records(args.directory, args.output, args.checkpoint, config, **{n: getattr(args, n) for n in names})


def _base_config() -> ConfigDict:
    from emo_jax.configs.base import get_config

    return get_config("video")

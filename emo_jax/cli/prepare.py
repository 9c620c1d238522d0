"""`emo prepare`: write records (TFDS datasets of ArrayRecord files) to train on."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from emo_jax.preparation.prepare import prepare_images, prepare_videos
from emo_jax.synthetic.world import prepare_synthetic


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the verb `prepare` to the command line."""
    parser = subparsers.add_parser("prepare", help="write records to train on", description=__doc__)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    synthetic = sources.add_parser("synthetic", help="draw people who talk: an endless world with known truth")
    synthetic.add_argument("--output", required=True, help="directory to write; must not exist yet")
    synthetic.add_argument("--records", type=int, default=800, help="people in the split train (default %(default)s)")
    synthetic.add_argument(
        "--held-out", type=int, default=32, help="other people, in the split validation (default %(default)s)"
    )
    synthetic.add_argument("--seconds", type=float, default=5.0, help="length of a record (default %(default)s)")
    synthetic.add_argument(
        "--size", type=int, default=160, help="side of the frames in pixels, even (default %(default)s)"
    )
    synthetic.add_argument("--fps", type=float, default=25.0, help="frames per second (default %(default)s)")
    synthetic.add_argument("--seed", type=int, default=0, help="other seeds give other people (default %(default)s)")
    synthetic.add_argument(
        "--follow",
        type=float,
        default=0.0,
        help="share of the heads' speed that goes with the voice, 0 to 1 (default %(default)s)",
    )
    synthetic.add_argument(
        "--babble",
        type=float,
        default=0.0,
        help="share of the sound's energy that is somebody else's voice, 0 to 1 (default %(default)s)",
    )
    synthetic.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes; their number changes no record (default %(default)s)",
    )
    synthetic.set_defaults(main=_main_synthetic)
    _add_videos(sources)
    _add_images(sources)
    _add_inspect(sources)
    _add_stats(sources)
    _add_latents(sources)


def _add_videos(sources: argparse._SubParsersAction) -> None:
    videos = sources.add_parser("videos", help="cut talking heads out of your own videos")
    videos.add_argument(
        "--input", required=True, nargs="+", metavar="GLOB", help="files, folders, or patterns such as 'in/**/*.mp4'"
    )
    videos.add_argument("--output", required=True, help="directory to write; a run that was killed goes on")
    videos.add_argument("--size", type=int, default=512, help="side of the frames, even (default %(default)s)")
    videos.add_argument("--seconds", type=float, default=10.0, help="length of a record, about (default %(default)s)")
    videos.add_argument("--min-seconds", type=float, default=2.0, help="shortest record (default %(default)s)")
    videos.add_argument(
        "--min-face",
        type=float,
        default=64.0,
        help="least face height in the source, pixels (default %(default)s)",
    )
    videos.add_argument(
        "--faces",
        default="auto",
        help="haar (built in: box and roll), mediapipe (box, yaw, pitch, roll), or auto: mediapipe where its model is",
    )
    videos.add_argument("--face-model", help="mediapipe's face_landmarker.task (default ~/.cache/emo_jax)")
    videos.add_argument("--licence", default="unknown", help="of the videos, stored in each record")
    videos.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes; their number changes no record (default %(default)s)",
    )
    videos.add_argument(
        "--shards", type=int, default=256, help="files at most, made side by side and whole (default %(default)s)"
    )
    videos.add_argument(
        "--runner",
        help="make the shards on Apache Beam instead: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, "
        "PortableRunner (extra: beam)",
    )
    videos.add_argument(
        "--runner-options",
        default="",
        metavar="TEXT",
        help="for the runner, as in --runner-options='--job_endpoint=localhost:8099 --environment_type=LOOPBACK'",
    )
    videos.set_defaults(main=_main_videos)


def _add_images(sources: argparse._SubParsersAction) -> None:
    images = sources.add_parser("images", help="cut faces out of single pictures, for the stages vae and image")
    images.add_argument("--input", required=True, nargs="+", metavar="GLOB", help="files, folders, or patterns")
    images.add_argument("--output", required=True, help="directory to write; must not exist yet")
    images.add_argument("--size", type=int, default=512, help="side of the frames, even (default %(default)s)")
    images.add_argument("--min-face", type=float, default=64.0, help="least face height, pixels (default %(default)s)")
    images.add_argument("--faces", default="auto", help="haar, mediapipe, or auto, as for videos")
    images.add_argument("--face-model", help="mediapipe's face_landmarker.task (default ~/.cache/emo_jax)")
    images.add_argument("--licence", default="unknown", help="of the pictures, stored in each record")
    images.set_defaults(main=_main_images)


def _add_inspect(sources: argparse._SubParsersAction) -> None:
    inspect = sources.add_parser("inspect", help="a contact sheet and a short video of what the model will really see")
    inspect.add_argument("directory", help="records, as `emo prepare` wrote them")
    inspect.add_argument("--output", required=True, help="folder to write contact_sheet.png and clips.mp4 into")
    inspect.add_argument("--split", default="train", help="(default %(default)s)")
    inspect.add_argument("--records", type=int, default=8, help="how many, spread evenly (default %(default)s)")
    inspect.add_argument("--seed", type=int, default=0, help="of the clips drawn (default %(default)s)")
    inspect.set_defaults(main=_main_inspect, takes_config="optional")


def _add_stats(sources: argparse._SubParsersAction) -> None:
    stats = sources.add_parser("stats", help="fit speed buckets and the faces' place to the records")
    stats.add_argument("directory", help="records, as `emo prepare` wrote them")
    stats.add_argument("--split", default="train", help="(default %(default)s)")
    stats.add_argument("--buckets", type=int, default=9, help="how many (default %(default)s)")
    stats.set_defaults(main=_main_stats, takes_config="optional")


def _add_latents(sources: argparse._SubParsersAction) -> None:
    latents = sources.add_parser(
        "latents",
        help="encode records once, so that training need not do it in every step",
        epilog="also takes --config FILE[:arg] and --config.key=value (default: the checkpoint's)",
    )
    latents.add_argument("directory", help="records, as `emo prepare` wrote them")
    latents.add_argument("--output", required=True, help="directory to write; a run that was killed goes on")
    latents.add_argument("--checkpoint", required=True, metavar="DIR", help="weights, whose encoders are used")
    latents.add_argument("--split", default="train", help="(default %(default)s)")
    latents.add_argument(
        "--windows",
        type=int,
        default=2,
        help="crop windows of each record (default %(default)s); with 1 reference and clip are always cut alike",
    )
    latents.add_argument("--seed", type=int, default=0, help="of the windows (default %(default)s)")
    latents.add_argument("--batch", type=int, default=8, help="frames a device encodes at once (default %(default)s)")
    latents.add_argument("--shards", type=int, default=64, help="files at most (default %(default)s)")
    latents.set_defaults(main=_main_latents, takes_config="optional")


def _main_synthetic(args: argparse.Namespace) -> None:
    """Run `emo prepare synthetic`. Raises ValueError on arguments that make no sense."""
    names = ("records", "held_out", "seconds", "size", "fps", "seed", "follow", "babble", "workers")
    prepare_synthetic(args.output, **{name: getattr(args, name) for name in names})


def _main_videos(args: argparse.Namespace) -> None:
    """Run `emo prepare videos`. Raises ValueError on arguments that make no sense."""
    names = ("size", "seconds", "min_seconds", "min_face", "faces", "face_model", "licence", "workers", "shards")
    report = prepare_videos(
        args.input,
        args.output,
        runner=args.runner,
        runner_options=shlex.split(args.runner_options),
        **{name: getattr(args, name) for name in names},
    )
    print(
        f"{args.output}: {report['records']} records, {report['hours'] * 3600:.1f} s, from "
        f"{report['videos'] - report['videos_rejected']} of {report['videos']} videos; see report.html, rejected.jsonl"
    )


def _main_images(args: argparse.Namespace) -> None:
    """Run `emo prepare images`. Raises ValueError on arguments that make no sense."""
    names = ("size", "min_face", "faces", "face_model", "licence")
    count, rejected = prepare_images(args.input, args.output, **{name: getattr(args, name) for name in names})
    print(f"{args.output}: {count} records; {rejected} pictures were left out, see rejected.jsonl")


def _main_inspect(args: argparse.Namespace, config) -> None:
    """Run `emo prepare inspect`; clips are those of --config FILE (configs/base.py if none is given)."""
    from emo_jax.preparation.contact_sheet import inspect_records

    given = args.directory, args.output, args.split, args.records, args.seed
    for path in inspect_records(*given, config or _base_config()):
        print(path)


def _main_stats(args: argparse.Namespace, config) -> None:
    """Run `emo prepare stats`: prints options for `emo train`; --config FILE says what a clip is."""
    from emo_jax.preparation.statistics import config_lines, fit_buckets, fit_face, head_tracks

    speeds, trusted, boxes = head_tracks(args.directory, args.split)
    if not trusted:
        print(
            "emo prepare: none of these speeds can be trusted (roll alone was seen); prepare with --faces mediapipe "
            "before you train the stage speed",
            file=sys.stderr,
        )
    centres, radii = fit_buckets(speeds, args.buckets)
    config = config or _base_config()
    face = fit_face(boxes, config.clip.frames, sum(config.data.crop_scale) / 2)
    found = {"model.speed.centres": centres, "model.speed.radii": radii}
    print(config_lines(found | {f"clip.face.{name}": value for name, value in face.items()}))


def _main_latents(args: argparse.Namespace, config) -> None:
    """Run `emo prepare latents`; --config says the size, the crops, the flips, and whether there is a voice to hear."""
    from emo_jax.preparation.encode_latents import encode_records

    names = ("split", "windows", "seed", "batch", "shards")
    encode_records(args.directory, args.output, args.checkpoint, config, **{n: getattr(args, n) for n in names})


def _base_config():
    from emo_jax.configs.base import get_config

    return get_config("video")

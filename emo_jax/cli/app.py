"""Opens a web page on which a portrait and a song are chosen, and the video plays while it is generated.

Needs the extra `app`: pip install -c constraints.txt -e '.[app]'

Example:
  emo app --portraits faces --songs music
"""

from __future__ import annotations

import argparse
from pathlib import Path

from emo_jax.cli.arguments import add_verb
from emo_jax.weights.presets import DEFAULT


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `app` to the command line."""
    parser = add_verb(subparsers, "app", __doc__)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", help=f"bundled weights to use (default: {DEFAULT})")
    model.add_argument("--checkpoint", metavar="DIR", help="folder of emo export, run of emo train, or id on the hub")
    parser.add_argument("--portraits", metavar="DIR", type=Path, help="folder of pictures to choose from")
    parser.add_argument("--songs", metavar="DIR", type=Path, help="folder of recordings to choose from")
    parser.add_argument("--host", default="127.0.0.1", help="address; 0.0.0.0 for all networks (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port; 0 for any free one (default: %(default)s)")
    parser.add_argument("--auth", metavar="FILE", help="file of lines user:password, to require a login")
    parser.add_argument("--devices", type=int, help="devices to use, one video on each (default: all)")
    limits = (
        ("--max-seconds", float, 120.0, "longest video; of a longer song the first part is used"),
        ("--max-megabytes", float, 50.0, "largest file that a user may send"),
        ("--max-megapixels", float, 50.0, "largest picture that a user may send"),
        ("--max-size", int, 1080, "limit of the shorter side of videos in pixels"),
        ("--max-queue", int, 100, "jobs that may wait"),
        ("--keep-minutes", float, 60.0, "minutes after which files of users are deleted"),
    )
    for name, kind, default, text in limits:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: %(default)s)")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> None:
    """Runs `emo app`."""
    from emo_jax.app.settings import Settings, read_logins

    settings = Settings(
        args.checkpoint or args.preset or DEFAULT,
        args.portraits,
        args.songs,
        args.host,
        args.port,
        read_logins(args.auth) if args.auth else (),
        args.max_seconds,
        args.max_megabytes,
        args.max_megapixels,
        args.max_size,
        args.max_queue,
        args.keep_minutes,
    )
    if args.devices is not None and args.devices < 1:
        raise ValueError(f"--devices is {args.devices}; expected 1 or more")
    try:
        from emo_jax.app.server import serve
    except ImportError as error:
        raise ValueError(
            f"the extra app is missing ({error.name}): pip install -c constraints.txt -e '.[app]'"
        ) from error
    serve(settings, args.devices)

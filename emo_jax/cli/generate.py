"""`emo generate`: makes a talking video from a portrait and a voice.

emo generate --portrait me.jpg --audio song.mp3 --out me.mp4
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from emo_jax.faces.boxes import check_box, parse_box
from emo_jax.generation.inputs import check_options, load_portrait, load_voice
from emo_jax.media.timing import require_frames
from emo_jax.media.video_writer import check_target

if TYPE_CHECKING:
    from emo_jax.generation.pipeline import EmoPipeline

PRESET = "tiny"


def add_parser(subparsers) -> None:
    """Adds the verb `generate` to the command line."""
    parser = subparsers.add_parser("generate", help="make a talking video", description=__doc__)
    parser.add_argument("--portrait", required=True, help="image file: PNG, JPEG, WebP, ...")
    parser.add_argument("--audio", required=True, help="audio or video file: WAV, MP3, MP4, ...")
    parser.add_argument("--out", required=True, help="mp4 file to write")
    add_model_arguments(parser)
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--solver", help="ddim or dpm++2m")
    parser.add_argument(
        "--reference-scale", type=float, help="guidance towards the portrait (both scales 1: no guidance)"
    )
    parser.add_argument("--audio-scale", type=float, help="guidance towards the voice")
    parser.add_argument("--speed", type=float, help="head rotation speed in degrees per frame, about 0.2 to 2")
    parser.add_argument(
        "--face-box", metavar="X0,Y0,X1,Y1", help="box of the face in the portrait, in pixels (default: detected)"
    )
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="size of the frames in pixels (default: the model's)")
    parser.add_argument(
        "--clips", type=int, help="clips per segment; fewer give the first frames sooner and take less memory"
    )
    parser.add_argument(
        "--fps", type=float, help="frame rate of the file; frames are repeated or dropped (default: the model's)"
    )
    parser.set_defaults(main=main)


def add_model_arguments(parser) -> None:
    """Adds --preset, --checkpoint and --seed."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", help=f"name of bundled weights (default {PRESET})")
    model.add_argument("--checkpoint", metavar="DIR", help="folder written by emo export or emo train")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")


def parse_size(text: str) -> tuple[int, int]:
    """Parses WIDTHxHEIGHT in pixels, such as '512x768', to (height, width).

    Raises:
        ValueError: the text is not of that form, or a side is 0.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or 0 in map(int, match.groups()):
        raise ValueError(f"--size is {text!r}; expected WIDTHxHEIGHT in pixels, such as 512x768")
    return int(match[2]), int(match[1])


def load_model(args, size=None, **sampling) -> EmoPipeline:
    """Loads the pipeline that --preset or --checkpoint names.

    Args:
        args: the parsed arguments.
        size: (height, width) of the frames, or None.
        **sampling: fields of the config's `sampling` to replace.

    Raises:
        ValueError: there are no such weights, a field of `sampling` is unknown, or JAX finds no device.
    """
    from emo_jax.cache import keep_programs
    from emo_jax.distributed.processes import check_devices
    from emo_jax.generation.pipeline import EmoPipeline
    from emo_jax.weights.store import BUNDLED

    preset = PRESET if args.preset is None else args.preset
    if preset not in BUNDLED:
        raise ValueError(f"preset is {preset!r}; expected {', '.join(BUNDLED)}, or give --checkpoint DIR")
    keep_programs()
    check_devices()
    return EmoPipeline.from_pretrained(preset if args.checkpoint is None else args.checkpoint, size, **sampling)


def main(args) -> None:
    """Runs `emo generate`. Checks the inputs before it loads the model."""
    options = {name: getattr(args, name) for name in ("seed", "steps", "speed", "reference_scale", "audio_scale")}
    check_options(**options, fps=args.fps)
    check_target(args.out)
    size = None if args.size is None else parse_size(args.size)
    if args.clips is not None and args.clips < 1:
        raise ValueError(f"--clips is {args.clips}; expected at least 1")
    box = None if args.face_box is None else parse_box(args.face_box)
    portrait = load_portrait(args.portrait)
    if box is not None:
        check_box(box, *portrait.shape[:2])
    voice = load_voice(args.audio)
    for name in (args.portrait, args.audio):
        if os.path.exists(args.out) and os.path.samefile(args.out, name):
            raise ValueError(f"--out {args.out} would replace the input {name}; choose another name")
    pipe = load_model(args, size, **({} if args.clips is None else {"clips": args.clips}))
    require_frames(voice.samples, args.fps or pipe.fps, args.audio)
    options |= dict(solver=args.solver, face_box=box)
    from emo_jax.generation.writing import write_video

    write_video(args.out, pipe, portrait, voice, label="generate", fps=args.fps, **options)

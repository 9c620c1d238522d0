"""Makes a talking video of a portrait and a voice.

Fields of the model's `sampling` config are set by --sampling.field=value, for example --sampling.eta=0.5; --steps,
--solver, --reference-scale, --audio-scale, --speed and --clips are short for the fields of these names.

Example:
  emo generate --portrait me.png --audio song.wav -o me.mp4
  arecord -f S16_LE -r 16000 | emo generate --live --portrait me.png --audio - -o - | ffplay -
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from emo_jax.cli.arguments import add_output, add_verb, add_weights, sampling_fields, weights

_LEGEND = "yellow: where the face may move, cyan: numbered faces, dark: stays as it is"

_OF_MANIFESTS = ("batch", "devices_per_video", "runner", "workers")
"""Options that need --manifest."""
_LIVE = "--audio -, a named pipe or microphone; -o - (mp4), .mp4, .m3u8 (HLS) or rtmp://..."


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `generate` to the command line."""
    parser = add_verb(subparsers, "generate", __doc__)
    parser.add_argument("--manifest", metavar="CSV|JSONL", help="list of portraits and recordings; -o is a folder")
    parser.add_argument("--batch", type=int, metavar="N", help="videos of a manifest that a device makes together")
    text = "number of devices that share a video (default: 1); emo plan --program generate recommends a number"
    parser.add_argument("--devices-per-video", type=int, metavar="N", help=text)
    parser.add_argument("--runner", metavar="local|ray", help="where: this machine, or a Ray cluster (extra ray)")
    parser.add_argument("--workers", type=int, metavar="N", help="workers on Ray (default: one for each GPU or CPU)")
    parser.add_argument("--portrait", help="image file: PNG, JPEG, WebP, ...")
    parser.add_argument("--audio", help="file with a sound track: WAV, MP3, MP4, ...")
    parser.add_argument("--vocals", default="off", metavar="auto|off|FILE", help="voice to hear, without the music")
    parser.add_argument("--soundtrack", metavar="FILE", help="sound of the video, in place of --audio")
    add_output(parser, "file to write: .mp4, .mov, .webm, .gif, or a folder of PNG (ends in /)")
    add_weights(parser)
    parser.add_argument("--steps", type=int, help="number of denoising steps")
    parser.add_argument("--solver", help="ddim, dpm++2m or lcm")
    parser.add_argument("--reference-scale", type=float, help="guidance scale of the portrait; 1 disables it")
    parser.add_argument("--audio-scale", type=float, help="guidance scale of the voice; 1 disables it")
    parser.add_argument(
        "--speed", metavar="X|CSV", help="head rotation in degrees per frame, about 0.2 to 2, or a file of time,speed"
    )
    parser.add_argument("--still", action="store_true", help="keep the head as still as the weights can: speed 0")
    parser.add_argument("--clips", type=int, help="clips per segment; fewer show sooner and take less memory")
    for name, region in (("pose", "the picture around the face"), ("face", "the face"), ("lip", "the lips")):
        parser.add_argument(
            f"--{name}-weight", type=float, help=f"how much the voice moves {region} (weights of hallo; default: 1)"
        )
    parser.add_argument("--face-embedding", metavar="FILE", help=".npy of InsightFace, or its .onnx (weights of hallo)")
    parser.add_argument(
        "--face", "--face-box", metavar="N|X0,Y0,X1,Y1", help="number of the face, or its box in the portrait in pixels"
    )
    parser.add_argument(
        "--preview", metavar="PNG", help=f"draw into this file, generate nothing: white square, {_LEGEND}"
    )
    parser.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="size of the generated square in pixels (default: the model's)"
    )
    parser.add_argument(
        "--framing", default="portrait", help="portrait: the picture at its size; crop: the face's square"
    )
    parser.add_argument("--max-size", type=int, default=1080, help="limit of the video's shorter side (default: 1080)")
    parser.add_argument("--fps", type=float, help="frame rate of the file (default: the model's)")
    parser.add_argument("--live", action="store_true", help=f"write while sound comes: {_LIVE}")
    parser.add_argument("--codec", help="h264, hevc, av1 or vp9 (default: the format's)")
    parser.add_argument("--label", metavar="TEXT", help="notice to draw into the frames, such as AI-generated")
    parser.set_defaults(main=main, takes_more=True)


def parse_size(text: str) -> tuple[int, int]:
    """Parses WIDTHxHEIGHT, such as "512x768".

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: the text has another form, or a side is 0.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or 0 in map(int, match.groups()):
        raise ValueError(f"--size is {text!r}; expected WIDTHxHEIGHT in pixels, such as 512x768")
    return int(match[2]), int(match[1])


def main(args: argparse.Namespace, rest: list[str]) -> int | None:
    """Runs `emo generate`."""
    from emo_jax.generation.commands import generate_batch, generate_file, generate_live
    from emo_jax.generation.inputs import parse_face
    from emo_jax.generation.preview import write_preview
    from emo_jax.generation.speed import read_speed

    _check_combination(args)
    face = None if args.face is None else parse_face(args.face)
    if args.preview is not None:
        size = None if args.size is None else parse_size(args.size)
        frame: Any = dict(size=size, framing=args.framing, max_size=args.max_size)
        height, width = write_preview(args.preview, args.portrait, weights(args), face_box=face, **frame)
        print(f"{args.preview}: a video of {width}x{height} pixels; white: generated square, {_LEGEND}")
        return None
    args.speed = 0.0 if args.still else None if args.speed is None else read_speed(args.speed)
    names = ("steps", "solver", "reference_scale", "audio_scale", "speed", "clips")
    names += ("pose_weight", "face_weight", "lip_weight")
    options: dict[str, Any] = dict(
        size=None if args.size is None else parse_size(args.size),
        fps=args.fps,
        seed=args.seed,
        framing=args.framing,
        max_size=args.max_size,
        vocals=args.vocals,
        codec=args.codec,
        notice=args.label,
        sampling=sampling_fields(rest, **{name: getattr(args, name) for name in names}),
    )
    if args.live:
        given = {name: value for name, value in options.items() if name not in ("fps", "vocals", "codec")}
        generate_live(args.portrait, args.audio, args.output, weights(args), face_box=face, **given)
        return None
    if args.manifest is not None:
        more = {name: value for name in _OF_MANIFESTS if (value := getattr(args, name)) is not None}
        return generate_batch(args.manifest, args.output, weights(args), **more, **options)
    files = (args.portrait, args.audio, args.output)
    own = dict(face_box=face, soundtrack=args.soundtrack, face_embedding=args.face_embedding)
    generate_file(*files, weights(args), **own, **options)
    return None


def _check_combination(args: argparse.Namespace) -> None:
    """Checks which options are given together.

    Raises:
        ValueError: an option is missing, or two exclude each other.
    """
    if args.manifest is not None:
        for name in ("portrait", "audio", "face", "soundtrack", "preview"):
            if getattr(args, name) is not None:
                raise ValueError(f"--manifest and --{name} are given; write {name} into the manifest, for each video")
        if args.face_embedding is not None:
            raise ValueError("--manifest and --face-embedding are given; one embedding belongs to one portrait")
        if args.workers is not None and args.runner != "ray":
            raise ValueError("--workers is given without --runner ray; other runs use the devices of this machine")
    else:
        for name in _OF_MANIFESTS:
            if getattr(args, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is given without --manifest; it is for the videos of a list")
    if args.live:
        for name in ("manifest", "soundtrack", "codec", "fps", "preview", "face_embedding"):
            if getattr(args, name) is not None:
                raise ValueError(f"--live and --{name.replace('_', '-')} are given; live video does not take it")
        if args.vocals != "off":
            raise ValueError("--live and --vocals are given; a voice is not separated from music while it comes")
    needed = ("output",) if args.manifest is not None else ("portrait", "audio", "output")
    for name in needed if args.preview is None else ("portrait",):
        if getattr(args, name) is None:
            raise ValueError(f"--{name} is missing; see emo generate --help")
    if args.still and args.speed is not None:
        raise ValueError("--still and --speed set the same; give one of them")

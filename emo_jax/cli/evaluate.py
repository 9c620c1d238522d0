"""Generates videos of held-out people with held-out voices, and measures them.

All measures are computed from the frames alone, by a small network that was trained on rendered frames. Lips,
identity, seams and place have a control: a generation without the input under test, which must fail. The column
"renders" shows the measure of rendered videos, which is the score of a perfect model. The exit status does not depend
on the results.

--videos DIR measures existing videos instead, of any origin, by landmarks and SFace (emo models download gets their
files): identity, lips against sound, eyes, head motion, seams and drift, also as a page with plots. It needs no
--checkpoint. --syncnet adds Sync-C and Sync-D.
--against DIR compares them with other videos as sets: E-FID, FID with --inception, FVD with --i3d.

Fields of the model's `sampling` config are set by --sampling.field=value, for example --sampling.steps=8.

Example:
  emo evaluate --checkpoint small --identities 2 --seconds 1 --only lips -o out/evaluation
"""

from __future__ import annotations

import argparse

from emo_jax.cli.arguments import add_output, add_verb, sampling_fields
from emo_jax.evaluation.evaluate import FACE_PROPERTIES, PROPERTIES, evaluate, select_properties
from emo_jax.weights.presets import DEFAULT


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb `evaluate` to the command line."""
    parser = add_verb(subparsers, "evaluate", __doc__)
    parser.add_argument("--checkpoint", default=DEFAULT, help="preset, folder of emo export, or run of emo train")
    parser.add_argument("--videos", metavar="DIR", help="measure the videos of this folder (or one file) instead")
    parser.add_argument("--portraits", metavar="DIR", help="with --videos: NAME.png is the portrait of NAME.mp4")
    parser.add_argument(
        "--clip", type=int, default=0, help="with --videos: frames in a clip, for seams (default: not measured)"
    )
    parser.add_argument("--against", metavar="DIR", help="with --videos: videos to compare them with as a set")
    parser.add_argument("--inception", metavar="FILE", help="with --against: weights of pytorch-fid, for FID")
    parser.add_argument("--i3d", metavar="FILE", help="with --against: VideoGPT's i3d_pretrained_400.pt, for FVD")
    parser.add_argument("--syncnet", metavar="FILE", help="with --videos: syncnet_v2.model, for Sync-C and Sync-D")
    parser.add_argument("--data", help="records whose split validation is used (default: newly rendered people)")
    help_text = "which people are rendered; people needs the extra of that name (default: %(default)s)"
    parser.add_argument("--world", default="drawn", choices=("drawn", "people"), help=help_text)
    add_output(parser, "folder for report.json and frames.png (with --videos: videos.html, .json, .csv)", required=True)
    parser.add_argument("--identities", type=int, default=16, help="number of people (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each video (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="number of denoising steps (default: the model's)")
    parser.add_argument("--sampling", nargs="+", metavar="FIELD=VALUE", default=[], help="as --sampling.FIELD=VALUE")
    parser.add_argument("--long", type=float, default=60.0, help="seconds of the long videos; 0 skips them")
    parser.add_argument("--memory", action="store_true", help="also measure the memory of emo generate")
    names = ", ".join((*PROPERTIES, *FACE_PROPERTIES))
    parser.add_argument("--only", nargs="+", metavar="PROPERTY", help=f"some of {names}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    parser.set_defaults(main=main, takes_more=True)


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Runs `emo evaluate`."""
    for option in ("inception", "i3d"):
        if getattr(args, option) and not args.against:
            raise ValueError(f"--{option} is given without --against; expected both")
    if args.videos:
        from emo_jax.evaluation.videos import evaluate_videos

        if rest:
            raise ValueError(f"unknown argument {rest[0]!r}; --videos takes no field of the sampler")
        networks = args.inception, args.i3d, args.syncnet
        evaluate_videos(args.videos, args.output, args.portraits, args.clip, args.against, *networks)
        return
    for option in ("portraits", "clip", "against", "syncnet"):
        if getattr(args, option):
            raise ValueError(f"--{option} is given without --videos; expected both")
    fields = [*(f"--sampling.{text}" for text in args.sampling), *rest]
    evaluate(
        args.checkpoint,
        args.output,
        data=args.data,
        world=args.world,
        identities=args.identities,
        seconds=args.seconds,
        long=args.long,
        properties=select_properties(args.only, args.memory, args.long),
        seed=args.seed,
        sampling=sampling_fields(fields, steps=args.steps),
    )

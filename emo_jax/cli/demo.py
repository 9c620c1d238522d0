"""`emo demo`: makes a video from the bundled portrait and voice.

emo demo --out demo.mp4
"""

from __future__ import annotations

from pathlib import Path

from emo_jax.cli.generate import add_model_arguments, load_model
from emo_jax.generation.inputs import ASSETS, check_options, load_portrait, load_voice
from emo_jax.media.timing import frame_count
from emo_jax.media.video_writer import check_target


def add_parser(subparsers) -> None:
    """Adds the verb `demo` to the command line."""
    parser = subparsers.add_parser("demo", help="make a video from the bundled portrait and voice", description=__doc__)
    parser.add_argument("--out", default="out/demo.mp4", help="mp4 file to write (default %(default)s); a strip "
                        "of its frames is written beside it as .png")  # fmt: skip
    add_model_arguments(parser)
    parser.set_defaults(main=main)


def main(args) -> None:
    """Runs `emo demo`."""
    out = Path(args.out)
    if out.suffix.lower() == ".mp4":
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{out} cannot be written ({error.strerror}); choose another folder") from error
    check_target(out)
    check_options(seed=args.seed)
    portrait = load_portrait(ASSETS / "portrait.png")
    voice = load_voice(ASSETS / "voice.wav")
    pipe = load_model(args)
    from emo_jax.generation.writing import FilmStrip, print_result, write_video

    strip = FilmStrip(frame_count(len(voice.samples), pipe.fps))
    write_video(out, pipe, portrait, voice, label="demo", seed=args.seed, on_frames=strip.add)
    strip.save(out.with_suffix(".png"))
    print_result(f"{out.with_suffix('.png')}: a strip of its frames")

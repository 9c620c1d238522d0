"""`emo demo`: the portrait and the voice that come with the package, and the video that the small model makes of them.

python -m emo_jax.synthetic.assets --make-assets    # draws and synthesises emo_jax/assets again
"""

from __future__ import annotations

from pathlib import Path

from emo_jax.cli.generate import add_model_arguments, load_model
from emo_jax.generation.inputs import ASSETS, check_options, load_portrait, load_voice
from emo_jax.generation.output import write_video
from emo_jax.generation.strip import SHOWN, Strip
from emo_jax.media.timing import frame_count
from emo_jax.media.video_writer import check_target


def add_parser(subparsers) -> None:
    """Adds the verb `demo` to the command line."""
    parser = subparsers.add_parser("demo", help="a video of the bundled portrait and voice", description=__doc__)
    parser.add_argument("--out", default="out/demo.mp4", help="mp4 file to write (default %(default)s); a strip of "
                        f"{SHOWN} frames is put beside it as .png")  # fmt: skip
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
    strip = Strip(frame_count(len(voice.heard), pipe.fps))
    write_video(out, pipe, portrait, voice, name="demo", seed=args.seed, watch=strip.add)
    strip.save(out.with_suffix(".png"))
    print(f"{out.with_suffix('.png')}: {SHOWN} of its frames")

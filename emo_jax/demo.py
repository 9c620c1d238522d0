"""`emo demo`: the portrait and the voice that come with the package, and the video that the small model makes of them.

python -m emo_jax.demo --make-assets    # draws and synthesises emo_jax/assets again
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from emo_jax import generate
from emo_jax.data.audio import frame_count, write_wav

ASSETS = Path(__file__).parent / "assets"
PERSON = (1 << 24) + 121  # a seed of the validation range of `emo prepare synthetic`: training never sees this person
SECONDS, SIDE = 6.0, 256
SHOWN = 8  # frames in the strip


def add_parser(subparsers) -> None:
    """Adds the verb `demo` to the command line."""
    parser = subparsers.add_parser("demo", help="a video of the bundled portrait and voice", description=__doc__)
    parser.add_argument("--out", default="out/demo.mp4", help="mp4 file to write (default %(default)s); a strip of "
                        f"{SHOWN} frames is put beside it as .png")  # fmt: skip
    generate.add_model_arguments(parser)
    parser.set_defaults(main=main)


def main(args) -> None:
    """Runs `emo demo`."""
    out = Path(args.out)
    if out.suffix.lower() == ".mp4":
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{out} cannot be written ({error.strerror}); choose another folder") from error
    generate.check_target(out)
    generate.check_options(seed=args.seed)
    portrait = generate.load_portrait(ASSETS / "portrait.png")
    voice = generate.load_voice(ASSETS / "voice.wav")
    pipe = generate.load_model(args)
    strip = Strip(frame_count(len(voice.heard), pipe.fps))
    generate.write_video(out, pipe, portrait, voice, name="demo", seed=args.seed, watch=strip.add)
    strip.save(out.with_suffix(".png"))
    print(f"{out.with_suffix('.png')}: {SHOWN} of its frames")


class Strip:
    """Frames at equal distances of a video of `total` frames, side by side."""

    def __init__(self, total: int, shown: int = SHOWN):
        self.wanted = set(np.linspace(0, total - 1, shown + 2).round().astype(int)[1:-1].tolist())
        self.seen, self.kept = 0, []

    def add(self, frames: np.ndarray) -> None:
        """Takes the next frames of the video, uint8 (n, H, W, 3)."""
        self.kept += [frame.copy() for at, frame in enumerate(frames, self.seen) if at in self.wanted]
        self.seen += len(frames)

    def save(self, path: Path) -> None:
        """Writes a PNG."""
        Image.fromarray(np.concatenate(self.kept, axis=1)).save(path, optimize=True)


def make_assets(directory: Path = ASSETS) -> None:
    """Writes portrait.png (a held-out person at rest) and voice.wav (formant speech, 16 kHz), the same every time."""
    from emo_jax.data.synthetic import Identity, State, render
    from emo_jax.data.voices import Speaker, normalise, synthesise

    directory.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(Identity.sample(PERSON), State(), SIDE)).save(directory / "portrait.png", optimize=True)
    speaker = Speaker(f0=190.0, tract=1.08, tempo=0.95, breath=0.2, lively=0.6)
    sound = normalise(synthesise(np.random.default_rng([PERSON, 2]), SECONDS, "open", speaker))
    write_wav(directory / "voice.wav", sound)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make-assets", action="store_true", required=True, help="write emo_jax/assets")
    parser.parse_args()
    make_assets()

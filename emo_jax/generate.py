"""`emo generate`: a portrait and a voice become a talking video.

emo generate --portrait me.jpg --audio song.mp3 --out me.mp4
"""

from __future__ import annotations

import math
import numbers
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from emo_jax.data.audio import MAX_PEAK, SAMPLE_RATE, exact_fps, load_audio, require_frames
from emo_jax.data.faces import check_box, crop_around, default_box, find_face, mask_from_box, parse_box
from emo_jax.data.images import from_pil, load_image
from emo_jax.data.video import VideoWriter, check_target
from emo_jax.progress import Progress

TRACK_RATE = 44100  # Hz, of the sound in the file; the networks hear SAMPLE_RATE
MAX_FPS = 240
PRESET = "tiny"


class Voice(NamedTuple):
    """A recording: `heard` float32 (samples,) at 16 kHz as it is; `track`, the same sound at `rate` Hz for the file."""

    heard: np.ndarray
    track: np.ndarray
    rate: int


@dataclass
class Video:
    """A generated video: frames uint8 (N, H, W, 3) at `fps`, audio float32 (samples,) at `audio_rate` Hz.

    N = ceil(seconds of audio * fps).
    """

    frames: np.ndarray
    fps: float
    audio: np.ndarray
    audio_rate: int

    def save(self, path: str | os.PathLike) -> None:
        """Writes an mp4 (H.264, AAC). ValueError where `path` can't be written or is no .mp4."""
        with VideoWriter(path, self.frames.shape[1:3], self.fps, self.audio, audio_rate=self.audio_rate) as writer:
            writer.write(self.frames)


class EmoPipeline:
    """Generation with one set of weights.

        pipe = EmoPipeline.from_pretrained("tiny")
        pipe("portrait.png", "voice.wav").save("out.mp4")

    A program is compiled at the first use of a solver, a number of steps and a sort of guidance. Other portraits,
    voices, lengths, seeds, speeds and scales use the same one.

    Args:
        emo: the networks (models.emo.build). params: their params tree.
    """

    def __init__(self, emo, params):
        self.config, self.params, self._emo, self._samplers = emo.config, params, emo, {}

    @classmethod
    def from_pretrained(cls, name_or_dir: str | os.PathLike, size=None, **sampling) -> EmoPipeline:
        """The pipeline of a preset ("tiny"), a folder of weights (`emo export`) or a run of `emo train`.

        `size` (height, width) of the frames replaces that of training; the likeness is best at that of training. Other
        keyword arguments override fields of the config's `sampling`: solver, steps, clips (per segment), ...

        Raises:
            ValueError: no such weights, weights of another config, an unknown field, or one that makes no video.
        """
        from emo_jax.sampling import check_sampling
        from emo_jax.weights.store import load_model

        emo, params = load_model(name_or_dir, size)
        known = emo.config.sampling
        unknown = sorted(set(sampling) - set(known))
        if unknown:
            raise ValueError(f"sampling has no field {unknown[0]!r}; expected some of {', '.join(known)}")
        try:
            known.update(sampling)
        except TypeError as error:
            raise ValueError(f"sampling: {error}") from error
        check_sampling(known, emo.config.diffusion.train_steps)
        return cls(emo, params)

    @property
    def fps(self) -> float:
        """Frames per second that the model makes."""
        return self.config.clip.fps

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its frames in pixels."""
        return tuple(self.config.clip.image_size)

    def __call__(self, portrait, audio, **options) -> Video:
        """The whole video, in memory; arguments as `stream`. An audio array becomes the sound track as it is."""
        voice = load_voice(audio)
        frames = np.concatenate(list(self.stream(portrait, voice.heard, **options)))
        return Video(frames, self.fps, voice.track, voice.rate)

    def stream(
        self,
        portrait,
        audio,
        *,
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        reference_scale: float | None = None,
        audio_scale: float | None = None,
        speed: float | None = None,
        face_box: tuple[float, float, float, float] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the video segment by segment, uint8 (n, H, W, 3), ceil(seconds * fps) frames in all.

        Bad input is told at once, not when the first segment is asked for. Memory does not grow with the length.

        Args:
            portrait: a path, a Pillow image, or uint8 RGB (height, width, 3); cropped around the face.
            audio: a path, or float32 (samples,) in [-1, 1] at 16 kHz. Its loudness is levelled as in training.
            seed: 0 to 2**32 - 1; equal seeds and inputs give equal frames.
            steps, solver, reference_scale, audio_scale: None: the config's (`sampling`).
            speed: of the head's rotation in degrees per frame, for all frames; None: the config's.
            face_box: (x0, y0, x1, y1) pixels of the portrait, forehead to chin; None: it is looked for.

        Raises:
            ValueError: an input that cannot be used.
        """
        import jax

        from emo_jax.data.voices import normalise

        image = load_portrait(portrait)
        heard = load_voice(audio, track=False).heard
        require_frames(heard, self.fps)
        check_options(seed=seed, steps=steps, speed=speed, reference_scale=reference_scale, audio_scale=audio_scale)
        name = portrait if isinstance(portrait, str | os.PathLike) else "the portrait"
        crop, mask = place(image, self.config.clip, face_box, name)
        sampler, scales = self._sampler(steps, solver, reference_scale, audio_scale)
        segments = sampler.stream(
            crop[None], mask[None], normalise(heard)[None], speed=speed, scales=scales, key=jax.random.key(seed)
        )
        return (frames[0] for frames in segments)

    def compilations(self) -> int:
        """How many programs were compiled: one for each solver, number of steps and sort of guidance used."""
        return sum(sampler.compilations() for sampler in self._samplers.values())

    def _sampler(self, steps, solver, reference_scale, audio_scale):
        from ml_collections import ConfigDict

        from emo_jax.diffusion.guidance import guidance_mode
        from emo_jax.sampling import VideoSampler, check_sampling, mesh_for

        changed = dict(steps=steps, solver=solver, reference_scale=reference_scale, audio_scale=audio_scale)
        config = ConfigDict({**self.config.sampling, **{k: v for k, v in changed.items() if v is not None}})
        check_sampling(config, self.config.diffusion.train_steps)
        scales = float(config.reference_scale), float(config.audio_scale)
        mode = guidance_mode(*scales)
        key = config.solver, config.steps, mode
        if key not in self._samplers:
            mesh = mesh_for(mode, self.config.clip.frames)
            placed = (sampler.params for sampler in self._samplers.values() if sampler.mesh == mesh)
            self._samplers[key] = VideoSampler(self._emo, next(placed, self.params), config, mesh=mesh)
        return self._samplers[key], scales


# ---- inputs


def load_portrait(portrait) -> np.ndarray:
    """A path, a Pillow image or an array as upright uint8 RGB (height, width, 3); ValueError for anything else."""
    if isinstance(portrait, str | os.PathLike):
        return load_image(portrait)
    if not isinstance(portrait, np.ndarray) and hasattr(portrait, "convert"):
        return from_pil(portrait)
    image = np.asarray(portrait)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"portrait is {image.dtype} {image.shape}; expected a path or uint8 RGB (height, width, 3)")
    return image


def load_voice(audio, track: bool = True) -> Voice:
    """A path or float samples (samples,) at 16 kHz as a `Voice`; without `track` what is heard stands for it too.

    Raises ValueError (one line): see `load_audio`; for an array another shape, integers, NaN, or far beyond full scale.
    """
    if isinstance(audio, str | os.PathLike):
        heard = load_audio(audio)
        return Voice(heard, load_audio(audio, TRACK_RATE), TRACK_RATE) if track else Voice(heard, heard, SAMPLE_RATE)
    samples = np.asarray(audio)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"the audio is {samples.dtype} {samples.shape}; expected float32 (samples,) at 16 kHz")
    peak = float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))
    if not math.isfinite(peak):
        raise ValueError("the audio has NaN or infinite samples; expected numbers in [-1, 1]")
    if peak > MAX_PEAK:
        raise ValueError(f"the audio has samples up to {peak:g}; expected [-1, 1]: divide by the full scale")
    samples = np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)
    return Voice(samples, samples, SAMPLE_RATE)


def check_options(*, seed, steps=None, speed=None, reference_scale=None, audio_scale=None, fps=None) -> None:
    """ValueError (one line) for numbers that make no sense; None is the config's."""
    whole = isinstance(seed, numbers.Integral) and (steps is None or isinstance(steps, numbers.Integral))
    if not whole or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r} and steps {steps!r}; expected whole numbers, the seed from 0 to 2**32 - 1")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    for name, value in dict(speed=speed, reference_scale=reference_scale, audio_scale=audio_scale).items():
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value!r}; expected a number of at least 0")
    if fps is not None and not 1 <= exact_fps(fps) <= MAX_FPS:
        raise ValueError(f"fps is {fps:g}; expected 1 to {MAX_FPS}")


def place(image: np.ndarray, clip, face_box=None, name="the portrait"):
    """Crops a portrait as the training clips are: (crop uint8 (H, W, 3), mask uint8 (H, W, 1) of the face's region).

    The face is `face_box`, else the largest one found, else `default_box`, which is told in a line on stderr. The crop
    lies inside the image; its face is where training's were (`clip`: `config.clip`), as far as the image reaches.
    Raises ValueError where `face_box` lies outside the image.
    """
    box = find_face(image) if face_box is None else check_box(face_box, *image.shape[:2])
    if box is None:
        box = default_box(*image.shape[:2])
        where = ",".join(f"{value:.0f}" for value in box)
        print(f"warning: no face found in {name}; assuming {where} (face box x0,y0,x1,y1 sets it)", file=sys.stderr)
    size, face = tuple(clip.image_size), clip.face
    crop, box = crop_around(image, box, size, face.height, tuple(face.centre), inside=True)
    width, height = box[2] - box[0], box[3] - box[1]
    left, top, right, bottom = face.growth
    union = box[0] - left * width, box[1] - top * height, box[2] + right * width, box[3] + bottom * height
    return crop, mask_from_box(union, *size)


# ---- output


def retimed(segments: Iterator[np.ndarray], fps, out_fps, total: int) -> Iterator[np.ndarray]:
    """`total` frames at `out_fps` from segments (n, ...) at `fps`: each is what shows at the middle of its time.

    The last frame is held where the sound lasts longer. Equal rates pass through.
    """
    ratio, half, seen, made, last = exact_fps(fps) / exact_fps(out_fps), Fraction(1, 2), 0, 0, None
    for frames in segments:
        until = seen + len(frames)
        # frame j takes source frame floor((j + 1/2) ratio): count the j whose source lies before `until`
        stop = min(total, math.ceil(until / ratio - half))
        if stop > made:
            yield frames[[math.floor((j + half) * ratio) - seen for j in range(made, stop)]]
        seen, made, last = until, max(stop, made), frames[-1:]
    if made < total:
        yield np.repeat(last, total - made, axis=0)


def write_video(path, pipe: EmoPipeline, portrait, voice: Voice, *, name: str, fps=None, watch=None, **options) -> None:
    """Generates and writes an mp4 as it grows, with progress on stderr and one line about the result on stdout.

    It has ceil(seconds * fps) frames. After an error nothing is left, and what was under the name before stays.

    Args:
        name: of the progress bar. fps: None: the model's. watch: called with the frames (n, H, W, 3) just written.
        options: of `EmoPipeline.stream`.
    """
    fps = pipe.fps if fps is None else fps
    total = require_frames(voice.heard, fps)
    segments = retimed(pipe.stream(portrait, voice.heard, **options), pipe.fps, fps, total)
    writer = VideoWriter(path, pipe.size, fps, voice.track, audio_rate=voice.rate)
    if not sys.stderr.isatty():
        print(f"{name}: {total} frames; the first ones take longer, a program is compiled", file=sys.stderr)
    with writer, Progress(total, name, "frame") as progress:
        for frames in segments:
            writer.write(frames)
            progress.add(len(frames))
            if watch is not None:
                watch(frames)
    print(f"{path}: {total} frames, {total / float(exact_fps(fps)):.2f} s")


# ---- the command


def add_parser(subparsers) -> None:
    """Adds the verb `generate` to the command line."""
    parser = subparsers.add_parser("generate", help="make a talking video", description=__doc__)
    parser.add_argument("--portrait", required=True, help="image file: PNG, JPEG, WebP, ...")
    parser.add_argument("--audio", required=True, help="file with a sound track: WAV, MP3, MP4, ...")
    parser.add_argument("--out", required=True, help="mp4 file to write")
    add_model_arguments(parser)
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--solver", help="ddim or dpm++2m")
    parser.add_argument("--reference-scale", type=float, help="guidance towards the portrait; 1: none")
    parser.add_argument("--audio-scale", type=float, help="guidance towards the voice; 1: none")
    parser.add_argument("--speed", type=float, help="the head's rotation in degrees per frame, about 0.2 to 2")
    parser.add_argument("--face-box", metavar="X0,Y0,X1,Y1", help="the face in the portrait, in pixels")
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="of the frames, in pixels (default: the model's)")
    parser.add_argument("--clips", type=int, help="clips computed at a time; fewer show sooner and take less memory")
    parser.add_argument("--fps", type=float, help="of the file; frames are repeated or left out (default: the model's)")
    parser.set_defaults(main=main)


def add_model_arguments(parser) -> None:
    """--preset, --checkpoint and --seed."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", help=f"weights of the package (default {PRESET})")
    model.add_argument("--checkpoint", metavar="DIR", help="folder of emo export or of emo train")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other videos (default %(default)s)")


def parse_size(text: str) -> tuple[int, int]:
    """'512x768', width and height, as (height, width); ValueError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise ValueError(f"--size is {text!r}; expected WIDTHxHEIGHT in pixels, such as 512x768")
    return int(found[2]), int(found[1])


def load_model(args, size=None, **sampling) -> EmoPipeline:
    """The pipeline that --preset or --checkpoint names.

    Raises:
        ValueError: no such weights, an unknown field of `sampling`, or no device.
    """
    from emo_jax.cache import keep_programs
    from emo_jax.training.processes import check_devices
    from emo_jax.weights.store import BUNDLED

    preset = PRESET if args.preset is None else args.preset
    if preset not in BUNDLED:
        raise ValueError(f"preset {preset!r} is unknown; expected {', '.join(BUNDLED)}, or give --checkpoint DIR")
    keep_programs()
    check_devices()
    return EmoPipeline.from_pretrained(preset if args.checkpoint is None else args.checkpoint, size, **sampling)


def main(args) -> None:
    """Runs `emo generate`. What can be checked without the model is checked before it is loaded."""
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
    require_frames(voice.heard, args.fps or pipe.fps, args.audio)
    options |= dict(solver=args.solver, face_box=box)
    write_video(args.out, pipe, portrait, voice, name="generate", fps=args.fps, **options)

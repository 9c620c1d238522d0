"""`emo generate`: a portrait and a voice become a talking video.

emo generate --portrait me.jpg --audio song.mp3 --out me.mp4
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emo_jax.generation.inputs import check_options, load_portrait, load_voice, place
from emo_jax.media.timing import require_frames
from emo_jax.media.video_writer import VideoWriter


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
        from emo_jax.generation.sampler import check_sampling
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

        from emo_jax.media.loudness import normalise

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
        from emo_jax.generation.sampler import VideoSampler, check_sampling, mesh_for

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

"""The pipeline: generation with one set of weights."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from emo_jax.cache import keep_programs
from emo_jax.diffusion.guidance import guidance_mode
from emo_jax.faces.boxes import Box
from emo_jax.generation.inputs import (
    AudioLike,
    PortraitLike,
    check_options,
    check_size,
    load_portrait,
    load_voice,
    place_portrait,
)
from emo_jax.generation.sampler import Params, VideoSampler, check_sampling, mesh_for
from emo_jax.generation.video import Video
from emo_jax.media.loudness import normalise
from emo_jax.media.timing import require_frames
from emo_jax.models.emo import EMO
from emo_jax.weights.store import load_model


class EmoPipeline:
    """Generates talking videos from a portrait and a voice.

        pipe = EmoPipeline.from_pretrained("tiny")
        pipe("portrait.png", "voice.wav").save("out.mp4")

    A program is compiled at the first use of a solver, a number of steps and a guidance mode. Other portraits, voices,
    lengths, seeds, speeds and guidance scales reuse it.

    Args:
        emo: the networks (`models.emo.build`).
        params: their parameters.

    Attributes:
        config: the config of the networks, with the defaults of `stream` in `config.sampling`.
        params: the parameters.
    """

    def __init__(self, emo: EMO, params: Params):
        self.config: ConfigDict = emo.config
        self.params = params
        self._emo = emo
        self._samplers: dict[tuple[str, int, str], VideoSampler] = {}

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | os.PathLike, size: int | Sequence[int] | None = None, **sampling: Any
    ) -> "EmoPipeline":
        """Loads a pipeline, and makes JAX keep compiled programs for later processes (see `cache.keep_programs`).

        Args:
            name_or_dir: a preset ("tiny"), a folder written by `emo export`, or the folder of an `emo train` run.
            size: (height, width) of the frames, or the side of square ones, in place of the trained size. The bundled
                weights accept no other size; for other weights a warning names the trained size.
            **sampling: fields of the config's `sampling` to replace: solver, steps, clips (per segment), ...

        Raises:
            ValueError: there are no such weights, the weights belong to another config, or a field of `sampling` is
                unknown or out of range.
            FloatingPointError: all weights of a part are zero, or weights of the VAE are not finite.
        """
        keep_programs()
        emo, params = load_model(name_or_dir, None if size is None else check_size(size))
        fields = emo.config.sampling
        unknown = sorted(set(sampling) - set(fields))
        if unknown:
            raise ValueError(f"sampling has no field {unknown[0]!r}; expected one of {', '.join(fields)}")
        try:
            fields.update(sampling)
        except TypeError as error:
            raise ValueError(f"sampling: {error}") from error
        check_sampling(fields, emo.config.diffusion.train_steps)
        _check_params(params, name_or_dir)
        return cls(emo, params)

    @property
    def fps(self) -> float:
        """Frames per second of the generated video."""
        return self.config.clip.fps

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames in pixels."""
        height, width = self.config.clip.image_size
        return height, width

    def __call__(self, portrait: PortraitLike, audio: AudioLike, **options: Any) -> Video:
        """Generates a video and returns it in memory.

        Args:
            portrait: as in `stream`.
            audio: as in `stream`. An array becomes the sound track unchanged.
            **options: keyword arguments of `stream`.

        Raises:
            ValueError: an input cannot be used.
        """
        voice = load_voice(audio)
        frames = np.concatenate(list(self.stream(portrait, voice.samples, **options)))
        return Video(frames, self.fps, voice.track.read(), voice.track.rate)

    def stream(
        self,
        portrait: PortraitLike,
        audio: AudioLike,
        *,
        seed: int = 0,
        steps: int | None = None,
        solver: str | None = None,
        reference_scale: float | None = None,
        audio_scale: float | None = None,
        speed: float | None = None,
        face_box: Box | None = None,
    ) -> Iterator[UInt8[np.ndarray, "frames height width 3"]]:
        """Generates a video segment by segment, in memory that does not grow with its length.

        Validates eagerly: raises on call, not when the first segment is requested.

        Args:
            portrait: a path, a Pillow image, or uint8 RGB (height, width, 3). It is cropped around the face.
            audio: a path, or float32 (samples,) in [-1, 1] at 16 kHz. Its loudness is levelled as in training.
            seed: 0 to 2**32 - 1. Equal seeds and inputs give equal frames.
            steps: denoising steps; None for the config's, as for the arguments that follow.
            solver: "ddim" or "dpm++2m".
            reference_scale: guidance towards the portrait. Set both scales to 1 to disable guidance.
            audio_scale: guidance towards the voice.
            speed: head rotation speed in degrees per frame, for all frames.
            face_box: (x0, y0, x1, y1) of the face in pixels of the portrait, forehead to chin; None to detect it.

        Returns:
            An iterator of the segments' frames, ceil(seconds * fps) frames together. It raises FloatingPointError if
            the latents of a segment are not finite or implausibly large.

        Raises:
            ValueError: an input cannot be used.
        """
        image = load_portrait(portrait)
        samples = load_voice(audio).samples
        require_frames(samples, self.fps)
        check_options(seed=seed, steps=steps, speed=speed, reference_scale=reference_scale, audio_scale=audio_scale)
        name = portrait if isinstance(portrait, str | os.PathLike) else "the portrait"
        crop, mask = place_portrait(image, self.config.clip, face_box, name)
        sampler, scales = self._sampler(steps, solver, reference_scale, audio_scale)
        segments = sampler.stream(
            crop[None], mask[None], normalise(samples)[None], speed=speed, scales=scales, key=jax.random.key(seed)
        )
        return (frames[0] for frames in segments)

    def compilations(self) -> int:
        """Returns how many programs have been compiled: one per solver, number of steps and guidance mode used."""
        return sum(sampler.compilations() for sampler in self._samplers.values())

    def _sampler(
        self, steps: int | None, solver: str | None, reference_scale: float | None, audio_scale: float | None
    ) -> tuple[VideoSampler, tuple[float, float]]:
        """Returns the sampler for these options, and the guidance scales."""
        options = dict(steps=steps, solver=solver, reference_scale=reference_scale, audio_scale=audio_scale)
        changes = {name: value for name, value in options.items() if value is not None}
        sampling = ConfigDict({**self.config.sampling, **changes})
        check_sampling(sampling, self.config.diffusion.train_steps)
        scales = float(sampling.reference_scale), float(sampling.audio_scale)
        mode = guidance_mode(*scales)
        key = sampling.solver, sampling.steps, mode
        if key not in self._samplers:
            mesh = mesh_for(mode, self.config.clip.frames)
            placed = (sampler.params for sampler in self._samplers.values() if sampler.mesh == mesh)
            self._samplers[key] = VideoSampler(self._emo, next(placed, self.params), sampling, mesh=mesh)
        return self._samplers[key], scales


def _check_params(params: Params, name: object) -> None:
    """Checks for weights that give a black video from plausible latents.

    Values that are not finite in other parts than the VAE reach the latents, which `VideoSampler.stream` checks.

    Raises:
        FloatingPointError: all weights of a part are zero, or weights of the VAE are not finite.
    """
    for part, tree in params.items():
        leaves = jax.tree.leaves(tree)
        if leaves and not any(np.any(leaf) for leaf in leaves):
            raise FloatingPointError(f"{name}: all weights of {part} are zero; train or export them again")
    if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params["vae"])):
        raise FloatingPointError(f"{name}: weights of vae are NaN or infinite; train or export them again")

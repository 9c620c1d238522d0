"""The inputs of a video, checked and brought to the form that the sampler takes."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from emo_jax.faces.boxes import Box
from emo_jax.generation.face_inputs import face_masks, variant_inputs
from emo_jax.generation.framing import MAX_SIZE, Canvas, check_framing
from emo_jax.generation.inputs import (
    AudioLike,
    PortraitLike,
    check_options,
    load_portrait,
    load_voice,
    place_portrait,
)
from emo_jax.generation.options import check_sampling
from emo_jax.generation.speed import speeds_of_frames
from emo_jax.media.loudness import normalise
from emo_jax.media.timing import require_frames
from emo_jax.models.emo import EMO


class Prepared(NamedTuple):
    """The inputs of one video, as the sampler takes them.

    Attributes:
        crop: (height, width, 3), the portrait's square.
        masks: (1, height, width, 1), regions in which the face may move.
        samples: the voice, levelled.
        speed: degrees per frame, a number or (frames,); None for the config's.
        seed: the seed of the noise.
        total: number of frames.
        canvas: pastes frames into the portrait; None for the framing "crop".
        size: (height, width) of the frames.
        sampling: the config's `sampling` with the changes for this video.
        on_window: see `EmoPipeline.stream`.
        extra: face, regions and branch_weights, as `VideoSampler.sample` takes them; missing ones are left out.
    """

    crop: UInt8[np.ndarray, "height width 3"]
    masks: UInt8[np.ndarray, "1 height width 1"]
    samples: Float[np.ndarray, " samples"]
    speed: Any
    seed: int
    total: int
    canvas: Canvas | None
    size: tuple[int, int]
    sampling: ConfigDict
    on_window: Callable[[int, int], None] | None
    extra: dict[str, Any]

    @property
    def scales(self) -> tuple[float, float]:
        """The guidance scales."""
        return float(self.sampling.reference_scale), float(self.sampling.audio_scale)

    def group(self) -> tuple:
        """Returns a value that is equal for videos that one call of a program can make."""
        weights = self.extra.get("branch_weights")
        given = tuple(sorted(name for name, value in self.extra.items() if value is not None))
        branches = None if weights is None else tuple(weights)
        return self.sampling.solver, self.sampling.steps, self.scales, self.canvas is None, given, branches


def prepare(
    emo: EMO,
    portrait: PortraitLike,
    audio: AudioLike,
    *,
    seed: int = 0,
    speed: float | np.ndarray | None = None,
    face_box: Box | int | None = None,
    framing: str = "portrait",
    max_size: int = MAX_SIZE,
    face_embedding: Any = None,
    steps: int | None = None,
    solver: str | None = None,
    reference_scale: float | None = None,
    audio_scale: float | None = None,
    on_window: Callable[[int, int], None] | None = None,
    **weights: float | None,
) -> Prepared:
    """Checks the arguments of `EmoPipeline.stream` and places the portrait.

    Raises:
        ValueError: an input cannot be used.
    """
    config = emo.config
    image = load_portrait(portrait)
    samples = load_voice(audio).samples
    total = require_frames(samples, config.clip.fps)
    check_framing(framing, max_size)
    scales = dict(reference_scale=reference_scale, audio_scale=audio_scale)
    check_options(seed=seed, steps=steps, speed=speed, **scales)
    if speed is not None and emo.speed_encoder is None:
        raise ValueError("speed is given, but these weights have no speed layers; leave it out")
    extra = variant_inputs(emo, config.sampling, face_embedding, weights)
    name = portrait if isinstance(portrait, str | os.PathLike) else "the portrait"
    placement = place_portrait(image, config.clip, face_box, name)
    masks, extra["regions"] = face_masks(emo, placement)
    canvas = Canvas(image, placement, emo.latent_shape[:2], max_size) if framing == "portrait" else None
    given = {name: v for name, v in dict(steps=steps, solver=solver, **scales).items() if v is not None}
    sampling = ConfigDict({**config.sampling, **given})
    check_sampling(sampling, config.diffusion.train_steps)
    height, width = config.clip.image_size
    return Prepared(
        crop=placement.crop,
        masks=masks,
        samples=normalise(samples),
        speed=None if speed is None else speeds_of_frames(speed, total, config.clip.fps),
        seed=seed,
        total=total,
        canvas=canvas,
        size=(height, width) if canvas is None else canvas.size,
        sampling=sampling,
        on_window=on_window,
        extra=extra,
    )

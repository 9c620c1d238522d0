"""Checks that stored latents were made by the encoders of the run that reads them."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from emo_jax.data import latents
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import replicated
from emo_jax.models.emo import EMO
from emo_jax.models.parts import ENCODERS

TOLERANCE = 5e-3
"""Relative difference between mean magnitudes above which parameters differ; rounding to bfloat16 stays below it."""


def check_encoders(sources: Sequence[object], emo: EMO, mesh: Mesh, flat: Mapping[str, ArrayLike]) -> None:
    """Checks that the latents among a run's sources were encoded by this run's VAE and wav2vec 2.0.

    `emo prepare latents` stores the mean magnitude of every encoder parameter; they are compared with this run's.

    Args:
        sources: the sources of `data.pipeline.open_sources`; records are skipped.
        emo: the networks.
        mesh: the mesh that `flat` is placed on.
        flat: the run's parameters {path: array}.

    Raises:
        ValueError: other shapes, layers or weights than this run's, or a stage that trains on pixels.
    """
    stored = [source for source in sources if isinstance(source, latents.LatentSource)]
    if not stored:
        return
    _check_layout(stored[0], emo)

    def mean_magnitudes(params: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
        return {path: jnp.abs(a.astype(jnp.float32)).mean() for path, a in params.items()}

    encoders = {path: a for path, a in flat.items() if ENCODERS.match(path)}
    current = processes.compile_together(jax.jit(mean_magnitudes, out_shardings=replicated(mesh)))(encoders)
    for source in stored:
        for path, expected in source.weights.items():
            if path in current and abs(float(current[path]) - expected) > TOLERANCE * max(expected, 1e-6):
                raise ValueError(
                    f"{source.directory} was encoded with other weights than this run's ({path} differs); encode the "
                    "records again"
                )


def _check_layout(source: latents.LatentSource, emo: EMO) -> None:
    config = emo.config
    directory, layout = source.directory, source.layout
    if config.train.stage == "vae":
        raise ValueError(f"train.stage vae needs pixels, but {directory} holds latents; use the records themselves")
    if layout.latent_shape != emo.latent_shape:
        raise ValueError(
            f"{directory} holds latents of shape {layout.latent_shape}; this model expects {emo.latent_shape}"
        )
    layers = tuple(config.model.audio.layers)
    if layout.layers and emo.audio_projector and (emo.audio_encoder is None or layers != layout.layers):
        raise ValueError(
            f"{directory} holds wav2vec 2.0 features of layers {layout.layers}, but model.audio has encoder "
            f"{config.model.audio.encoder!r} and layers {layers}; encode the records again"
        )

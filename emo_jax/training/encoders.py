"""Records encoded once by the VAE (and wav2vec 2.0), so that training need not do it in every step.

Every process encodes shards of its own on its own devices; a shard that is there is never made again.
"""

import jax
import jax.numpy as jnp

from emo_jax.data import latents
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import replicated
from emo_jax.models.parts import ENCODERS

TOLERANCE = 5e-3  # of their mean magnitudes: bfloat16 moves these by less, another network by more


def check_encoders(sources, emo, mesh, flat):
    """Checks that the latents among the sources of a run were made by the encoders that it has.

    Args:
        sources: of data.pipeline.open_sources. flat: the run's params {path: array}, as they lie on the mesh.

    Raises:
        ValueError: they were not, or the stage trains on pictures.
    """
    config, sources = emo.config, [source for source in sources if isinstance(source, latents.LatentSource)]
    if not sources:
        return
    where, layout = sources[0].directory, sources[0].layout
    if config.train.stage == "vae":
        raise ValueError(f"the stage vae trains on pictures, but {where} holds latents; give it the records")
    if layout.latent_shape != emo.latent_shape:
        raise ValueError(f"{where} holds latents {layout.latent_shape}, but this model's are {emo.latent_shape}")
    layers = tuple(config.model.audio.layers)
    if layout.layers and emo.audio_projector and (emo.audio_encoder is None or layers != layout.layers):
        raise ValueError(
            f"{where} holds audio features of wav2vec 2.0's layers {layout.layers}, but model.audio has encoder "
            f"{config.model.audio.encoder!r} and layers {layers}; encode anew"
        )

    def magnitudes(flat):
        return {path: jnp.abs(a.astype(jnp.float32)).mean() for path, a in flat.items()}

    encoders = {path: a for path, a in flat.items() if ENCODERS.match(path)}
    found = processes.together(jax.jit(magnitudes, out_shardings=replicated(mesh)))(encoders)
    for source in sources:
        for path, made in source.weights.items():
            if path in found and abs(float(found[path]) - made) > TOLERANCE * max(made, 1e-6):
                raise ValueError(
                    f"{source.directory} was encoded by other weights than this run has ({path}); encode anew"
                )

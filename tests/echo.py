"""An EMO whose networks are formulas, so that the Backbone's inputs can be recorded and predicted."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.models.emo import EMO, build
from emo_jax.models.vae import to_float, to_uint8


@dataclasses.dataclass(frozen=True)
class EchoEMO(EMO):
    """Latents are the mean brightness of their pixels, features are latents, tokens are log-mel features.

    Attributes:
        rule: (latents, timesteps, conditions) -> prediction; replaces the Backbone.
    """

    rule: Callable | None = None

    def encode(self, params, images):
        factor = self.vae.config.factor
        *lead, height, width, _ = images.shape
        tiles = to_float(images).reshape(*lead, height // factor, factor, width // factor, factor, 3)
        grey = tiles.mean(axis=(-4, -2, -1))[..., None]
        return jnp.broadcast_to(grey, (*grey.shape[:-1], self.vae.config.latent_channels))

    def decode(self, params, latents):
        factor = self.vae.config.factor
        big = jnp.repeat(jnp.repeat(latents[..., :3], factor, axis=-3), factor, axis=-2)
        return to_uint8(big)

    def reference_features(self, params, latents, face=None):
        return None if latents.shape[1] == 0 else {"layer": latents}

    def audio_tokens(self, params, features):
        if features is None:
            return None
        m = self.config.clip.audio_window
        return features[:, m : features.shape[1] - m]

    def speed_features(self, params, speed):
        m = self.config.clip.audio_window
        return None if speed is None else speed[:, m : speed.shape[1] - m, None]

    def location(self, params, mask):
        return mask[:, None].astype(jnp.float32)

    def denoise(self, params, latents, timesteps, conditions):
        return self.rule(latents, timesteps, conditions)


def echo(config, rule):
    """Returns the EchoEMO of a config."""
    emo = build(config)
    return EchoEMO(**{field.name: getattr(emo, field.name) for field in dataclasses.fields(EMO)}, rule=rule)


class RecordingRule:
    """A rule that predicts `value` everywhere and stores the inputs of every call, in order, as numpy arrays."""

    def __init__(self, value=0.5):
        self.value, self.calls = value, []

    def __call__(self, latents, timesteps, conditions):
        present = {name: v for name, v in vars(conditions).items() if v is not None and name != "temporal"}
        self.temporal = conditions.temporal
        jax.debug.callback(self._record, latents, timesteps, present, ordered=True)
        return jnp.full(latents.shape, self.value)

    def _record(self, latents, timesteps, present):
        self.calls.append(jax.tree.map(np.asarray, dict(present, latents=latents, timesteps=timesteps)))


def oracle(schedule, x0):
    """Returns a rule that knows the clean latents x0 and the schedule that added the noise."""
    from emo_jax.diffusion.schedule import coefficients, target

    def rule(latents, timesteps, conditions):
        alpha, sigma = coefficients(schedule, timesteps, latents)
        noise = (latents - alpha * x0) / sigma
        return target(schedule, schedule.prediction, jnp.full(latents.shape, x0), noise, timesteps)

    return rule

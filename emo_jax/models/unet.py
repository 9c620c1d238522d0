"""SD1.5's UNet: EMO's Backbone with every part on, ReferenceNet with every part off (Section 3.2)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emo_jax.distributed.activations import constrain
from emo_jax.distributed.parameters import GATHERED, splits_parameters
from emo_jax.models.attention import Conditions, SpatialTransformer
from emo_jax.models.layers import Downsample, GroupNorm, ResnetBlock, TimestepEmbedding, Upsample, conv
from emo_jax.models.placement import gathered
from emo_jax.models.temporal import MotionModule


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and parts of one UNet.

    Attributes:
        channels: width of each level, finest first; attention: which levels have spatial transformers.
        layers: resnets per down level (up levels have one more). heads: of spatial and temporal attention.
        groups: of GroupNorm. latent_channels: of input and output.
        reference: 'cross', 'concat' or 'off'. audio, temporal, speed: which parts exist.
        positions: whether cross-attention to the reference is told places.
        features_only: end at the last feature and return features alone (ReferenceNet).
        remat: what the backward pass recomputes, instead of keeping it: none | blocks (all inside a resnet, spatial
            transformer, temporal module or resampling) | dots (the same, but for the results of matrix products).
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    heads: int
    groups: int
    latent_channels: int
    reference: str = "off"
    positions: bool = False
    audio: bool = False
    temporal: bool = False
    speed: bool = False
    features_only: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @property
    def levels(self):
        return len(self.channels)


class Block(nn.Module):
    """A level of the UNet: per layer a resnet, a spatial transformer, a temporal module; then a resampling.

    Maps x (B, F, H, W, C), with the skips of its layers for an up level, to (x, outputs, features):
    outputs are the skips for later, features {layer: (B, F, H, W, C)} what the layer's self-attention puts out
    (its resnet, in a level without attention).
    """

    config: UNetConfig
    level: str
    features: int
    layers: int
    attention: bool
    resample: str | None = None
    is_last: bool = False

    @nn.compact
    def __call__(self, x, temb, conditions, skips=None):
        outputs, features = [], {}
        for j in range(self.layers):
            if skips is not None:
                x = constrain(jnp.concatenate([x, skips[j]], axis=-1), "spatial")
            x = self._resnet(j, x, temb)
            x, features[f"{self.level}.{j}"] = self._attend(j, x, conditions)
            outputs.append(x)
        if self.resample == "down":
            x = self._part(Downsample, self.features, dtype=self.config.dtype, name="downsamplers_0")(x)
            x = constrain(x, "spatial")
            outputs.append(x)
        elif self.resample == "up":
            x = self._part(Upsample, self.features, dtype=self.config.dtype, name="upsamplers_0")(x)
            x = constrain(x, "spatial")
        elif self.resample == "mid":
            x = self._resnet(1, x, temb)
        return x, outputs, features

    def _part(self, module, *args, **fields):
        return part_of_level(module, self.config)(*args, **fields)

    def _resnet(self, j, x, temb):
        c = self.config
        x = self._part(ResnetBlock, self.features, c.groups, 1e-5, c.dtype, name=f"resnets_{j}")(x, temb)
        return constrain(x, "spatial")

    def _attend(self, j, x, conditions):
        c, layer = self.config, f"{self.level}.{j}"
        feature = x
        if self.attention:
            ends_here = c.features_only and self.is_last and j == self.layers - 1
            fields = c.heads, c.groups, c.reference, c.audio, ends_here, c.positions, c.dtype
            transformer = self._part(SpatialTransformer, *fields, name=f"attentions_{j}")
            x, feature = transformer(x, _at(conditions.reference, layer), conditions.audio)
            x = constrain(x, "spatial")
        if c.temporal and conditions.temporal:
            module = self._part(MotionModule, c.heads, c.groups, c.speed, c.dtype, name=f"motion_modules_{j}")
            x = module(x, _at(conditions.motion, layer), conditions.speed)
        return x, feature


def _at(features, layer):
    return None if features is None else features[layer]


def part_of_level(module, c):
    """A module's class, with what UNetConfig.remat asks for and its parameters gathered where a mesh splits them."""
    policies = jax.checkpoint_policies
    policy = {"blocks": None, "dots": policies.dots_with_no_batch_dims_saveable}.get(c.remat)
    if splits_parameters():
        module = nn.map_variables(module, "params", functools.partial(_gathered, c.dtype))
        if c.remat == "none":
            return nn.remat(module, policy=policies.save_anything_except_these_names(GATHERED))
    return module if c.remat == "none" else nn.remat(module, policy=policy)


def _gathered(dtype, variables):
    return {"params": gathered(variables["params"], dtype)}


class UNet(nn.Module):
    """The UNet on latents (B, F, h, w, c) at timesteps (B,).

    Returns (prediction (B, F, h, w, c), features); with `features_only` the prediction is None.
    Any h and w that are multiples of 2 ** (levels - 1) are served by the same parameters.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, latents, timesteps, conditions=Conditions()):  # noqa: B008 (an immutable default)
        c = self.config
        temb = TimestepEmbedding(c.channels[0], c.dtype, name="time_embedding")(timesteps)[:, None]
        x = conv(c.channels[0], dtype=c.dtype, name="conv_in")(latents.astype(c.dtype))
        if conditions.location is not None:
            x = x + conditions.location
        x = constrain(x, "spatial")
        skips, features = [x], {}

        for i, width in enumerate(c.channels):
            name = f"down_blocks_{i}"
            resample = "down" if i < c.levels - 1 else None
            x, outputs, found = Block(c, name, width, c.layers, c.attention[i], resample, name=name)(
                x, temb, conditions
            )
            skips, features = skips + outputs, features | found

        x, _, found = Block(c, "mid_block", c.channels[-1], 1, True, "mid", name="mid_block")(x, temb, conditions)
        features |= found

        for i, width in enumerate(reversed(c.channels)):
            name, is_last = f"up_blocks_{i}", i == c.levels - 1
            taken = [skips.pop() for _ in range(c.layers + 1)]
            resample = None if is_last else "up"
            level = Block(c, name, width, c.layers + 1, c.attention[-1 - i], resample, is_last, name=name)
            x, _, found = level(x, temb, conditions, taken)
            features |= found

        if c.features_only:
            return None, features
        x = nn.silu(GroupNorm(c.groups, 1e-5, c.dtype, name="conv_norm_out")(x))
        return conv(c.latent_channels, dtype=jnp.float32, name="conv_out")(x), features

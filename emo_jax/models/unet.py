"""SD1.5's UNet: EMO's Backbone with all parts, ReferenceNet without them (Section 3.2)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from emo_jax.arrays import AnyArray
from emo_jax.distributed.activations import constrain
from emo_jax.distributed.parameters import GATHERED, splits_parameters
from emo_jax.models.attention import SpatialTransformer
from emo_jax.models.audio_module import AudioModule
from emo_jax.models.conditions import LATENTS, Conditions, Features
from emo_jax.models.initializers import FAN_IN_NORMAL, Initializer
from emo_jax.models.layers import (
    Downsample,
    GroupNorm,
    GuidanceEmbedding,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    conv,
)
from emo_jax.models.placement import gathered
from emo_jax.models.temporal import MotionModule


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and parts of one UNet.

    Attributes:
        channels: width of each level, finest first.
        attention: which levels have spatial transformers.
        layers: resnets per down level; up levels have one more.
        heads: heads of spatial and temporal attention.
        groups: groups of GroupNorm.
        latent_channels: channels of input and output.
        reference: reference-attention: 'cross', 'concat', 'shared' or 'off'; see `TransformerBlock`.
        positions: whether reference-attention gets the positions of tokens in the map.
        audio: whether spatial transformers have audio-attention.
        temporal: whether layers have temporal modules.
        speed: whether temporal modules have speed layers.
        speed_positions: whether speed features get the positions of their frames.
        face: whether spatial transformers attend to the tokens of a face embedding.
        audio_branches: whether audio-attention is in audio modules behind the spatial transformers, with a branch for
            each region of the picture, instead of in them.
        temporal_levels: the levels that have temporal modules: 'all', or 'attention' for those with spatial
            transformers.
        norm_feature: whether a layer's feature is the normalised input of its self-attention instead of its output.
        audio_gain: factor of the output of spatial transformers' audio-attention.
        image_inputs: whether the network also gets the latents of the reference and of the last motion frame at its
            input, in every frame of the clip, as Stable Video Diffusion does.
        guidance_inputs: whether the network also gets guidance scales, and then predicts what guidance combines.
        features_only: whether the network ends at its last feature and returns features only (ReferenceNet).
        remat: what the backward pass recomputes: 'none'; 'blocks': everything inside a resnet, spatial transformer,
            temporal module or resampling layer; 'dots': as 'blocks', except the results of matrix products.
        added_init: initialiser of the outputs of audio-attention, temporal modules and speed layers.
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
    added_init: Initializer = FAN_IN_NORMAL
    speed_positions: bool = False
    face: bool = False
    audio_branches: bool = False
    temporal_levels: str = "all"
    norm_feature: bool = False
    audio_gain: float = 1.0
    image_inputs: bool = False
    guidance_inputs: bool = False

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.channels)


DEEP = "deep"
"""Key of the features that the last level receives from the levels below it."""


class Block(nn.Module):
    """A level of the UNet: layers of resnet, spatial transformer, audio and temporal module, then a resampling layer.

    Attributes:
        config: the UNet's config.
        level: name of the level, the prefix of its layers' names.
        features: width of the level.
        layers: number of layers.
        attention: whether layers have spatial transformers.
        resample: 'down', 'up', 'mid' (a second resnet) or None.
        is_last: whether this is the UNet's last level.
        audio_widths: inner width of each layer's audio module.
    """

    config: UNetConfig
    level: str
    features: int
    layers: int
    attention: bool
    resample: str | None = None
    is_last: bool = False
    audio_widths: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[AnyArray, "batch frames height width channels"],
        temb: Float[AnyArray, "batch 1 embedding"],
        conditions: Conditions,
        skips: list[Float[AnyArray, "batch frames height width _"]] | None = None,
    ) -> tuple[Float[AnyArray, "batch frames _ _ _"], list[Float[AnyArray, "batch frames _ _ _"]], Features]:
        """Returns (x, outputs, features).

        Args:
            x: input maps.
            temb: timestep embedding.
            conditions: conditions of the Backbone.
            skips: for an up level, the skip connections of its layers.

        Returns:
            The result; the layers' outputs, which are the skip connections of the up levels; and {layer: the output of
            its self-attention}, or of its resnet in a level without attention.
        """
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

    def _part(self, module: type[nn.Module], *args: Any, **fields: Any) -> nn.Module:
        return part_of_level(module, self.config)(*args, **fields)

    def _resnet(self, j: int, x: AnyArray, temb: AnyArray) -> AnyArray:
        c = self.config
        x = self._part(ResnetBlock, self.features, c.groups, 1e-5, c.dtype, name=f"resnets_{j}")(x, temb)
        return constrain(x, "spatial")

    def _attend(self, j: int, x: AnyArray, conditions: Conditions) -> tuple[AnyArray, AnyArray]:
        """Computes what follows a layer's resnet; returns the result and the layer's feature."""
        c, layer = self.config, f"{self.level}.{j}"
        feature = x
        if self.attention:
            feature_only = c.features_only and self.is_last and j == self.layers - 1
            modes = c.reference, c.audio and not c.audio_branches, c.face, c.norm_feature, feature_only, c.positions
            transformer = self._part(
                SpatialTransformer, c.heads, c.groups, *modes, c.dtype, c.added_init, c.audio_gain,
                name=f"attentions_{j}",
            )  # fmt: skip
            reference = _at_layer(conditions.reference, layer)
            x, feature = transformer(x, reference, conditions.audio, conditions.face, conditions.reference_on)
            x = constrain(x, "spatial")
        if self.attention and c.audio and c.audio_branches and conditions.audio is not None:
            fields = c.heads, c.groups, self.audio_widths[j], c.dtype, c.added_init
            regions = next(a for a in conditions.regions if a.shape[1:3] == x.shape[2:4])
            module = self._part(AudioModule, *fields, name=f"audio_modules_{j}")
            x = module(x, conditions.audio, regions, conditions.branch_weights)
        if c.temporal and conditions.temporal and (self.attention or c.temporal_levels == "all"):
            fields = c.heads, c.groups, c.speed, c.dtype, c.added_init, c.speed_positions
            module = self._part(MotionModule, *fields, name=f"motion_modules_{j}")
            x = module(x, _at_layer(conditions.motion, layer), conditions.speed)
        return x, feature


def _at_layer(features: Features | None, layer: str) -> AnyArray | None:
    return None if features is None else features[layer]


def part_of_level(module: Any, config: UNetConfig) -> Any:
    """Returns a module class with the rematerialisation of a config.

    If a mesh splits parameters, the class gathers its parameters when it runs.
    """
    policies = jax.checkpoint_policies
    policy = {"blocks": None, "dots": policies.dots_with_no_batch_dims_saveable}.get(config.remat)
    if splits_parameters():
        module = nn.map_variables(module, "params", functools.partial(_gathered_variables, config.dtype))
        if config.remat == "none":
            return nn.remat(module, policy=policies.save_anything_except_these_names(GATHERED))
    return module if config.remat == "none" else nn.remat(module, policy=policy)


def _gathered_variables(dtype: Any, variables: Any) -> dict[str, Any]:
    return {"params": gathered(variables["params"], dtype)}


class UNet(nn.Module):
    """The UNet. Its parameters serve all heights and widths that are multiples of 2 ** (levels - 1).

    Attributes:
        config: sizes and parts.
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        latents: Float[AnyArray, "batch frames height width channels"],
        timesteps: Num[AnyArray, " batch"],
        conditions: Conditions = Conditions(),  # noqa: B008 (an immutable default)
        deep: Float[AnyArray, "batch frames height width deep_channels"] | None = None,
    ) -> tuple[Float[AnyArray, "batch frames height width channels"] | None, Features]:
        """Returns the prediction and the features of all layers; with `features_only` the prediction is None.

        Args:
            latents: noisy latents.
            timesteps: of the samples.
            conditions: the conditions.
            deep: `features[DEEP]` of another timestep, which replaces the levels below the first (DeepCache, Ma et al.
                2024, arXiv 2312.00858).
        """
        c = self.config
        temb = TimestepEmbedding(c.channels[0], c.dtype, name="time_embedding")(timesteps)[:, None]
        if c.guidance_inputs and conditions.scales is not None:
            guidance = GuidanceEmbedding(c.channels[0], c.dtype, name="guidance_embedding")
            temb = temb + guidance(conditions.scales)[:, None]
        x = conv(c.channels[0], dtype=c.dtype, name="conv_in")(latents.astype(c.dtype))
        if conditions.location is not None:
            x = x + conditions.location
        for name, image in self._images(conditions, len(x)).items():
            x = x + conv(c.channels[0], dtype=c.dtype, name=f"conv_in_{name}")(image)
        x = constrain(x, "spatial")
        skips, features = [x], {}

        for i, width in enumerate(c.channels if deep is None else c.channels[:1]):
            name = f"down_blocks_{i}"
            resample = "down" if i < c.levels - 1 and deep is None else None
            audio_widths = (c.channels[max(i - 1, 0)], *[width] * (c.layers - 1))  # hallo's layers, as released
            level = Block(c, name, width, c.layers, c.attention[i], resample, audio_widths=audio_widths, name=name)
            x, outputs, level_features = level(x, temb, conditions)
            skips, features = skips + outputs, features | level_features

        if deep is None:
            fields = c, "mid_block", c.channels[-1], 1, True, "mid"
            x, _, level_features = Block(*fields, audio_widths=c.channels[-1:], name="mid_block")(x, temb, conditions)
            features |= level_features
        else:
            x = deep

        for i, width in enumerate(reversed(c.channels)):
            name, is_last = f"up_blocks_{i}", i == c.levels - 1
            if is_last and not c.features_only:
                features[DEEP] = x
            elif not is_last and deep is not None:
                continue
            level_skips = [skips.pop() for _ in range(c.layers + 1)]
            resample = None if is_last else "up"
            audio_widths = (c.channels[max(c.levels - 2 - i, 0)],) * (c.layers + 1)
            attention = c.attention[-1 - i]
            level = Block(c, name, width, c.layers + 1, attention, resample, is_last, audio_widths, name=name)
            x, _, level_features = level(x, temb, conditions, level_skips)
            features |= level_features

        if c.features_only:
            return None, features
        x = nn.silu(GroupNorm(c.groups, 1e-5, c.dtype, name="conv_norm_out")(x))
        x = conv(c.latent_channels, dtype=jnp.float32, name="conv_out")(x)
        return x, features

    def _images(self, conditions: Conditions, batch: int) -> dict[str, AnyArray]:
        """Returns the images at the input (batch, 1, height, width, channels), zeros for samples without them."""
        found = {}
        if self.config.image_inputs and conditions.reference is not None:
            found["reference"] = conditions.reference[LATENTS]
        if self.config.image_inputs and conditions.temporal and conditions.motion is not None:
            found["motion"] = conditions.motion[LATENTS]
        missing = {name: ((batch - len(image), 0), *[(0, 0)] * 4) for name, image in found.items()}
        return {name: jnp.pad(image, missing[name]).astype(self.config.dtype) for name, image in found.items()}

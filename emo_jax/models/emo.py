"""EMO: all networks of a config, as pure functions of one params tree (Section 3)."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt8
from ml_collections import ConfigDict, FrozenConfigDict

from emo_jax.arrays import AnyArray
from emo_jax.models.audio_encoder import features_shape
from emo_jax.models.audio_projector import AudioProjector
from emo_jax.models.checks import RETIRED, check_model, check_retired
from emo_jax.models.conditioning import encode_images, known_images, with_null
from emo_jax.models.conditions import BRANCHES, Conditions, Features, regions_of_mask
from emo_jax.models.config_schema import check_fields
from emo_jax.models.face_locator import FaceLocator
from emo_jax.models.face_projector import FaceProjector
from emo_jax.models.hearing import Encoder, build_encoder, features_of_waveforms, smallest_input
from emo_jax.models.initializers import FAN_IN_NORMAL, ZEROS, declarations, require_declarations
from emo_jax.models.placement import part_variables
from emo_jax.models.reference_net import features as reference_net_features
from emo_jax.models.reference_net import reference_net
from emo_jax.models.speed_encoder import SpeedEncoder
from emo_jax.models.unet import UNet, UNetConfig
from emo_jax.models.vae import VAE, VAEConfig, to_float, to_uint8
from emo_jax.models.wav2vec2 import Taps

Params = Mapping[str, Any]
"""{part: nested params of its network}."""
Latents = Float[AnyArray, "batch frames height width channels"]

_LARGE = 256 * 256  # pixels of a frame above which frames are encoded one at a time


@dataclasses.dataclass(frozen=True)
class EMO:
    """The networks of a config; a part that the config switches off is None and has no parameters.

    The params tree has one branch per part: vae, backbone, reference_net, face_locator, audio_encoder (none for log-mel
    spectra), audio_projector, speed_encoder, face_projector.

    Attributes:
        config: the full config, frozen.
        vae: images to latents and back.
        backbone: the denoising network.
        reference_net: features of the reference image and the motion frames.
        face_locator: encodes the mask of face boxes.
        audio_encoder: wav2vec 2.0 or Whisper's encoder.
        audio_projector: audio features to audio tokens.
        speed_encoder: head rotation speeds to speed features.
        face_projector: identity embedding of the face to tokens.
    """

    config: ConfigDict
    vae: VAE
    backbone: UNet
    reference_net: UNet | None
    face_locator: FaceLocator | None
    audio_encoder: Encoder | None
    audio_projector: AudioProjector | None
    speed_encoder: SpeedEncoder | None
    face_projector: FaceProjector | None = None

    def encode(
        self, params: Params, images: Num[AnyArray, "*lead height width 3"]
    ) -> Float[Array, "*lead latent_height latent_width channels"]:
        """Encodes images, uint8 or floats in [-1, 1], to latents of about unit variance.

        Large frames of clips (batch, frames, height, width, 3) are encoded one frame at a time: together they would
        take more memory than the rest of a training step.
        """
        vae: Any = self.vae
        variables = part_variables(params["vae"])

        def encode(images: AnyArray) -> Array:
            return vae.apply(variables, to_float(images), method="encode")

        if images.ndim < 5 or math.prod(images.shape[-3:-1]) < _LARGE:
            return encode(images)
        return jnp.moveaxis(jax.lax.map(encode, jnp.moveaxis(images, 1, 0)), 0, 1)

    def decode(
        self, params: Params, latents: Float[AnyArray, "*lead latent_height latent_width channels"]
    ) -> UInt8[AnyArray, "*lead height width 3"]:
        """Decodes latents of images."""
        vae: Any = self.vae
        return to_uint8(vae.apply(part_variables(params["vae"]), latents, method="decode"))

    @property
    def uses_flow(self) -> bool:
        """Whether the latents of frames say how the reference image moves (`flow_vae`)."""
        return bool(self.vae.config.flow_channels)

    def reencode(self, params: Params, latents: Float[AnyArray, "*lead height width channels"]) -> Array:
        """Decodes latents and encodes the images again, clipped to [-1, 1] but not rounded, as the relatives do."""
        images: Any = self.vae.apply(part_variables(params["vae"]), latents, method="decode")
        return self.encode(params, jnp.clip(images, -1, 1).astype(jnp.float32))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a frame's latents."""
        height, width = self.config.clip.image_size
        factor = self.vae.config.factor
        return height // factor, width // factor, self.vae.config.frame_channels

    def conditions(
        self,
        params: Params,
        *,
        reference: Float[AnyArray, "batch 1 height width reference_channels"] | None = None,
        motion: Float[AnyArray, "batch n height width channels"] | None = None,
        has_motion: Bool[AnyArray, " batch"] | None = None,
        audio: Float[AnyArray, "batch window_frames layers size"] | None = None,
        speed: Float[AnyArray, "batch speed_window"] | None = None,
        mask: Num[AnyArray, "batch mask_height mask_width 1"] | None = None,
        face: Float[AnyArray, "batch embedding"] | None = None,
        regions: Sequence[Float[AnyArray, "batch _ _ branches"]] | None = None,
        branch_weights: Float[AnyArray, "batch branches"] | None = None,
        temporal: bool = True,
        base: Conditions | None = None,
        tiled: bool = False,
    ) -> Conditions:
        """Encodes the inputs of the Backbone; training, sampling and planning all build `Conditions` here.

        A condition is None if its input is None or if the config switches its part off.

        Args:
            params: the params tree.
            reference: latents of the reference image.
            motion: latents of the n motion frames; n may be 0.
            has_motion: whether a sample has motion frames; the features of the others are zeros. Default: all have.
            audio: audio features of the frames and of `clip.audio_window` neighbours on either side.
            speed: head rotation speeds of the same frames in degrees per frame. Without positions of speeds, one frame
                and its neighbours stand for all.
            mask: union of the clip's face boxes, in {0, 1}.
            face: identity embedding of the face; None: zeros, which stand for an unknown face.
            regions: how much each branch of audio modules counts at each place of each level, finest first; None: as
                `mask` says (`conditions.regions_of_mask`).
            branch_weights: weights of these branches; None: 1.
            temporal: whether temporal modules run.
            base: conditions encoded before, of which those without an input here are kept.
            tiled: whether to encode reference and motion frames for guidance as hallo does, once for each half, with
                the face tokens of `conditions.tiled_tokens`. Only with face tokens.
        """
        base = base or Conditions(temporal=temporal)
        base = with_null(self, params, base, face, reference, motion, audio, speed, mask)
        encoded = encode_images(self, params, base, reference, motion, has_motion, tiled and base.face is not None)
        if self.backbone.config.audio_branches and (mask is not None or regions is not None):
            encoded["regions"] = found = tuple(regions or regions_of_mask(jnp.asarray(mask), self.level_sizes))
            ones = jnp.ones((len(found[0]), len(BRANCHES)))
            encoded["branch_weights"] = ones if branch_weights is None else branch_weights
        if audio is not None:
            encoded["audio"] = self.audio_tokens(params, audio)
        if speed is not None:
            encoded["speed"] = self.speed_features(params, speed)
        if mask is not None:
            encoded["location"] = self.location(params, mask)
        return dataclasses.replace(base, **encoded)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the maps of each level of the Backbone, finest first."""
        height, width, _ = self.latent_shape
        return [(height >> level, width >> level) for level in range(self.backbone.config.levels)]

    def reference_features(
        self, params: Params, latents: Latents, face: Float[AnyArray, "batch images tokens features"] | None = None
    ) -> Features | None:
        """Computes ReferenceNet's features of images from their latents, or None without a ReferenceNet."""
        if self.reference_net is None or latents.shape[1] == 0:
            return None
        variables = part_variables(params["reference_net"], self.config.model.dtype)
        return reference_net_features(self.reference_net, variables, latents, face)

    def audio_features(
        self,
        params: Params,
        audio: Float[AnyArray, "batch ..."],
        frames: int,
        moments: Float[AnyArray, "batch count kernel"] | None = None,
    ) -> Float[AnyArray, "batch {frames} layers size"]:
        """Computes the audio features A^f of each frame.

        Args:
            params: the params tree.
            audio: waveforms (batch, samples), windows of `media.timing.window_bounds` with additional context, half of
                it on either side. Encoders read the complete waveform, wav2vec 2.0 a standardised one; log-mel spectra
                ignore the context. Features of a `Recording` (batch, frames, layers, size) are returned unchanged.
            frames: number of frames.
            moments: moments of the recordings that the waveforms are a part of (`media.moments`), by which wav2vec 2.0
                normalizes its input as a `Recording` does; None: of the waveforms themselves.
        """
        return audio if audio.ndim == 4 else features_of_waveforms(self, params, audio, frames, moments)

    def hidden_states(
        self,
        params: Params,
        audio: Float[AnyArray, "batch samples *bands"],
        lengths: Int[AnyArray, " batch"] | None = None,
        moment_frames: Float[AnyArray, "batch count kernel"] | None = None,
        taps: Taps | None = None,
    ) -> Float[AnyArray, "batch time layers size"]:
        """Computes the hidden states of the audio encoder that `model.audio.layers` selects.

        `models.wav2vec2` describes the arguments; `models.whisper` takes spectra and no other argument.
        """
        more = (lengths, moment_frames, taps) if audio.ndim == 2 else ()
        states, _ = self.apply("audio_encoder", params, audio, *more)
        return jnp.stack([states[layer] for layer in self.config.model.audio.layers], axis=2).astype(jnp.float32)

    def audio_tokens(
        self, params: Params, features: Float[AnyArray, "batch window_frames layers size"]
    ) -> Float[AnyArray, "batch frames tokens features"] | None:
        """Projects audio features to audio tokens, or returns None without audio-attention.

        Without a projector (`model.audio.projected`), the features of the frames are their tokens.
        """
        if self.audio_projector is not None or not self.config.model.audio_attention:
            return self.apply("audio_projector", params, features)
        m = self.config.clip.audio_window
        return features[:, m : features.shape[1] - m]

    def speed_features(
        self, params: Params, speed: Float[AnyArray, "batch window_frames"]
    ) -> Float[AnyArray, "batch frames features"] | None:
        """Encodes speeds in degrees per frame, or returns None without speed layers."""
        return self.apply("speed_encoder", params, speed)

    def location(
        self, params: Params, mask: Num[AnyArray, "batch height width 1"]
    ) -> Float[AnyArray, "batch 1 latent_height latent_width channels"] | None:
        """Computes the Face Locator's map of a mask in {0, 1}, or returns None without one."""
        return self.apply("face_locator", params, mask)

    def denoise(
        self, params: Params, latents: Latents, timesteps: Num[AnyArray, " batch"], conditions: Conditions
    ) -> Latents:
        """Computes the Backbone's prediction for noisy latents."""
        return self.backbone_outputs(params, latents, timesteps, conditions)[0]

    def backbone_outputs(self, params: Params, *inputs: Any) -> tuple[Latents, Any]:
        """Computes the Backbone's prediction and features, see `UNet`."""
        backbone: Any = self.backbone
        return backbone.apply(part_variables(params["backbone"], self.config.model.dtype, ("conv_out",)), *inputs)

    def apply(self, part: str, params: Params, *inputs: Any) -> Any:
        """Runs the network of a part; returns None if the config switches it off."""
        module = getattr(self, part)
        return None if module is None else module.apply(part_variables(params[part], self.config.model.dtype), *inputs)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Draws new params of all parts, float32 NumPy arrays, by the initialisers that the modules declare.

        Kernels are normal with variance 1 / fan-in. What EMO adds to trained networks starts at zero: a new temporal
        module, audio-attention, speed layer or Face Locator changes nothing until it is trained (unless
        model.init.added is 'fresh'). A parameter depends on the key and its path only: switching a part off keeps the
        others' values.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, a: self.init_param("/".join(p.key for p in path), a.shape, key), self.abstract_params()
        )

    def init_param(self, path: str, shape: tuple[int, ...], key: Key[Array, ""]) -> np.ndarray:
        """Draws one parameter of `init`, by its path such as 'vae/scaling_factor'."""
        declaration: Any = self._declarations
        for name in path.split("/"):
            declaration = declaration[name]
        return declaration.initializer.draw(path, shape, np.asarray(jax.random.key_data(key)).tolist())

    def abstract_params(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the params tree, without computing it."""
        return nn.meta.unbox(self._declarations)

    @functools.cached_property
    def _declarations(self) -> dict[str, Any]:
        """Params tree of `Declaration`s that hold shapes and dtypes.

        Tracing takes seconds, so networks of equal configs share the tree.
        """
        networks = type(self).__name__, self.config.model.to_json_best_effort(), self.config.clip.to_json_best_effort()
        if networks not in _DECLARED:
            with declarations():
                declared = jax.eval_shape(self._trace, jax.random.key(0))
            require_declarations(declared)
            _DECLARED[networks] = declared
        return _DECLARED[networks]

    def _trace(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Runs `Module.init` of all parts on the smallest inputs."""
        sizes, side = self.vae.config, 2 ** (self.backbone.config.levels - 1)
        factor = sizes.factor
        speed = jnp.zeros((1, 1 + 2 * self.config.clip.audio_window))
        reference, latents = (jnp.zeros((1, 1, side, side, c)) for c in (sizes.latent_channels, sizes.frame_channels))
        audio = jnp.zeros((*speed.shape, *features_shape(self.config.model.audio)))

        def trace(name: str, *inputs: Any) -> dict[str, Any]:
            module = getattr(self, name)
            return {} if module is None else {name: module.init(key, *inputs)["params"]}

        params = trace("vae", jnp.zeros((1, factor, factor, 3)))
        face = self.face_projector
        tokens = None if face is None else jnp.zeros((1, 1, face.tokens, face.features))
        params |= trace("reference_net", known_images(self, reference, None), jnp.zeros(1), Conditions(face=tokens))
        params |= trace("face_locator", jnp.zeros((1, side * factor, side * factor, 1)))
        if self.audio_encoder is not None:
            params |= trace("audio_encoder", smallest_input(self.audio_encoder))
        params |= trace("audio_projector", audio) | trace("speed_encoder", speed)
        if face is not None:
            params |= trace("face_projector", jnp.zeros((1, self.config.model.face_embedding.size)))
        regions = [jnp.ones((1, side >> i, side >> i, len(BRANCHES))) for i in range(self.backbone.config.levels)]
        motion = latents if self.backbone.config.image_inputs else None
        given: dict[str, Any] = dict(reference=reference, motion=motion, audio=audio, speed=speed, regions=regions)
        conditions = dataclasses.replace(self.conditions(nn.meta.unbox(params), **given), scales=jnp.ones((1, 2)))
        return params | trace("backbone", latents, jnp.zeros(1), conditions)


_DECLARED: dict[tuple[str, str, str], dict[str, Any]] = {}


def build(config: ConfigDict) -> EMO:
    """Builds the networks of a config.

    Args:
        config: the full config; networks depend on `model` and `clip`. `EMO.config` is a frozen copy: changing a field
            afterwards raises.

    Raises:
        ValueError: sizes or modes that do not fit together; the message names the field to change.
    """
    check_fields(config)
    config = FrozenConfigDict(config)
    model, clip = config.model, config.clip
    check_retired(config)
    vae_fields = {k: _hashable(v) for k, v in model.vae.items() if f"model.vae.{k}" not in RETIRED}
    check_model(model, clip, VAEConfig(**vae_fields).factor)
    dtype = jnp.dtype(model.dtype)
    vae = VAE(VAEConfig(dtype=dtype, **vae_fields))
    added_init = ZEROS if model.init.added == "zero" else FAN_IN_NORMAL
    embedding = model.get("face_embedding")  # older weights: none
    unet = UNetConfig(
        channels=tuple(model.unet.channels),
        attention=tuple(model.unet.attention),
        layers=model.unet.layers,
        heads=model.unet.heads,
        groups=model.unet.groups,
        latent_channels=vae.config.frame_channels,
        reference=model.reference_attention,
        positions=model.reference_positions,
        audio=model.audio_attention,
        temporal=model.temporal_modules,
        speed=model.speed_layers,
        remat=str({True: "blocks", False: "none"}.get(model.unet.remat, model.unet.remat)),  # older weights: booleans
        dtype=dtype,
        added_init=added_init,
        speed_positions=model.get("speed_positions", False),  # older weights were trained without
        face=bool(embedding and embedding.tokens),
        audio_branches=model.get("audio_branches", False),
        temporal_levels=model.get("temporal_levels", "all"),
        norm_feature=model.reference_attention == "shared",
        audio_gain=model.audio.get("gain", 1.0),
        image_inputs=model.get("image_inputs", False),
        guidance_inputs=model.get("guidance_inputs", False),
    )
    width, m = unet.channels[0], clip.audio_window
    locator = model.get("locator", "strided"), model.get("locator_inputs", 1)
    has_references = model.reference_attention != "off" or (model.temporal_modules and clip.motion_frames > 0)
    audio, speed = model.audio, model.speed
    projected = model.audio_attention and audio.get("projected", True)
    return EMO(
        config,
        vae,
        UNet(unet),
        reference_net(unet) if has_references else None,
        FaceLocator(tuple(model.locator_channels), width, dtype, added_init, *locator) if model.face_locator else None,
        build_encoder(audio, dtype) if model.audio_attention else None,
        AudioProjector(audio.tokens, audio.features, audio.hidden, m, dtype) if projected else None,
        SpeedEncoder(speed.features, m, tuple(speed.centres), tuple(speed.radii), dtype) if unet.speed else None,
        FaceProjector(embedding.tokens, embedding.features, dtype) if unet.face else None,
    )


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value

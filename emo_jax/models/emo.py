"""EMO: all its networks, built from one config, as pure functions of one params tree (Section 3)."""

import dataclasses
import math
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.media.timing import AUDIO_MARGIN, window_bounds
from emo_jax.models import audio_encoder
from emo_jax.models.attention import Conditions
from emo_jax.models.audio_projector import AudioProjector
from emo_jax.models.face_locator import FaceLocator
from emo_jax.models.placement import gathered
from emo_jax.models.reference_net import features as reference_net_features
from emo_jax.models.reference_net import reference_net
from emo_jax.models.speed_encoder import SpeedEncoder
from emo_jax.models.unet import UNet, UNetConfig
from emo_jax.models.vae import VAE, VAEConfig, cosine_basis
from emo_jax.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config


@dataclasses.dataclass(frozen=True)
class EMO:
    """The networks that a config describes; a part that the config switches off is None and has no parameters.

    The params tree has a branch for each part: vae, backbone, reference_net, face_locator, audio_encoder,
    audio_projector, speed_encoder. Log-mel spectra need no audio_encoder. Frames lie on axis 1:
    (B, frames, height, width, channels).
    """

    config: object
    vae: VAE
    backbone: UNet
    reference_net: UNet | None
    face_locator: FaceLocator | None
    audio_encoder: Wav2Vec2 | None
    audio_projector: AudioProjector | None
    speed_encoder: SpeedEncoder | None

    # -- images and latents

    def encode(self, params, images):
        """Latents of unit variance (..., h, w, c) of images (..., H, W, 3): uint8, or floats in [-1, 1].

        Large frames of clips (B, N, H, W, 3) are encoded one after the other: together they take more memory than all
        the rest of a training step.
        """
        variables = whole(params["vae"])

        def encode(images):
            return self.vae.apply(variables, to_float(images), method="encode")

        if images.ndim < 5 or math.prod(images.shape[-3:-1]) < _LARGE:
            return encode(images)
        return jnp.moveaxis(jax.lax.map(encode, jnp.moveaxis(images, 1, 0)), 0, 1)

    def decode(self, params, latents):
        """Images uint8 (..., H, W, 3) of latents (..., h, w, c)."""
        return to_uint8(self.vae.apply(whole(params["vae"]), latents, method="decode"))

    @property
    def latent_shape(self):
        """(h, w, c) of one frame."""
        height, width = self.config.clip.image_size
        factor = self.vae.config.factor
        return height // factor, width // factor, self.vae.config.latent_channels

    # -- conditions

    def reference_features(self, params, latents):
        """ReferenceNet's features {layer: (B, N, h, w, C)} of N images' latents (B, N, h, w, c), or None."""
        if self.reference_net is None or latents is None or latents.shape[1] == 0:
            return None
        return reference_net_features(self.reference_net, self._whole(params, "reference_net"), latents)

    def audio_features(self, params, sound, frames):
        """A^f of each frame (B, frames, L, D) of sound: waveform (B, W), a window of data.audio.window_bounds.

        What W is longer than such a window is context, half of it on either side. wav2vec 2.0 hears the whole waveform,
        standardised by itself; log-mel spectra leave the context out. Features of a Recording pass through.
        """
        audio, fps = self.config.model.audio, self.config.clip.fps
        if sound.ndim == 4:
            return sound
        context = (sound.shape[1] - window_bounds(0, frames, fps)[1]) // 2
        if self.audio_encoder is None:
            return audio_encoder.mel_features(sound[:, context:], frames, fps, bands=audio.bands, steps=audio.steps)
        config = self.audio_encoder.config
        states = self.hidden_states(params, audio_encoder.standardise(sound) if config.do_normalize else sound)
        positions = audio_encoder.frame_positions(0, frames, fps, -AUDIO_MARGIN - context, config)
        return audio_encoder.interpolate(states, positions)

    def hidden_states(self, params, audio, lengths=None, sketch=None):
        """wav2vec 2.0's hidden states of the config's layers, (B, T, L, D) float32; arguments as models.wav2vec2."""
        states, _ = self.audio_encoder.apply(self._whole(params, "audio_encoder"), audio, lengths, sketch)
        return jnp.stack([states[layer] for layer in self.config.model.audio.layers], axis=2).astype(jnp.float32)

    def audio_tokens(self, params, features):
        """Tokens (B, f, tokens, D) of features (B, f + 2m, L, D), or None where audio-attention is off."""
        if self.audio_projector is None or features is None:
            return None
        return self.audio_projector.apply(self._whole(params, "audio_projector"), features)

    def speed_features(self, params, speed):
        """Speed features (B, f, D) of head rotation speeds (B, f + 2m) in degrees per frame, or None."""
        if self.speed_encoder is None or speed is None:
            return None
        return self.speed_encoder.apply(self._whole(params, "speed_encoder"), speed)

    def location(self, params, mask):
        """The Face Locator's map (B, 1, h, w, C) of a mask (B, H, W, 1) in {0, 1}, or None."""
        if self.face_locator is None or mask is None:
            return None
        return self.face_locator.apply(self._whole(params, "face_locator"), mask)

    # -- the denoising network

    def denoise(self, params, latents, timesteps, conditions):
        """The Backbone's prediction (B, f, h, w, c) for noisy latents (B, f, h, w, c) at timesteps (B,)."""
        variables = whole(params["backbone"], self.config.model.dtype, as_they_are=("conv_out",))
        return self.backbone.apply(variables, latents, timesteps, conditions)[0]

    def _whole(self, params, name):
        return whole(params[name], self.config.model.dtype)

    def init(self, key):
        """Fresh params of every part, float32 numpy arrays.

        Kernels are normal with variance 1 / fan-in (LeCun et al. 1998), but reference-attention's keys are twice its
        queries. What EMO adds to a trained network starts silent: a new temporal module, audio-attention, speed layer
        or locator changes nothing until it is trained (unless model.init.added is 'fresh'). The key of a parameter
        depends on its path alone, so that switching a part off leaves the others' values alone.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: self.fresh("/".join(p.key for p in path), leaf.shape, key), self.abstract_params()
        )

    def fresh(self, path, shape, key):
        """One parameter of `init`, by its path such as 'vae/scaling_factor'."""
        if self.config.model.init.added == "zero" and _ADDED.search(path):
            return np.zeros(shape, np.float32)
        return _fresh(path, shape, np.asarray(jax.random.key_data(key)).tolist())

    def abstract_params(self):
        """Shapes and dtypes of the params tree, without computing any."""
        return jax.eval_shape(self._trace, jax.random.key(0))

    def _trace(self, key):
        factor = self.vae.config.factor
        side = 2 ** (self.backbone.config.levels - 1)
        model, m = self.config.model, self.config.clip.audio_window
        latents = jnp.zeros((1, 1, side, side, self.vae.config.latent_channels))
        heard = jnp.zeros((1, 1 + 2 * m, *_features_shape(model.audio)))
        speed = jnp.zeros((1, 1 + 2 * m))

        def trace(name, *inputs):
            module = getattr(self, name)
            return {} if module is None else {name: module.init(key, *inputs)["params"]}

        params = trace("vae", jnp.zeros((1, factor, factor, 3)))
        params |= trace("reference_net", latents, jnp.zeros(1))
        params |= trace("face_locator", jnp.zeros((1, side * factor, side * factor, 1)))
        if self.audio_encoder is not None:
            params |= trace("audio_encoder", jnp.zeros((1, self.audio_encoder.config.field)))
        params |= trace("audio_projector", heard) | trace("speed_encoder", speed)
        conditions = Conditions(
            reference=self.reference_features(params, latents) if model.reference_attention != "off" else None,
            audio=self.audio_tokens(params, heard),
            speed=self.speed_features(params, speed),
        )
        return params | trace("backbone", latents, jnp.zeros(1), conditions)


def whole(params, dtype=None, as_they_are=()):
    """The variables of a part as it runs: whole on every device where a mesh splits them; UNets' levels see to it.

    Left to choose, XLA's partitioner splits what is computed in place of what it is computed with. They travel in the
    networks' `dtype` (None: as they are), but for layers that compute in float32, named in `as_they_are`.
    """
    rest = {name: sub for name, sub in params.items() if not _LEVEL.match(name)}
    rest = {name: gathered({name: sub}, None if name in as_they_are else dtype)[name] for name, sub in rest.items()}
    return {"params": {**params, **rest}}


_LARGE = 256 * 256  # pixels of a frame
_LEVEL = re.compile(r"(down|up)_blocks_\d+$|mid_block$")
_ADDED = re.compile(r"motion_modules_\d+/proj_out/|(audio|speed)_attn/to_out_0/|face_locator/conv_out/")
_ZERO = re.compile(r"vae/(quant_conv|decoder/conv_out)/")
_REFERENCE_KEY = re.compile(r"/attentions_\d+/transformer_blocks_0/attn2/to_k/")


def _fresh(path, shape, seed):
    if path.endswith("scaling_factor"):
        return np.float32(0.18215)
    if path.endswith(("/scale", "/weight_g")):
        return np.ones(shape, np.float32)
    if path == "vae/quant_conv/bias":  # posteriors start narrow
        return np.repeat(np.float32([0, -5]), shape[0] // 2)
    if path.endswith("/bias") or _ZERO.search(path):
        return np.zeros(shape, np.float32)
    if path.startswith("vae/shortcut"):
        basis = cosine_basis(math.isqrt(max(shape) // 3), min(shape))
        return basis if path.startswith("vae/shortcut_in") else basis.T / (basis**2).sum(0)[:, None]
    gain, fan_in = 1, math.prod(shape[:-1])
    if _REFERENCE_KEY.search(path):  # like looks at like, from the start: left to chance, some layers never look at all
        path, gain = path.replace("to_k", "to_q"), 2
    # numpy: compiling a jax.random draw for each of a hundred shapes would take half a minute
    rng = np.random.default_rng([*seed, zlib.crc32(path.encode())])
    return gain * rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))


def switch(conditions, reference_on, audio_on):
    """Zeroes the reference features and audio tokens of samples whose flag (B,) is False.

    This is the null condition, the same in training (condition dropout) and in guidance.
    """
    return conditions.replace(
        reference=mask_features(conditions.reference, reference_on),
        audio=None if conditions.audio is None else conditions.audio * audio_on[:, None, None, None],
    )


def mask_features(features, on):
    """Zero maps in place of the features {layer: (B, N, h, w, C)} of samples whose flag (B,) is False."""
    return jax.tree.map(lambda a: a * on[:, None, None, None, None].astype(a.dtype), features)


def to_float(images):
    """uint8 images to floats in [-1, 1]; floats pass through."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def to_uint8(images):
    """Float images in [-1, 1] to uint8, rounded and clipped."""
    return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def build(config) -> EMO:
    """The networks of a config (`model` and `clip`).

    Raises:
        ValueError: sizes or modes that do not fit together, with the field to change.
    """
    model, clip = config.model, config.clip
    if model.dtype not in _DTYPES:
        raise ValueError(f"model.dtype is {model.dtype!r}; expected one of {', '.join(_DTYPES)}")
    dtype = jnp.dtype(model.dtype)
    vae = VAE(VAEConfig(dtype=dtype, **{k: _hashable(v) for k, v in model.vae.items()}))
    _check(model, clip, vae.config)
    unet = UNetConfig(
        channels=tuple(model.unet.channels),
        attention=tuple(model.unet.attention),
        layers=model.unet.layers,
        heads=model.unet.heads,
        groups=model.unet.groups,
        latent_channels=model.vae.latent_channels,
        reference=model.reference_attention,
        positions=model.reference_positions,
        audio=model.audio_attention,
        temporal=model.temporal_modules,
        speed=model.speed_layers,
        remat={True: "blocks", False: "none"}.get(model.unet.remat, model.unet.remat),  # as older weights have it
        dtype=dtype,
    )
    width, m = unet.channels[0], clip.audio_window
    sees = model.reference_attention != "off" or (model.temporal_modules and clip.motion_frames > 0)
    audio, speed = model.audio, model.speed
    listens = model.audio_attention and audio.encoder == "wav2vec2"
    return EMO(
        config,
        vae,
        UNet(unet),
        reference_net(unet) if sees else None,
        FaceLocator(tuple(model.locator_channels), width, dtype) if model.face_locator else None,
        Wav2Vec2(_wav2vec2(audio, dtype)) if listens else None,
        AudioProjector(audio.tokens, audio.features, audio.hidden, m, dtype) if model.audio_attention else None,
        SpeedEncoder(speed.features, m, tuple(speed.centres), tuple(speed.radii), dtype) if unet.speed else None,
    )


def _wav2vec2(audio, dtype):
    config = Wav2Vec2Config(dtype=dtype, **{k: _hashable(v) for k, v in audio.wav2vec2.items()})
    if not audio.layers or any(not 0 <= layer <= config.num_hidden_layers for layer in audio.layers):
        raise ValueError(
            f"model.audio.layers is {tuple(audio.layers)}; expected some of 0, the encoder's input, to "
            f"model.audio.wav2vec2.num_hidden_layers, {config.num_hidden_layers}"
        )
    return config


def _features_shape(audio):
    """(L, D) of the audio features of a frame."""
    if audio.encoder == "mel":
        return audio.steps, audio.bands
    return len(audio.layers), audio.wav2vec2.hidden_size


_DTYPES = ("float32", "bfloat16", "float16")


def _hashable(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _check(model, clip, vae):
    if model.reference_attention not in ("cross", "concat", "off"):
        raise ValueError(
            f"model.reference_attention is {model.reference_attention!r}; expected 'cross', 'concat' or 'off'"
        )
    if model.speed_layers and not model.temporal_modules:
        raise ValueError("model.speed_layers is on but model.temporal_modules is off; speed layers live inside them")
    if model.audio.encoder not in ("mel", "wav2vec2"):
        raise ValueError(f"model.audio.encoder is {model.audio.encoder!r}; expected 'mel' or 'wav2vec2'")
    for field, known in (("reference", ("self", "fresh")), ("added", ("zero", "fresh"))):
        if model.init[field] not in known:
            raise ValueError(f"model.init.{field} is {model.init[field]!r}; expected {' or '.join(map(repr, known))}")
    if model.unet.remat not in ("none", "blocks", "dots", True, False):
        raise ValueError(f"model.unet.remat is {model.unet.remat!r}; expected 'none', 'blocks' or 'dots'")
    _check_sizes(model.unet, model.vae)
    if not 0 <= clip.motion_frames <= clip.frames:
        raise ValueError(f"clip.motion_frames is {clip.motion_frames}; expected 0 to clip.frames, {clip.frames}")
    multiple = vae.factor * 2 ** (len(model.unet.channels) - 1)
    for name, size in zip(("height", "width"), clip.image_size, strict=True):
        if size % multiple:
            raise ValueError(f"clip.image_size has {name} {size}; expected a multiple of {multiple}")
    if model.face_locator and 2 ** len(model.locator_channels) != vae.factor:
        raise ValueError(
            f"model.locator_channels has {len(model.locator_channels)} entries, one per halving; "
            f"the VAE's factor {vae.factor} needs {vae.factor.bit_length() - 1}"
        )
    if len(model.speed.centres) != len(model.speed.radii):
        raise ValueError("model.speed.centres and model.speed.radii differ in length; one radius per bucket")


def _check_sizes(unet, vae):
    for name, entries, levels in (
        ("model.unet.attention", unet.attention, unet.channels),
        ("model.vae.decoder_channels", vae.decoder_channels, vae.channels),
    ):
        if len(entries) != len(levels):
            raise ValueError(f"{name} has {len(entries)} entries; expected one per level, {len(levels)}")
    for name, divisor, widths in (
        ("model.unet.heads", unet.heads, unet.channels),
        ("model.unet.groups", unet.groups, unet.channels),
        ("model.vae.groups", vae.groups, (*vae.channels, *vae.decoder_channels)),
    ):
        if divisor < 1 or any(width % divisor for width in widths):
            raise ValueError(f"{name} is {divisor}; expected a divisor of every width, {', '.join(map(str, widths))}")

"""Checks of the sub-configs `model` and `clip`; each message names the field to change."""

from typing import Any

from ml_collections import ConfigDict

DTYPES = ("float32", "bfloat16", "float16")

_CHOICES = {
    "dtype": DTYPES,
    "reference_attention": ("cross", "concat", "shared", "off"),
    "audio.encoder": ("mel", "wav2vec2", "whisper"),
    "init.reference": ("self", "attn1", "zero", "fresh"),
    "init.added": ("zero", "fresh"),
    "temporal_levels": ("all", "attention"),
    "locator": ("strided", "controlnet"),
    "audio.timing": ("centres", "frames"),
    "unet.remat": ("none", "blocks", "dots", True, False),  # older weights have booleans
}
"""{field of `model`: its values}."""
_LATER = ("temporal_levels", "locator", "timing")
"""Fields that configs of older weights lack; they have the first value."""

RETIRED = ("model.vae.linear_encoder", "model.vae.paint_channels", "diffusion.residual_std")
"""Fields that configs of older weights have. Their effect is gone; False and 0 are accepted."""


def check_model(model: ConfigDict, clip: ConfigDict, factor: int) -> None:
    """Checks that the networks' sizes and modes fit together.

    Args:
        model: the sub-config `model`.
        clip: the sub-config `clip`.
        factor: pixels per latent along each axis.

    Raises:
        ValueError: they do not.
    """
    for field, choices in _CHOICES.items():
        value: Any = model
        for name in field.split("."):
            value = value.get(name, choices[0]) if name in _LATER else value[name]
        if value not in choices:
            raise ValueError(f"model.{field} is {value!r}; expected {_either(choices)}")
    if model.speed_layers and not model.temporal_modules:
        raise ValueError("model.speed_layers is True; expected False without model.temporal_modules, their modules")
    _check_sizes(model.unet, model.vae)
    _check_flow(model.vae, clip)
    if not 0 <= clip.motion_frames <= clip.frames:
        raise ValueError(f"clip.motion_frames is {clip.motion_frames}; expected 0 to clip.frames, {clip.frames}")
    limit, length = model.get("temporal_positions", 0), clip.motion_frames + clip.frames  # older weights: no limit
    if model.temporal_modules and limit and length > limit:
        raise ValueError(
            f"clip.motion_frames + clip.frames is {length}; expected at most {limit}, the positions that AnimateDiff's "
            "temporal modules are trained with (model.temporal_positions)"
        )
    multiple = factor * 2 ** (len(model.unet.channels) - 1)
    for name, size in zip(("height", "width"), clip.image_size, strict=True):
        if size % multiple:
            raise ValueError(f"clip.image_size has {name} {size}; expected a multiple of {multiple}")
    _check_locator(model, factor)
    embedding = model.get("face_embedding")
    mode = model.reference_attention
    if embedding and embedding.tokens and mode in ("cross", "concat"):
        # "cross" takes the place of the attention to face tokens; "concat" cannot leave out the reference of a sample.
        raise ValueError(
            f"model.reference_attention is {mode!r} with face_embedding.tokens above 0; expected 'shared' or 'off'"
        )
    _check_variant(model, clip)
    centres, radii = len(model.speed.centres), len(model.speed.radii)
    if centres != radii:
        raise ValueError(f"model.speed.radii has {radii} entries; expected {centres}, one per entry of centres")


def check_retired(config: ConfigDict) -> None:
    """Raises ValueError if a config of older weights uses a field of `RETIRED`."""
    for path in RETIRED:
        value: Any = config
        for name in path.split("."):
            value = value.get(name, {})
        if value:
            raise ValueError(f"{path} is {value}; expected {type(value)(0)}: this version cannot run such weights")


def _check_flow(vae: ConfigDict, clip: ConfigDict) -> None:
    """Raises ValueError if the VAE of flow lacks its optical flow, or has options of the VAE of images."""
    channels, cell = vae.get("flow_channels", 0), clip.get("flow_cell", 0)  # older weights: no flow
    expected = vae.patch * 2 ** (len(vae.channels) - 1) // 8 if channels else 0
    if channels % 2:
        raise ValueError(f"model.vae.flow_channels is {channels}; expected an even number")
    if cell != expected:
        raise ValueError(f"clip.flow_cell is {cell}; expected {expected} with model.vae.flow_channels {channels}")
    if channels and vae.get("shortcut", False):
        raise ValueError("model.vae.shortcut is True; expected False with model.vae.flow_channels")


def _check_variant(model: ConfigDict, clip: ConfigDict) -> None:
    """Raises ValueError if a field of the relatives' variants has an unknown value, or no effect."""
    first = clip.get("first_motion", "zeros")  # older weights: zeros
    if first not in ("zeros", "portrait"):
        raise ValueError(f"clip.first_motion is {first!r}; expected 'zeros' or 'portrait'")
    if model.get("image_inputs", False) and model.reference_attention not in ("cross", "concat"):
        mode = model.reference_attention
        raise ValueError(f"model.reference_attention is {mode!r} with image_inputs; expected 'cross' or 'concat'")
    if model.get("audio_branches", False) and not model.audio_attention:
        raise ValueError("model.audio_branches is True; expected False without model.audio_attention")
    if model.get("audio_branches", False) and model.audio.get("gain", 1.0) != 1:
        raise ValueError(f"model.audio.gain is {model.audio.gain}; expected 1 with model.audio_branches")
    if model.audio.encoder == "whisper" and "whisper" not in model.audio:
        raise ValueError("model.audio.encoder is 'whisper'; expected the sizes in model.audio.whisper")


def _check_locator(model: ConfigDict, factor: int) -> None:
    """Raises ValueError unless the Face Locator reduces a mask by the VAE's factor."""
    first = int(model.get("locator", "strided") == "controlnet")  # the width before the first halving
    if model.face_locator and 2 ** (len(model.locator_channels) - first) != factor:
        raise ValueError(
            f"model.locator_channels has {len(model.locator_channels)} entries; expected "
            f"{factor.bit_length() - 1 + first} for the VAE's factor {factor}, one per "
            f"{'resolution' if first else 'halving'}"
        )


def check_audio_layers(audio: ConfigDict) -> None:
    """Checks the hidden states that `model.audio.layers` selects.

    Raises:
        ValueError: none, or one that the encoder does not have.
    """
    name = {"wav2vec2": "num_hidden_layers", "whisper": "encoder_layers"}[audio.encoder]
    count = audio[audio.encoder][name]
    if not audio.layers or any(not 0 <= layer <= count for layer in audio.layers):
        raise ValueError(
            f"model.audio.layers is {tuple(audio.layers)}; expected some of 0, the encoder's input, to {count} "
            f"(model.audio.{audio.encoder}.{name})"
        )


def _either(values: tuple[str | bool, ...]) -> str:
    *first, last = (repr(value) for value in values if isinstance(value, str))
    return f"{', '.join(first)} or {last}"


def _check_sizes(unet: ConfigDict, vae: ConfigDict) -> None:
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

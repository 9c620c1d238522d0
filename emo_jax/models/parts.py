"""One table of parameter metadata: which part of EMO a parameter belongs to, and how its layer is treated.

A parameter is named by its path in the params tree, for example ``backbone/mid_block/attentions_0/norm/scale``.
``PARTS`` groups paths into the parts that the training stages train or freeze. ``LAYERS`` says for each kind of layer
how its parameters are split over the mesh, in which precision they are stored while frozen, and how the optimizer
updates them.
No other module matches parameter paths for these purposes.
"""

import dataclasses
import fnmatch
import functools
import re
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Part:
    """A group of parameters that a training stage trains or freezes as a unit.

    Attributes:
        name: the name used in `train.also` and `train.only`, in reports and in metrics.
        pattern: regular expression, matched at the start of a parameter path.
        stages: the training stages that train it (Section 3.3).
    """

    name: str
    pattern: str
    stages: tuple[str, ...]


PARTS = (
    Part("vae_scale", r"vae/scaling_factor$", ()),
    Part("vae", r"vae/", ("vae",)),
    Part("teacher", r"teacher/", ()),  # of stage distill: the Backbone that the student learns from
    Part("guidance_inputs", r"backbone/guidance_embedding/", ("distill",)),
    Part("speed_layers", r"speed_encoder/|backbone/.*/(speed_attn|norm_speed)/", ("speed", "distill")),
    Part("temporal_modules", r"backbone/(.*/motion_modules_\d+|conv_in_motion)/", ("video", "speed", "distill")),
    Part("audio_encoder", r"audio_encoder/", ()),  # it stays as it was pretrained
    # The audio layers stay frozen in stage speed: trained together, speed replaces the voice as the driver (3.3).
    Part(
        "audio_layers", r"audio_projector/|backbone/.*/(audio_attn|norm_audio|audio_modules_\d+)/", ("video", "distill")
    ),
    Part("face_locator", r"face_locator/", ("image", "video")),
    # Records hold no identity embeddings: its kernel would have no gradient, only weight decay.
    Part("face_projector", r"face_projector/", ()),
    Part("reference_net", r"reference_net/", ("image", "video")),
    Part("backbone", r"backbone/", ("image", "video", "distill")),
)
"""The parts of EMO. The first row whose pattern matches decides."""

ENCODERS = re.compile(r"vae/(encoder|quant_conv|shortcut_in|scaling_factor)|audio_encoder/")
"""Parameters that stored latents and audio features depend on (`emo prepare latents`)."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """How the parameters of one kind of layer are placed, stored and optimized.

    Attributes:
        pattern: regular expression, matched at the start of a parameter path. It also matches the path inside a
            resnet, transformer or temporal module, because these gather their parameters by the same rules.
        tensor: the axis that the mesh axis `tensor` splits: "output" (the last), "input" (the one before) or None.
            Heads and inner features between an output-split and an input-split kernel then stay on one device.
        fsdp: the axis that the mesh axis `fsdp` splits: the "largest" other axis that it divides, the "input" axis if
            it divides it, or None.
        frozen_dtype: precision in which a frozen parameter is stored: that of the "networks" or "float32".
        update: "matrix" (Muon, weight decay), "kernel" (Adam, weight decay under AdamW) or "vector" (Adam, no decay).
    """

    pattern: str
    tensor: Literal["output", "input"] | None = None
    fsdp: Literal["largest", "input"] | None = None
    frozen_dtype: Literal["networks", "float32"] = "float32"
    update: Literal["matrix", "kernel", "vector"] = "vector"


LAYERS = (
    Layer(r".*/lora_[ab]$", None, None, "float32", "kernel"),
    # The networks' outputs are computed in float32.
    Layer(r".*(backbone|teacher|decoder)/conv_out/kernel$", None, "largest", "float32", "kernel"),
    Layer(r"(\w+/){0,2}conv_(in|out|in_reference|in_motion)/kernel$", None, "largest", "networks", "kernel"),
    Layer(r".*(time|guidance)_embedding/.*kernel$", None, "largest", "networks", "kernel"),
    Layer(r".*(^|/)(attn[12](_\d)?|\w+_attn)/to_[qkv]/kernel$", "output", "largest", "networks", "matrix"),
    Layer(r".*(^|/)(attn[12](_\d)?|\w+_attn)/to_out_0/kernel$", "input", "largest", "networks", "matrix"),
    # Split by outputs, XLA for TPU would not scatter the gradients of GEGLU's wide kernels over 16 chips.
    Layer(r".*(^|/)ff/net_0/proj/kernel$", "output", "input", "networks", "matrix"),
    Layer(r".*(^|/)ff/net_2/kernel$", "input", "largest", "networks", "matrix"),
    Layer(r".*(^|/)(conv1|time_emb_proj)/kernel$", "output", "largest", "networks", "matrix"),
    Layer(r".*(^|/)conv2/kernel$", "input", "largest", "networks", "matrix"),
    Layer(r".*(^|/)kernel$", None, "largest", "networks", "matrix"),
    Layer(r".*(^|/)weight_v$", None, "largest", "networks", "vector"),  # wav2vec 2.0's weight-normalised convolution
    Layer(r".*(^|/)(bias|scale|weight_g|scaling_factor|embed_positions)$"),
)
"""The kinds of layers. The first row whose pattern matches decides."""


def part_of(path: str) -> str:
    """Returns the name of the part that a parameter path belongs to.

    Raises:
        ValueError: no row of PARTS matches.
    """
    for part in PARTS:
        if re.match(part.pattern, path):
            return part.name
    raise ValueError(f"parameter {path!r} belongs to no part; add a row to models.parts.PARTS")


def is_of_teacher(path: str) -> bool:
    """Returns whether a parameter belongs to the teacher of stage distill, and not to the networks of the config."""
    return path.startswith("teacher/")


def selects(pattern: str, path: str) -> bool:
    """Returns whether a row of `train.only` selects a parameter: by the name of its part, or by a pattern of its path.

    Args:
        pattern: the name of a part, or a pattern of shell style, whose `*` also matches `/`.
        path: the parameter.
    """
    return pattern == part_of(path) or fnmatch.fnmatchcase(path, pattern)


@functools.cache
def layer_of(path: str) -> Layer:
    """Returns the row of LAYERS for a parameter path.

    Raises:
        ValueError: no row matches.
    """
    for layer in LAYERS:
        if re.match(layer.pattern, path):
            return layer
    raise ValueError(f"parameter {path!r} has no layer rule; add a row to models.parts.LAYERS")

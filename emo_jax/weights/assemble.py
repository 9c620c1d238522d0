"""Assembles EMO's params from Stable Diffusion 1.5, AnimateDiff and wav2vec 2.0, strictly and with a report."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from emo_jax.models.parts import PARTS, part_of
from emo_jax.weights import echomimic, hallo, names

_TEXT = r"(?<!motion_modules\.\d\.)transformer_blocks\.0\.attn2\.to_[kv]\."
_FROM_PROMPT = r"backbone/.*/attentions_\d+/transformer_blocks_0/(attn2/(to_q|to_out_0)|norm2)/"
_DERIVED = r"/attentions_\d+/transformer_blocks_0/(attn2/to_[kv]|norm_reference)/"


def _name_without_branch(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    return names.from_path(path.split("/", 1)[1], array)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The parameters that one kind of file fills.

    Attributes:
        prefixes: branches of the params tree that its tensors are copied to; the first branch uses all of them.
        fills: pattern of the paths in the first branch that it must fill.
        unused: {pattern of diffusers names: why they are not used}.
        optional: pattern of paths that a file may lack entirely; they then start as new parameters.
        extra: {pattern of names: why unknown tensors are not used}; other unknown tensors raise.
        to_path: (name, array) of a tensor -> its path behind the prefixes, and the array in our layout.
        to_name: (path, array) of a parameter -> its name in the file, and the array in that layout.
    """

    prefixes: tuple[str, ...]
    fills: str
    unused: dict[str, str]
    optional: str | None = None
    extra: dict[str, str] = dataclasses.field(default_factory=dict)
    to_path: Callable[..., tuple[str, np.ndarray]] = names.to_path
    to_name: Callable[..., tuple[str, np.ndarray]] = _name_without_branch


KINDS = {
    "unet": Kind(
        ("backbone/", "reference_net/"),
        rf"backbone/(?!.*(motion_modules_|/audio_attn/|/norm_audio/))(?!.*{_DERIVED})",
        {_TEXT: "keys and values of the text prompt, which EMO does not have"},
    ),
    "motion": Kind(
        ("backbone/",),
        r"backbone/.*/motion_modules_\d+/(?!.*/(speed_attn|norm_speed)/)",
        {names.POSITIONS: "positions of frames, which are computed"},
        optional=r"backbone/mid_block/",  # AnimateDiff v1 and v3 have no module there; a new one starts silent
    ),
    "vae": Kind(("vae/",), r"vae/(?!scaling_factor)", {r"^(loss|model_ema)\.": "of the autoencoder's own training"}),
}

HALLO = Kind(("",), hallo.FILLS, hallo.UNUSED, to_path=hallo.to_path, to_name=hallo.to_name)
"""net.pth of hallo."""
ECHOMIMIC = Kind(
    ("",), echomimic.FILLS, echomimic.UNUSED, extra=echomimic.EXTRA, to_path=echomimic.to_path,
    to_name=echomimic.to_name,
)  # fmt: skip
"""EchoMimic's files."""
_ALL = {**KINDS, "hallo": HALLO, "echomimic": ECHOMIMIC}


@dataclasses.dataclass
class Report:
    """What happened to every tensor and every parameter.

    Attributes:
        used: {kind: number of tensors of its file that are used}.
        unused: {kind: {name: reason}}.
        new: {path: how it starts} of the parameters that no file holds.
    """

    used: dict
    unused: dict
    new: dict


def assemble(emo, sources, key, scaling_factor=0.18215, hearing=None):
    """Returns the flat params {path: array} of a model from files, in the precision of the files, and a Report.

    ReferenceNet starts as a copy of SD's UNet. In the Backbone, reference-attention takes the place of SD's attention
    to the prompt. Its keys and values have the width of the feature maps and not of a prompt: they start as those of
    the block's self-attention, `norm_reference` as the norm in front of it. `model.init.reference` chooses the rest:

    - "attn1": queries, output and norm are those of self-attention as well, so that queries meet their own keys.
    - "self": they are those of attention to the prompt, which were trained with other keys.
    - "zero": as "self", with zero output.
    - "fresh": as "self", with random keys and values.

    "attn1" learned fastest on miniatures (docs/benchmarks.md). Parts that no file holds start as in `EMO.init`.

    Args:
        emo: the networks.
        sources: {kind of KINDS, or "hallo" or "echomimic": (origin, {name in the file or in diffusers: array})}.
        key: random key of the parameters that no file holds.
        scaling_factor: scaling factor of the VAE.
        hearing: (flat params, {name: reason}) of weights.wav2vec2, or None.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape: one line that names file and tensor.
    """
    flat_leaves: dict[str, Any] = dict(flatten_dict(emo.abstract_params(), sep="/"))
    shapes = {path: leaf.shape for path, leaf in flat_leaves.items()}
    flat, report = {}, Report({}, {}, {})
    for kind, (origin, tensors) in sources.items():
        filled, unused = _fill(_ALL[kind], shapes, origin, tensors)
        flat |= filled
        report.used[kind], report.unused[kind] = len(tensors) - len(unused), unused
    if "unet" in sources:
        _start_reference_attention(emo.config.model.init.reference, flat, report)
    if hearing is not None:
        flat |= {f"audio_encoder/{path}": a for path, a in hearing[0].items()}
        report.used["audio"], report.unused["audio"] = len(hearing[0]), hearing[1]
    for path in shapes:
        if path not in flat:
            flat[path], report.new[path] = _start(emo, flat, path, shapes[path], key, scaling_factor)
    return flat, report


def _fill(
    kind: Kind, shapes: dict[str, tuple[int, ...]], origin: str, tensors: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the params that a file fills, and {name: reason} of its unused tensors."""
    wanted = {path for path in shapes if re.match(kind.fills, path)}
    if kind.optional and not any(
        re.match(kind.optional, kind.prefixes[0] + kind.to_path(n, a)[0]) for n, a in tensors.items()
    ):
        wanted = {path for path in wanted if not re.match(kind.optional, path)}
    filled, unused, unknown, wrong = {}, {}, [], []
    for name, array in tensors.items():
        path, value = kind.to_path(name, array)
        own = [prefix + path for prefix in kind.prefixes if prefix + path in shapes]
        reason = next((why for pattern, why in kind.unused.items() if re.search(pattern, name)), None)
        if reason is None and not own and re.search(names.TEXT_ATTENTION, name):
            reason = "attention to the prompt, which this model does not replace by reference-attention"
        is_known = kind.prefixes[0] + path in wanted
        if not is_known:
            reason = reason or next((why for pattern, why in kind.extra.items() if re.match(pattern, name)), None)
        if reason is not None:
            unused[name] = reason
            continue
        if not is_known:
            unknown.append(name)
        wrong += [f"{name} has shape {array.shape}, {p} has {shapes[p]}" for p in own if value.shape != shapes[p]]
        filled |= dict.fromkeys(own, value)
    missing = sorted(kind.to_name(p, np.empty(shapes[p]))[0] for p in wanted - set(filled))
    for problem, found in (("lacks", missing), ("holds the unknown tensor", unknown), ("does not fit:", wrong)):
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ValueError(f"{origin} {problem} {found[0]}{more}; is it a file for this config?")
    return filled, unused


def _start_reference_attention(mode: str, flat: dict[str, np.ndarray], report: Report) -> None:
    """Replaces the query, output and norm of SD's attention to the prompt, as `model.init.reference` says."""
    pattern = {"attn1": _FROM_PROMPT, "zero": _FROM_PROMPT.replace("(to_q|to_out_0)|norm2", "to_out_0")}.get(mode)
    for path in [path for path in flat if pattern and re.search(pattern, path)]:
        name, _ = names.from_path(path.split("/", 1)[1], flat[path])
        source = path.replace("/attn2/", "/attn1/").replace("/norm2/", "/norm1/")
        flat[path] = flat[source] if mode == "attn1" else np.zeros_like(flat[path])
        report.new[path] = f"a copy of {source}" if mode == "attn1" else "zero"
        report.used["unet"] -= 1
        report.unused["unet"][name] = "attention to the prompt; model.init.reference starts from other values"


def _start(emo, flat, path, shape, key, scaling_factor):
    """Returns a parameter that no file holds, and how it starts."""
    if path == "vae/scaling_factor":
        return np.float32(scaling_factor), "the file's config, or SD's 0.18215"
    source = path.replace("/attn2/", "/attn1/").replace("/norm_reference/", "/norm1/")
    if re.search(_DERIVED, path) and source in flat and emo.config.model.init.reference != "fresh":
        if flat[source].shape != shape:
            raise ValueError(f"{path} has shape {shape} but {source}, which it starts from, {flat[source].shape}")
        return flat[source], f"a copy of {source}"
    value = emo.init_param(path, shape, key)
    return value, "zero" if not np.any(value) else "one" if np.all(value == 1) else "random"


def disassemble(flat, kind):
    """Returns the tensors {diffusers name: array} of one kind of file: the inverse of `assemble`."""
    found = {}
    for path, array in flat.items():
        if re.match(_ALL[kind].fills, path):
            name, value = _ALL[kind].to_name(path, np.asarray(array))
            found[name] = np.ascontiguousarray(value)
    return found


def parts(emo, flat=None):
    """Returns rows (part, tensors, parameters, dtypes, MB, stages that train it) in the order of models.parts.PARTS.

    Args:
        emo: the networks.
        flat: {path: array} of a checkpoint; without it, float32 as training has them.
    """
    trained_in = {part.name: part.stages for part in PARTS}
    table = {part.name: [] for part in PARTS}
    for path, leaf in flatten_dict(emo.abstract_params(), sep="/").items():
        table[part_of(path)].append(leaf if not flat else flat[path])
    return [
        (
            part,
            len(leaves),
            sum(int(np.prod(a.shape)) for a in leaves),
            ", ".join(sorted({str(a.dtype) for a in leaves})),
            sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in leaves) / 1e6,
            ", ".join(trained_in[part]) or "none",
        )
        for part, leaves in table.items()
        if leaves
    ]

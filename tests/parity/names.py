"""diffusers' parameter names and layouts -> ours: a mechanical renaming of {name: array}."""

import re

TEXT_ATTENTION = r"(?<!motion_modules\.\d\.)transformer_blocks\.0\.(attn2|norm2)\."
"""SD's attention to the prompt; EMO has none. In a temporal module attn2 is the second attention over frames."""

POSITIONS = r"\.?pos_embed\.pe$"
"""AnimateDiff's table of frame positions: computed here, no parameter."""


def rename(weights, leave_out=()):
    """Our flat params {path: array} of diffusers' {name: array}, without the names that match `leave_out`."""
    kept = {n: a for n, a in weights.items() if not any(re.search(pattern, n) for pattern in leave_out)}
    flat = dict(_one(name, array) for name, array in kept.items())
    if len(flat) != len(kept):
        raise ValueError(f"{len(kept) - len(flat)} of {len(kept)} torch parameters share a path with another")
    return flat


def _one(name, array):
    *module, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    # The VAE's attention block holds its norm and projections side by side; ours wraps the projections.
    if len(module) > 1 and module[-2] == "attentions_0" and module[-1].startswith("to_"):
        module.insert(-1, "attn")
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
    if array.ndim == 4:  # (out, in, h, w) -> (h, w, in, out)
        array = array.transpose(2, 3, 1, 0)
        if module[-1] in ("proj_in", "proj_out"):  # SD's 1x1 convolutions around a transformer are our dense layers
            array = array[0, 0]
    elif array.ndim == 2:
        array = array.T
    return "/".join([*module, leaf]), array

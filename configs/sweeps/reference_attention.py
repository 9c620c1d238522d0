"""Reference-attention as a separate layer (cross, the paper), as additional keys in self-attention (concat), or off.

    emo sweep configs/sweeps/reference_attention.py --output runs/reference --init-from runs/vae \
        --config.data.directory=data/synthetic

Expected result after 400 steps of each stage: identity 0.89 (cross), 0.76 (concat), 0.07 (off); seams 1.16 to 1.24.
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips", "identity", "seams")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for mode in ("cross", "concat", "off"):
        yield mode, {"model.reference_attention": mode}

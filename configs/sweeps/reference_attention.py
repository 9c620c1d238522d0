"""How the Backbone sees the reference: its own attention (the paper's), keys beside the frame's own, or not at all.

emo sweep configs/sweeps/reference_attention.py --output runs/reference --init-from runs/vae \
    --config.data.directory=data/synthetic
"""

CONFIG = "tiny"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips", "identity", "seams")


def get_sweep():
    """Points (name, overrides)."""
    for mode in ("cross", "concat", "off"):
        yield mode, {"model.reference_attention": mode}

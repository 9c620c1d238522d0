"""How many frames of the clip before a clip sees (n).

emo sweep configs/sweeps/motion_frames.py --output runs/motion --init-from runs/image \
    --config.data.directory=data/synthetic
"""

CONFIG = "configs/tiny.py"
STAGES = ("video",)
EVALUATE = ("--only", "lips", "seams", "length", "--long", "20")


def get_sweep():
    """Points (name, overrides)."""
    for n in (0, 2, 4):
        yield f"n{n}", {"clip.motion_frames": n}

"""How many frames of the clip before a clip sees (n), which join the clips of a long video (3.2, ReferenceNet).

emo sweep configs/sweeps/motion_frames.py --output runs/motion --init-from runs/image \
    --config.data.directory=data/synthetic

Two seeds of each tell what chance does.
"""

CONFIG = "tiny"
STAGES = ("video",)
EVALUATE = ("--only", "lips", "seams", "length", "--long", "20")


def get_sweep():
    """Points (name, overrides)."""
    for seed in (0, 1):
        for n in (0, 2, 4):
            yield f"n{n}-{seed}", {"clip.motion_frames": n, "train.seed": seed}

"""The number of motion frames (n), the last frames of the previous clip (Section 3.2, ReferenceNet).

    emo sweep configs/sweeps/motion_frames.py --output runs/motion --init-from runs/image \
        --config.data.directory=data/synthetic

Each point has two seeds, which show the spread. Expected result after 400 steps: seams 2.5 with n = 0, and 1.24 to 1.29
with n = 2 or 4; lips at least 0.14 lower with n = 0.
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("video",)
EVALUATE = ("--only", "lips", "seams", "length", "--long", "20")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for seed in (0, 1):
        for n in (0, 2, 4):
            yield f"n{n}-{seed}", {"clip.motion_frames": n, "train.seed": seed}

"""How many frames of sound before and after its own a frame hears (m).

emo sweep configs/sweeps/audio_window.py --output runs/window --init-from runs/image \
    --config.data.directory=data/synthetic
"""

CONFIG = "tiny"
STAGES = ("video",)
EVALUATE = ("--only", "lips", "silence", "seams")


def get_sweep():
    """Points (name, overrides)."""
    for m in (0, 1, 2, 4):
        yield f"m{m}", {"clip.audio_window": m}

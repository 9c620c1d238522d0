"""With the Face Locator, and without.

emo sweep configs/sweeps/face_locator.py --output runs/locator --init-from runs/vae \
    --config.data.directory=data/synthetic
"""

CONFIG = "tiny"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips", "identity", "place")


def get_sweep():
    """Points (name, overrides)."""
    for on in (True, False):
        yield "on" if on else "off", {"model.face_locator": on}

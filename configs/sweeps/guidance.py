"""Guidance towards the portrait and towards the voice; trains nothing.

emo sweep configs/sweeps/guidance.py --output runs/guidance --checkpoint tiny
"""

CONFIG = "tiny"
STAGES = ()
EVALUATE = ("--only", "lips", "identity", "seams", "--identities", "8")


def get_sweep():
    """Points (name, overrides)."""
    for reference, audio in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.5, 3.5)):
        name = f"reference{reference:g}-audio{audio:g}"
        yield name, {"sampling.reference_scale": reference, "sampling.audio_scale": audio}

"""Guidance scales of reference and audio; no training.

    emo sweep configs/sweeps/guidance.py --output runs/guidance --checkpoint small

This sweep has not been run to its end in this project; its points build (tests/evaluation/test_sweep.py).
"""

from collections.abc import Iterator

CONFIG = "small"
STAGES = ()
EVALUATE = ("--world", "people", "--only", "lip-gap", "likeness", "seams", "--identities", "8")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for reference, audio in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0), (3.5, 3.5)):
        name = f"reference{reference:g}-audio{audio:g}"
        yield name, {"sampling.reference_scale": reference, "sampling.audio_scale": audio}

"""With and without the Face Locator.

    emo sweep configs/sweeps/face_locator.py --output runs/locator --init-from runs/vae \
        --config.data.directory=data/synthetic

This sweep has not been run to its end in this project; its points build (tests/evaluation/test_sweep.py).
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips", "identity", "place")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for on in (True, False):
        yield "on" if on else "off", {"model.face_locator": on}

"""Stage speed on top of hallo: temporal modules trained with the speed layers (the paper), or left as released.

    emo sweep hallo_speed --output runs/hallo_speed --init-from weights/hallo --config.data.directory=data/mine

This sweep has not been run to its end in this project; its points build (tests/evaluation/test_sweep.py).
"""

from collections.abc import Iterator

CONFIG = "hallo"
STAGES = ("speed",)
EVALUATE = ("--only", "lips", "seams", "speed", "--identities", "4")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    yield "together", {"train.only": ()}
    yield "speed-only", {"train.only": ("speed_layers",)}

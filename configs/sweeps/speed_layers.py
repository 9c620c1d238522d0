"""With and without the speed layers; without them, stage speed trains only the temporal modules.

    emo sweep configs/sweeps/speed_layers.py --output runs/speeds --init-from runs/video \
        --config.data.directory=data/synthetic

This sweep has not been run to its end in this project; its points build (tests/evaluation/test_sweep.py).
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("speed",)
EVALUATE = ("--only", "lips", "seams", "speed")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for on in (True, False):
        yield "on" if on else "off", {"model.speed_layers": on}

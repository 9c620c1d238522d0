"""The number of frames before and after a frame whose sound it is conditioned on (m).

    emo sweep configs/sweeps/audio_window.py --output runs/window --init-from runs/image \
        --config.data.directory=data/synthetic

This sweep has not been run to its end in this project; its points build (tests/evaluation/test_sweep.py).
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("video",)
EVALUATE = ("--only", "lips", "silence", "seams")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for m in (0, 1, 2, 4):
        yield f"m{m}", {"clip.audio_window": m}

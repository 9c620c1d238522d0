"""Stage speed with the audio layers frozen (the paper) or trained, which the paper says harms the lips (Section 3.3).

    emo prepare synthetic --output data/follow --records 1000 --follow 1 --babble 0.5
    emo sweep configs/sweeps/joint_audio.py --output runs/joint --init-from runs/video \
        --config.data.directory=data/follow

Each point has two seeds, which show the spread. In this data, speed says more about the mouth than the sound does.
Expected result: no harm beyond the spread in the small model (docs/benchmarks.md).
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("speed",)
EVALUATE = ("--only", "lips", "silence", "speed", "--identities", "16")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for seed in (0, 1):
        for name, also in (("frozen", ()), ("together", ("audio_layers",))):
            yield f"{name}-{seed}", {"train.also": also, "train.seed": seed}

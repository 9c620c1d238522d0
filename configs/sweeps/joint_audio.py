"""The last stage with the audio layers frozen, as in the paper, and trained along, which it says harms the lips (3.3).

emo prepare synthetic --output data/follow --records 1000 --follow 1 --babble 0.5    # speed tells more than the sound
emo sweep configs/sweeps/joint_audio.py --output runs/joint --init-from runs/video --config.data.directory=data/follow

Two seeds of each tell what chance does.
"""

CONFIG = "tiny"
STAGES = ("speed",)
EVALUATE = ("--only", "lips", "silence", "speed", "--identities", "16")


def get_sweep():
    """Points (name, overrides)."""
    for seed in (0, 1):
        for name, also in (("frozen", ()), ("together", ("audio_layers",))):
            yield f"{name}-{seed}", {"train.also": also, "train.seed": seed}

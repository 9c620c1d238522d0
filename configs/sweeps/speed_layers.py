"""With the speed layers, and without: the last stage then trains the temporal modules alone.

emo sweep configs/sweeps/speed_layers.py --output runs/speeds --init-from runs/video \
    --config.data.directory=data/synthetic
"""

CONFIG = "tiny"
STAGES = ("speed",)
EVALUATE = ("--only", "lips", "seams", "speed")


def get_sweep():
    """Points (name, overrides)."""
    for on in (True, False):
        yield "on" if on else "off", {"model.speed_layers": on}

"""What the Backbone predicts: noise (the paper's), velocity, or the clean latents.

emo sweep configs/sweeps/prediction.py --output runs/prediction --init-from runs/vae \
    --config.data.directory=data/synthetic

Noise tells nothing where there is nothing else, so its schedule ends before that; it is compared with v on the same.
"""

CONFIG = "tiny"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips", "identity", "seams")


def get_sweep():
    """Points (name, overrides)."""
    for zero_snr, kinds in ((False, ("eps", "v")), (True, ("v", "x0"))):
        for kind in kinds:
            name = kind + ("-zero-snr" if zero_snr else "")
            yield name, {"diffusion.prediction": kind, "diffusion.zero_terminal_snr": zero_snr}

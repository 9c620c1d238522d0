"""The Backbone's prediction: noise (the paper), velocity, or clean latents.

    emo sweep configs/sweeps/prediction.py --output runs/prediction --init-from runs/vae \
        --config.data.directory=data/synthetic

Predicting noise is not possible at zero SNR, so eps is compared with v on a schedule without zero terminal SNR.
"""

from collections.abc import Iterator

CONFIG = "tiny"
STAGES = ("image", "video")
EVALUATE = ("--only", "lips", "identity", "seams")


def get_sweep() -> Iterator[tuple[str, dict[str, object]]]:
    """Yields (name, overrides) of each point."""
    for zero_snr, kinds in ((False, ("eps", "v")), (True, ("v", "x0"))):
        for kind in kinds:
            name = kind + ("-zero-snr" if zero_snr else "")
            yield name, {"diffusion.prediction": kind, "diffusion.zero_terminal_snr": zero_snr}

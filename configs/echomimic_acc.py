"""EchoMimic v1's accelerated weights: configs/echomimic.py with 6 steps and without guidance.

    emo convert --echomimic BadToBest/EchoMimic --accelerated --vae stabilityai/sd-vae-ft-mse -o weights/echomimic_acc
    emo generate --checkpoint weights/echomimic_acc --portrait me.jpg --audio speech.wav -o me.mp4

Expected result: as that of configs/echomimic.py, in a tenth of the network evaluations.
"""

from emo_jax.configs import echomimic
from ml_collections import ConfigDict


def get_config(stage: str = "video") -> ConfigDict:
    """Returns the config of a stage: vae | image | video | speed | distill."""
    config = echomimic.get_config(stage)
    config.sampling.update(steps=6, reference_scale=1.0, audio_scale=1.0)
    return config

"""EMO with the settings of its released relatives (hallo, EchoMimic, Moore-AnimateAnyone), at the size of base.py.

They predict v on a schedule with zero terminal SNR, sample with trailing timesteps, add offset noise, weight the loss
by min-SNR with gamma 5, append the reference to the keys and values of self-attention, and use two motion frames:

    emo train --config configs/relatives.py:video --workdir runs/video --config.data.directory=DATA \
        --config.train.init_from=runs/image

Expected result: this project has built and planned these networks but not trained them at this size.
"""

from emo_jax.configs import base
from ml_collections import ConfigDict


def get_config(stage: str = "image") -> ConfigDict:
    """Returns the config of a stage: vae | image | video | speed | distill."""
    config = base.get_config(stage)
    config.model.reference_attention = "concat"
    config.clip.motion_frames = 2
    config.diffusion.update(
        zero_terminal_snr=True, prediction="v", spacing="trailing", min_snr_gamma=5.0, noise_offset=0.05
    )
    config.sampling.update(solver="ddim", steps=40, eta=0.0, reference_scale=3.5, audio_scale=3.5)
    config.data.first_clip_prob = 0.05
    config.train.update(drop_reference=0.05, drop_audio=0.05)
    return base.as_student(config) if stage == "distill" else config

"""EchoMimic v1 (arXiv 2407.08136) at the size of its released weights, as a variant of base.py.

    emo convert --echomimic BadToBest/EchoMimic --vae stabilityai/sd-vae-ft-mse -o weights/echomimic
    emo generate --checkpoint weights/echomimic --portrait me.jpg --audio speech.wav -o me.mp4

Its accelerated weights sample 6 steps without guidance, as configs/echomimic_acc.py:

    emo convert --echomimic BadToBest/EchoMimic --accelerated --vae stabilityai/sd-vae-ft-mse -o weights/echomimic_acc

Expected result: equal to EchoMimic's own code for small random weights (tests/parity/test_echomimic.py). This project
has not run the released weights, which its machines cannot download.
"""

from emo_jax.configs import base, hallo
from ml_collections import ConfigDict


def get_config(stage: str = "video") -> ConfigDict:
    """Returns the config of a stage: vae | image | video | speed | distill."""
    config = base.get_config(stage)
    config.model.update(
        reference_attention="shared",
        speed_layers=stage == "speed",
        locator="controlnet",
        locator_channels=(16, 32, 96, 256),
    )
    config.model.audio.update(
        encoder="whisper", steps=10, layers=tuple(range(5)), gain=3.0, projected=False, features=384
    )  # fmt: skip
    # EchoMimic crops the portrait to a face box with half its size on each side, and adds a tenth of it to the mask.
    config.clip.face.update(height=0.5, centre=(0.5, 0.5), growth=(0.1, 0.1, 0.1, 0.1))
    config.clip.update(frames=12, motion_frames=0, audio_window=0, fps=24.0)
    config.diffusion.update(hallo.DIFFUSION)
    config.sampling.update(
        strategy="windows", solver="ddim", steps=30, reference_scale=2.5, audio_scale=2.5, stride=True, clips=1
    )
    config.train.update(drop_reference=0.05, drop_audio=0.05)
    return base.as_student(config) if stage == "distill" else config

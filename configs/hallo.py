"""hallo (arXiv 2406.08801) at the size of its released weights, as a variant of base.py.

    emo convert --hallo fudan-generative-ai/hallo --vae stabilityai/sd-vae-ft-mse \
        --audio facebook/wav2vec2-base-960h -o weights/hallo
    emo generate --checkpoint weights/hallo --portrait me.jpg --audio speech.wav -o me.mp4

Stage `speed` adds the speed layers of EMO, which hallo lacks; `image` and `video` train further:

    emo train --config configs/hallo.py:speed --workdir runs/speed --config.data.directory=DATA \
        --config.train.init_from=weights/hallo

Expected result: equal to hallo's own code for small random weights (tests/parity/test_hallo.py). This project has not
run the released weights, which its machines cannot download.
"""

from emo_jax.configs import base
from ml_collections import ConfigDict

DIFFUSION = dict(
    beta_schedule="linear",
    zero_terminal_snr=True,
    prediction="v",
    spacing="trailing",
    min_snr_gamma=5.0,
    noise_offset=0.05,
)
"""The noise schedule and the loss of hallo and of EchoMimic."""


def get_config(stage: str = "video") -> ConfigDict:
    """Returns the config of a stage: vae | image | video | speed | distill."""
    config = base.get_config(stage)
    config.model.update(
        reference_attention="shared",
        audio_branches=True,
        temporal_levels="attention",
        speed_layers=stage == "speed",
        locator="controlnet",
        locator_channels=(16, 32, 64, 128),
        locator_inputs=3,
    )
    config.model.audio.timing = "frames"
    config.model.face_embedding.tokens = 4
    config.clip.face.update(height=0.5, centre=(0.5, 0.5))  # hallo asks for faces of 50 to 70 % of a square picture
    config.clip.update(frames=16, motion_frames=2, first_motion="portrait")
    config.diffusion.update(DIFFUSION)
    config.sampling.update(
        solver="ddim", steps=40, reference_scale=3.5, audio_scale=3.5, stride=True, bank_tiling=True,
        reencode_motion=True, clips=1,
    )  # fmt: skip
    config.data.first_clip_prob = 0.05
    config.train.update(drop_reference=0.05, drop_audio=0.05)
    return base.as_student(config) if stage == "distill" else config

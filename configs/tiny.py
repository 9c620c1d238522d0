"""A small EMO at 128x128 pixels with all parts of base.py, which trains on two CPU cores.

    emo train --config tiny:vae ...    # then :image, :video, :speed; docs/train.md has the commands

Expected result: four hours on two cores (records 9 min, vae 20, image 31, video 78, speed 103), or twenty minutes on an
H100. `emo evaluate` then measures lips 0.90, silence 0.08, identity 0.99, seams 1.29, speed 1.73.
"""

from emo_jax.configs import base  # pyright: ignore[reportMissingImports]  # a folder of setup.cfg's package_dir
from ml_collections import ConfigDict

_STAGES = {
    "vae": dict(steps=1800, batch_size=16, optimizer="adamw", learning_rate=2e-3),
    "image": dict(steps=2000, batch_size=32, optimizer="muon", learning_rate=1.8e-3),
    "video": dict(steps=2400, batch_size=8, optimizer="muon", learning_rate=1.2e-3),
    "speed": dict(steps=5000, batch_size=8, optimizer="muon", learning_rate=3e-3),
    "distill": dict(steps=2000, batch_size=8, optimizer="adamw", learning_rate=2e-4),
}


def get_config(stage: str = "video") -> ConfigDict:
    """Returns the config of a stage: vae | image | video | speed | distill."""
    if stage not in _STAGES:
        raise ValueError(f"configs/tiny.py has no stage {stage!r}; expected one of {', '.join(_STAGES)}")
    config = base.get_config()
    config.model.update(
        dtype="float32",
        reference_positions=True,
        speed_positions=False,  # as in the runs of docs/benchmarks.md
        unet=dict(channels=(64, 128), attention=(True, False), layers=1, heads=4, groups=8, remat="none"),
        vae=dict(
            channels=(32, 64, 128),
            decoder_channels=(64, 96, 128),
            layers=1,
            groups=4,
            latent_channels=16,
            patch=4,
            shortcut=True,
        ),
        locator_channels=(8, 16, 32, 32),
        audio=dict(encoder="mel", bands=40, steps=4, tokens=4, features=64, hidden=128),
    )
    config.model.speed.features = 64
    config.clip.update(frames=8, motion_frames=2, audio_context=0.0, image_size=(128, 128))
    config.diffusion.update(zero_terminal_snr=True, prediction="x0", spacing="trailing", min_snr_gamma=2.0)
    config.sampling.update(solver="dpm++2m", steps=2, reference_scale=2.0, audio_scale=2.0)
    # More first clips than in base.py: with motion frames alone the network would learn to ignore the reference.
    config.data.update(crop_scale=(0.8, 0.8), same_window_prob=0.6, first_clip_prob=0.2, num_workers=0)
    config.train.update(
        stage=stage,
        ema=0.995,
        drop_both=0.0,  # as in the runs of docs/benchmarks.md
        face_weight=3.0,
        kl_weight=2e-4,
        motion_noise=0.05,
        log_every=25,
        save_every=250,
        sample_every=1000,
        steps=_STAGES[stage]["steps"],
        batch_size=_STAGES[stage]["batch_size"],
    )
    config.train.optimizer.update(
        name=_STAGES[stage]["optimizer"],
        learning_rate=_STAGES[stage]["learning_rate"],
        warmup=100,
        schedule="cosine",
        beta2=0.99,
        weight_decay=1e-4,
    )
    return base.as_student(config) if stage == "distill" else config

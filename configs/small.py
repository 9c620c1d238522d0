"""A small EMO at 256x256 pixels and 25 frames per second with all parts of base.py, in the same order.

    make small-weights    # data, :vae, lips, :video, :speed (launch/small_weights.sh)

Its data are records of `emo prepare synthetic --world mix`, those with landmarks. It has a VAE of flow: the latents of
a frame say how the portrait moves and where its mouth opens (models/flow_vae.py). A network of this size, trained for
hours on two cores on latents of pictures, did not learn to draw the opening mouth of a stranger. A portrait that moves
keeps its detail, and mouths move alike: over 389 rendered people, one linear map from the lips' opening and width and
the head's position explains 0.59 of the optical flow around the mouth, and 0.38 of that of 14 others (of latents of
pictures, 0.03 and none).

On two CPU cores a step of vae takes 1.7 s and a step of video 3.9 s (measured). The bundled weights come from shorter
stages, which docs/benchmarks.md lists.
"""

from emo_jax.configs import base  # pyright: ignore[reportMissingImports]  # a folder of setup.cfg's package_dir
from ml_collections import ConfigDict

_STAGES = {
    "vae": dict(steps=4000, batch_size=32, optimizer="adamw", learning_rate=2e-3),
    "image": dict(steps=4000, batch_size=32, optimizer="muon", learning_rate=1.5e-3),
    "video": dict(steps=6000, batch_size=8, optimizer="muon", learning_rate=1e-3),
    "speed": dict(steps=4000, batch_size=8, optimizer="muon", learning_rate=2e-3),
    "distill": dict(steps=2000, batch_size=8, optimizer="adamw", learning_rate=2e-4),
}


def get_config(stage: str = "video") -> ConfigDict:
    """Returns the config of a stage: vae | image | video | speed | distill."""
    if stage not in _STAGES:
        raise ValueError(f"configs/small.py has no stage {stage!r}; expected one of {', '.join(_STAGES)}")
    config = base.get_config()
    config.model.update(
        dtype="float32",
        reference_positions=True,
        image_inputs=True,
        unet=dict(channels=(64, 128), attention=(True, True), layers=1, heads=4, groups=8, remat="none"),
        vae=dict(
            channels=(64,),  # of which only the number counts
            decoder_channels=(64,),
            layers=3,
            groups=8,
            latent_channels=96,
            patch=32,
            flow_channels=16,
            mouth_channels=12,
        ),
        locator_channels=(16, 32, 48, 64, 64),
        audio=dict(encoder="mel", bands=80, steps=4, tokens=8, features=128, hidden=192),
    )
    config.model.speed.features = 128
    # Lips lead the sound by up to 0.12 seconds, which a window of three frames on each side covers.
    config.clip.update(frames=8, motion_frames=2, audio_window=3, audio_context=0.0, image_size=(256, 256), flow_cell=4)
    # By `emo prepare stats` over 100 records of five seconds.
    config.clip.face.update(height=0.605, centre=(0.501, 0.526), growth=(0.012, 0.006, 0.011, 0.005))
    config.model.speed.update(
        centres=(0.113, 0.212, 0.296, 0.395, 0.54, 0.733, 1.006, 1.476, 2.531),
        radii=(0.099, 0.091, 0.092, 0.122, 0.169, 0.233, 0.372, 0.762, 1.055),
    )
    config.diffusion.update(zero_terminal_snr=True, prediction="v", spacing="trailing", min_snr_gamma=2.0)
    # Of five held-out people, the lips' correlation with the truth was 0.36 with both scales 2, 0.54 with 1 and 2.5 (at
    # step 350), and at the end 0.47 with 1 and 3, 0.72 with 1 and 4.5; but lips swell.
    config.sampling.update(solver="dpm++2m", steps=4, reference_scale=1.0, audio_scale=3.0, portrait_return=0.3)
    # A video starts at the portrait's pose: the portrait is the motion frames of the first clip, in the clip's crop.
    config.clip.first_motion = "portrait"
    # Crops as in generation: mouths then lie at about the same latents, where a network of this size finds them.
    config.data.update(face_crop=True, crop_scale=(0.92, 1.0))
    config.data.update(same_window_prob=1.0, min_reference_gap=0.2, first_clip_prob=0.1, num_workers=0)
    # From faster heads, a network of this size learned the average of many poses and no details of faces.
    config.data.max_speed = 0.4 if stage in ("image", "video") else 0.0
    if stage == "vae":
        config.data.update(face_crop=False, crop_scale=(0.6, 1.0), min_reference_gap=0.0)
        config.data.update(color_jitter=0.2, flip_prob=0.5)
    config.train.update(
        stage=stage,
        ema=0.995,
        face_weight=2.0,
        # Without these, 200 steps of video learned nothing from the voice: the mouth's movement is 1 % of the loss.
        mouth_weight=10.0 if stage == "vae" else 6.0,
        motion_weight=6.0,
        kl_weight=1e-4,
        motion_patch_drop=0.25,
        gradient_weight=0.1,
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

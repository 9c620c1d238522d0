"""The smallest EMO that has every part, for tests."""

from emo_jax.configs import tiny

WAV2VEC2 = dict(
    encoder="wav2vec2",
    layers=(0, 2),
    wav2vec2=dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    ),
)  # fmt: skip
"""Fields of `model.audio` for a small EMO with wav2vec 2.0."""

WHISPER = dict(
    encoder="whisper", layers=(0, 2), steps=4,
    whisper=dict(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=8,
        max_source_positions=20,
    ),
)  # fmt: skip
"""Fields of `model.audio` for a small EMO with Whisper's encoder."""


def small_config(stage="video", **model):
    """Returns configs/tiny.py at test size; keyword arguments override fields of `model`."""
    config = tiny.get_config(stage)
    config.model.unet.update(channels=(16, 32), heads=2, groups=8)
    config.model.vae.update(channels=(8, 16, 32), decoder_channels=(8, 16, 32), groups=4, latent_channels=4)
    config.model.audio.update(bands=8, tokens=2, features=16, hidden=16)
    config.model.speed.features = 16
    config.model.locator_channels = (4, 4, 8, 8)
    config.clip.update(image_size=(64, 64), frames=4, motion_frames=2)
    config.model.update(model)
    return config


def as_flow(config):
    """Gives a config a VAE of flow, as configs/small.py has one; returns it."""
    config.model.vae.update(channels=(16,), decoder_channels=(16,), layers=1, patch=16, latent_channels=12)
    config.model.vae.update(flow_channels=6, mouth_channels=2, shortcut=False)
    config.model.image_inputs = True
    config.clip.update(flow_cell=2, first_motion="portrait")
    config.diffusion.update(zero_terminal_snr=True, prediction="v", spacing="trailing")
    return config


def as_hallo(config):
    """Gives a config the parts and settings of configs/hallo.py, at its own size; returns it."""
    config.model.update(
        reference_attention="shared", audio_branches=True, temporal_levels="attention", reference_positions=False,
        face_embedding=dict(tokens=2, size=4, features=8),
    )  # fmt: skip
    config.clip.first_motion = "portrait"
    config.diffusion.update(beta_schedule="linear", zero_terminal_snr=True, prediction="v", spacing="trailing")
    config.sampling.update(solver="ddim", steps=3, stride=True, bank_tiling=True, reencode_motion=True)
    return config


def as_echomimic(config):
    """Gives a config with Whisper's encoder the parts and settings of configs/echomimic.py; returns it."""
    config.model.update(reference_attention="shared", reference_positions=False, speed_layers=False)
    config.model.audio.update(projected=False, gain=3.0, features=config.model.audio.whisper.d_model)
    config.clip.update(motion_frames=0, audio_window=0, fps=24.0)
    config.diffusion.update(beta_schedule="linear", zero_terminal_snr=True, prediction="v", spacing="trailing")
    config.sampling.update(strategy="windows", solver="ddim", steps=3, stride=True, clips=1)
    return config


def draw_people(directory, count, seconds):
    """Writes records of `count` rendered people who talk, 80 x 80 pixels at 25 fps; returns the directory."""
    from emo_jax.data.records import write_records
    from emo_jax.synthetic.world import make_record

    splits = {"train": lambda: (make_record(seed, seconds=seconds, size=80) for seed in range(count))}
    write_records(directory, splits, shards=1, progress=False)
    return directory

"""Sizes that the recorded torch models and ours share, and a substitute for a network in solver trajectories."""

import pathlib

REFERENCE = pathlib.Path(__file__).parent / "reference.npz"
"""Weights (float16), inputs and outputs (float32) of torch models, written by `tests/parity/record.py`."""

CHANNELS, ATTENTION, LAYERS, HEADS, GROUPS, LATENT_CHANNELS = (8, 16), (True, False), 1, 2, 4, 4
TEXT = 8  # width of the text attention, which EMO does not have
FRAMES = 4
LATENT_SIZE, VIDEO_SIZE, IMAGE_SIZE = (8, 12), (4, 6), (32, 48)
TIMESTEPS = (0, 37, 999)
VAE_CHANNELS, VAE_GROUPS = (8, 8, 16), 4

# wav2vec 2.0 in the variants base and large, by transformers' names; unpadded lengths of padded recordings
_WAV2VEC2 = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7)
WAV2VEC2 = {
    "base": _WAV2VEC2 | dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4),
    "large": _WAV2VEC2
    | dict(
        num_conv_pos_embeddings=9,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
    ),
}
BRANCHES = ("full", "face", "lip")
FACE, FACE_TOKENS, LOCATOR = 12, 4, (4, 4, 8, 8)  # size of a face embedding, its tokens, widths of hallo's locator
VOICE, VOICE_TOKENS = 12, 3  # size and number of audio tokens
HALLO_STEPS = (3, 30)
WHISPER = dict(
    d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=8, max_source_positions=20
)
WHISPER_SAMPLES = 9000
WAV2VEC2_SAMPLES, WAV2VEC2_LENGTHS = 4000, (4000, 2500)

# {name: (solver, spacing, zero terminal SNR, prediction, DDIM's set_alpha_to_one)}
SAMPLING = {
    "ddim_leading_eps": ("ddim", "leading", False, "eps", True),
    "ddim_leading_eps_sd15": ("ddim", "leading", False, "eps", False),
    "ddim_leading_v": ("ddim", "leading", False, "v", True),
    "ddim_trailing_eps": ("ddim", "trailing", False, "eps", True),
    "ddim_trailing_v_zero_snr": ("ddim", "trailing", True, "v", True),
    "dpm_leading_eps": ("dpm++2m", "leading", False, "eps", True),
    "dpm_trailing_eps": ("dpm++2m", "trailing", False, "eps", True),
    "dpm_trailing_v": ("dpm++2m", "trailing", False, "v", True),
    "dpm_trailing_v_zero_snr": ("dpm++2m", "trailing", True, "v", True),
}
STEPS = (8, 20)  # diffusers treats fewer than 15 steps differently
SAMPLE_SHAPE = (2, 3, 4, 2)


def pseudo_model(x, t):
    """Returns a prediction that is nonlinear in x and depends on t, for torch and JAX arrays."""
    return x / (1 + abs(x)) + 0.3 - t / 2000

"""The schedule fixture."""

import pytest
from ml_collections import ConfigDict

from emo_jax.diffusion.schedule import make_schedule

SD15 = dict(
    train_steps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    zero_terminal_snr=False,
    prediction="eps",
    spacing="leading",
    min_snr_gamma=0.0,
    noise_offset=0.0,
)


@pytest.fixture(scope="session")
def schedule():
    """Function that builds Stable Diffusion 1.5's schedule with some fields changed."""
    return lambda **changes: make_schedule(ConfigDict(SD15 | changes))

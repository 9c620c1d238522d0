"""Guidance options of the sampler."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from emo_jax.generation.sampler import SAMPLING_OPTIONS, VideoSampler, check_sampling, guidance_options
from tests.echo import RecordingRule, echo
from tests.small import small_config


def calls_of(**options):
    """Generates one segment; returns the sizes of the Backbone's batches, in order."""
    config = small_config("speed")
    config.sampling.update(steps=4, solver="ddim", clips=1, reference_scale=2.0, audio_scale=2.0, **options)
    rule = RecordingRule()
    sampler = VideoSampler(echo(config, rule), {}, config.sampling)
    portraits, masks = np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 64, 64, 1), np.uint8)
    audio = np.zeros((1, 4 * 640), np.float32)
    list(sampler.stream(portraits, masks, audio, key=jax.random.key(0)))
    jax.effects_barrier()
    return [len(call["latents"]) for call in rule.calls]


def test_the_interval_saves_a_pass_in_the_other_steps():
    """The timesteps of four trailing steps are 999, 749, 499 and 249."""
    assert calls_of() == [2, 2, 2, 2]
    assert calls_of(guidance_interval=(0.2, 0.6)) == [1, 1, 2, 2]


def test_configs_of_older_weights_lack_the_options():
    config = small_config().sampling
    for name in SAMPLING_OPTIONS:
        del config[name]
    assert guidance_options(config, 1000) == dict(rescale=0.0, interval=None)
    check_sampling(config, 1000)
    assert guidance_options(ConfigDict(dict(guidance_interval=(0.25, 0.8))), 1000)["interval"] == (250, 799)


@pytest.mark.parametrize("change", [
    dict(guidance_rescale=1.1), dict(guidance_rescale=-0.1), dict(guidance_interval=(0.5, 0.5)),
    dict(guidance_interval=(-0.1, 1.0)), dict(guidance_interval=(0.0, 1.5)),
])  # fmt: skip
def test_options_out_of_range_raise(change):
    config = small_config().sampling
    config.update(change)
    with pytest.raises(ValueError, match=next(iter(change))):
        check_sampling(config, 1000)

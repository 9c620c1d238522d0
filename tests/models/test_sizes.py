"""Frames need not be square, at full size and in a small video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emo_jax.configs import base
from flax.traverse_util import flatten_dict

from emo_jax.generation import sampler as sampling
from emo_jax.generation.pipeline import EmoPipeline
from emo_jax.models.emo import build
from emo_jax.weights.store import save_weights
from tests.small import small_config


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 448), (512, 512), (512, 768), (768, 512)])
def test_full_size_networks_accept_all_sizes(size):
    config = base.get_config()
    config.clip.image_size = size
    emo = build(config)

    def run(params, images, mask):
        latents = emo.encode(params, images)
        conditions = emo.conditions(params, reference=latents[:, :1], motion=latents[:, :1], mask=mask)
        return emo.decode(params, emo.denoise(params, latents, jnp.zeros(1, jnp.int32), conditions))

    images, mask = (jax.ShapeDtypeStruct((1, *shape), jnp.uint8) for shape in ((2, *size, 3), (*size, 1)))
    assert jax.eval_shape(run, emo.abstract_params(), images, mask).shape == (1, 2, *size, 3)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A small EMO in bfloat16 with random weights in all parts, for another size than its config's."""
    config = small_config(dtype="bfloat16")
    config.sampling.update(steps=1, clips=2, reference_scale=1.0, audio_scale=1.0)
    flat, rng = flatten_dict(build(config).init(jax.random.key(0)), sep="/"), np.random.default_rng(1)
    flat = {path: a + rng.normal(0, 0.1, np.shape(a)).astype(np.float32) for path, a in flat.items()}
    directory = tmp_path_factory.mktemp("wide") / "weights"
    save_weights(directory, config, flat)
    return EmoPipeline.from_pretrained(directory, size=(32, 64))


@pytest.mark.slow
def test_a_wide_video_in_bfloat16(wide, monkeypatch):
    """Weights are stored in bfloat16, and decoding in groups of frames changes nothing."""
    leaves = jax.tree.leaves(wide.params)
    assert {a.dtype.name for a in leaves if a.ndim} == {"bfloat16"}
    assert wide.params["vae"]["scaling_factor"].dtype == np.float32
    portrait = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    voice = np.random.default_rng(1).normal(0, 0.1, 9 * 640).astype(np.float32)
    ungrouped = wide(portrait, voice, face_box=(40, 20, 80, 70), framing="crop").frames
    assert ungrouped.shape == (9, 32, 64, 3) and ungrouped.std() > 1
    monkeypatch.setattr(sampling, "_DECODED_PIXELS", 3 * 32 * 64)
    sampler = next(iter(wide._samplers.values()))
    sampler._decode = jax.jit(lambda *args: sampler._decode_fn(*args))  # a new function: not cached
    grouped = wide(portrait, voice, face_box=(40, 20, 80, 70), framing="crop").frames
    assert np.abs(grouped.astype(int) - ungrouped).max() <= 1

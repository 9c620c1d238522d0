"""Our networks and solvers against diffusers' torch implementations, recorded by `tests/parity/record.py`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from emo_jax.diffusion.sampler import sample
from emo_jax.diffusion.schedule import convert, make_schedule, timesteps
from emo_jax.diffusion.solvers import make_solver
from emo_jax.models import reference_net as rn
from emo_jax.models.conditions import Conditions
from emo_jax.models.temporal import MotionModule
from emo_jax.models.unet import DEEP, UNet, UNetConfig
from emo_jax.models.vae import VAE, VAEConfig
from emo_jax.weights.names import POSITIONS, TEXT_ATTENTION, to_path
from tests.parity import cases

TOLERANCE = 3e-5  # distinguishes an epsilon of 1e-6 from 1e-5 in any norm
# ReferenceNet ends with the state after the last self-attention.
BEHIND_LAST_FEATURE = (
    rf"conv_(norm_)?out|up_blocks\.{len(cases.CHANNELS) - 1}\.attentions\.{cases.LAYERS}\."
    r"(proj_out|transformer_blocks\.0\.(norm3|ff))"
)

# Programs run once and are not optimised, because compiling dominates.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
UNET = UNetConfig(cases.CHANNELS, cases.ATTENTION, cases.LAYERS, cases.HEADS, cases.GROUPS, cases.LATENT_CHANNELS)
BASE = dict(
    train_steps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, spacing="trailing",
    zero_terminal_snr=False, prediction="eps", min_snr_gamma=0.0, noise_offset=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded():
    """Function that returns {name: array} of the recorded arrays with a prefix."""
    with np.load(cases.REFERENCE) as stored:
        arrays = {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in stored.items()}
    return lambda prefix: {n.removeprefix(f"{prefix}/"): a for n, a in arrays.items() if n.startswith(f"{prefix}/")}


def close(ours, theirs, tolerance=TOLERANCE):
    """Checks the largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    error = np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, f"relative error {error:.1e}"


def filled(module, weights, *inputs, leave_out=(), extra=()):
    """Converts torch weights to params of a module; all of both must be used, except those in `leave_out`."""
    kept = {name: a for name, a in weights.items() if not any(re.search(pattern, name) for pattern in leave_out)}
    flat = dict(to_path(name, a) for name, a in kept.items())
    assert len(flat) == len(kept)  # paths are unique
    flat |= dict(extra)
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract, sep="/").items()}
    assert {path: a.shape for path, a in flat.items()} == shapes
    return unflatten_dict({path: jnp.asarray(a) for path, a in flat.items()}, sep="/")


def compare_features(ours, theirs):
    theirs = {name.replace("blocks.", "blocks_"): a for name, a in theirs.items()}
    assert set(ours) == set(theirs)
    for layer, feature in ours.items():
        close(feature.reshape(theirs[layer].shape), theirs[layer])


def test_unet_and_its_features(recorded):
    r = recorded("unet")
    latents, t = r["latents"][:, None], jnp.asarray(cases.TIMESTEPS)
    net = UNet(UNET)
    params = filled(net, recorded("unet/weights"), latents, t, leave_out=[TEXT_ATTENTION])
    prediction, features = compiled(net.apply)({"params": params}, latents, t)
    close(prediction[:, 0], r["prediction"])
    del features[DEEP]  # not of a layer
    compare_features(features, recorded("unet/features"))


def test_reference_net(recorded):
    r = recorded("unet")
    latents = r["latents"][:1, None]  # the sample at timestep 0
    net = rn.reference_net(UNET)
    leave_out = [TEXT_ATTENTION, BEHIND_LAST_FEATURE]
    params = filled(net, recorded("unet/weights"), latents, jnp.zeros(1), leave_out=leave_out)
    features = compiled(lambda p, x: rn.features(net, {"params": p}, x))(params, latents)
    compare_features(features, {n: a[:1] for n, a in recorded("unet/features").items()})


@pytest.mark.parametrize("motion_frames", [0, 1])
def test_temporal_module(recorded, motion_frames):
    """Motion frames are the first frames of AnimateDiff's sequence, which are dropped from the output."""
    r = recorded("motion")
    module = MotionModule(cases.HEADS, cases.GROUPS)
    params = filled(module, recorded("motion/weights"), r["frames"], leave_out=[POSITIONS])
    motion, clip = (r["frames"][:, :motion_frames] if motion_frames else None), r["frames"][:, motion_frames:]
    out = compiled(module.apply)({"params": params}, clip, motion)
    close(out, r["output"][:, motion_frames:])
    close(out - clip, (r["output"] - r["frames"])[:, motion_frames:])


def test_unet_with_temporal_modules(recorded):
    r = recorded("video")
    net = UNet(UNetConfig(**{**vars(UNET), "temporal": True}))
    inputs = r["latents"], jnp.asarray(cases.TIMESTEPS[1:]), Conditions()
    params = filled(net, recorded("video/weights"), *inputs, leave_out=[TEXT_ATTENTION, POSITIONS])
    close(compiled(net.apply)({"params": params}, *inputs)[0], r["prediction"])


def test_vae(recorded):
    r = recorded("vae")
    vae = VAE(VAEConfig(cases.VAE_CHANNELS, cases.VAE_CHANNELS, cases.LAYERS, cases.VAE_GROUPS, cases.LATENT_CHANNELS))
    scale = jnp.asarray(0.18215)  # in torch it is part of the config
    params = filled(vae, recorded("vae/weights"), r["images"], extra={"scaling_factor": scale})
    mean, logvar = compiled(lambda p, x: vae.apply({"params": p}, x, method="moments"))(params, r["images"])
    close(mean, r["mean"])
    close(logvar, r["logvar"])
    decode = compiled(lambda p, z: vae.apply({"params": p}, z, method="decode"))
    close(decode(params, r["latents"] * scale), r["decoded"])


@pytest.mark.parametrize("zero", [False, True])
def test_alphas_cumprod(recorded, zero):
    schedule = make_schedule(ConfigDict(BASE | dict(zero_terminal_snr=zero, prediction="v")))
    np.testing.assert_allclose(schedule.alphas_cumprod, recorded("sampling")[f"alphas_cumprod_{zero}"], 2e-5, 1e-7)


@pytest.mark.parametrize("steps", cases.STEPS)
@pytest.mark.parametrize("name", cases.SAMPLING)
def test_trajectory(recorded, name, steps):
    """All steps of a trajectory agree.

    At zero SNR, DPM-Solver++ differs by design: diffusers uses 2 ** -24 for the last alpha_bar, so that its second step
    is second order and extrapolates over a finite substitute for an infinite lambda; ours is first order there.
    """
    solver_name, spacing, zero, prediction, alpha_to_one = cases.SAMPLING[name]
    r = recorded(f"sampling/{name}_{steps}")
    schedule = make_schedule(ConfigDict(BASE | dict(zero_terminal_snr=zero, prediction=prediction)))
    ts = timesteps(schedule, steps, spacing)
    np.testing.assert_array_equal(ts, r["timesteps"])
    solver = make_solver(solver_name, schedule, alpha_to_one=alpha_to_one)

    x, key = jnp.asarray(recorded("sampling")["x_T"]), jax.random.key(0)
    state = solver.init(x)
    step = compiled(
        lambda state, x, t, t_next: solver.step(
            state, x, *convert(schedule, cases.pseudo_model(x, t), x, t, prediction), t, t_next, key
        )
    )
    tolerance = 5e-3 if solver_name == "dpm++2m" and zero else TOLERANCE
    for t, t_next, expected in zip(ts, [*ts[1:], -1], r["trajectory"][1:], strict=True):
        x, state = step(state, x, jnp.int32(t), jnp.int32(t_next))
        close(x, expected, tolerance)


def test_sample_ends_at_the_end_of_the_trajectory(recorded):
    name = "dpm_trailing_v"
    r = recorded(f"sampling/{name}_8")
    schedule = make_schedule(ConfigDict(BASE | dict(prediction="v")))
    x_T = recorded("sampling")["x_T"]

    def denoise(x, t):
        return cases.pseudo_model(x, t[:, None, None, None])

    x = sample(denoise, schedule, make_solver("dpm++2m", schedule), x_T, r["timesteps"], jax.random.key(0))
    close(x, r["trajectory"][-1])

"""Records outputs of diffusers' and transformers' torch models with small random weights, for tests without torch.

    python -m tests.parity.record            # writes tests/parity/reference.npz
    python -m tests.parity.record --check    # recomputes and compares

It needs torch, diffusers and transformers, in a separate environment (.ci/run creates one). Weights are representable
and stored in float16; networks run in float64, so that other machines compute the same float32 outputs.
"""

import argparse
import functools
import sys

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    Transformer2DModel,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from transformers import Wav2Vec2Config, Wav2Vec2Model, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.parity import cases, record_hallo

TOLERANCE = 1e-5
# Gains that keep residual streams small, so that epsilons of norms matter, and attention far from uniform.
_GAINS = {"to_q": 2.0, "to_k": 2.0, "conv_in": 0.01, "proj_in": 0.03, "proj_out": 0.1, "conv2": 0.03, "to_out.0": 0.03}
_GAINS |= {"net.2": 0.1, "q_proj": 2.0, "k_proj": 2.0}


def randomise(model, rng, gains=_GAINS, keep_text=False):
    """Sets all parameters of a model to random values; returns {name: float16 array}.

    Attention to the prompt contributes nothing, unless `keep_text`.
    """
    weights = {}
    for name, parameter in sorted(model.named_parameters()):
        draw = rng.standard_normal(tuple(parameter.shape))
        if parameter.ndim == 1:
            is_norm, is_scale = "norm" in name.split(".")[-2], name.endswith("weight")
            draw = is_scale + (0.3 if is_norm else 0.02) * draw
        else:
            gain = next((g for end, g in gains.items() if name.endswith(f"{end}.weight")), 1.0)
            draw *= gain / np.sqrt(parameter[0].numel())
        if is_text_attention(name) and "to_out" in name and not keep_text:
            draw *= 0
        weights[name] = draw.astype(np.float16)
        parameter.data = torch.from_numpy(weights[name].astype(np.float64))
    model.double().eval()
    return weights


def is_text_attention(name):
    return "motion_modules" not in name and "attentions" in name and "attn2" in name


def channels_last(tensor):
    """Converts a tensor (..., C, H, W) to an array (..., H, W, C)."""
    return tensor.movedim(-3, -1).numpy()


def normal(rng, *shape, scale=1.0):
    """Returns a float64 tensor of float32 values."""
    return torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32)).double()


def record_unet(rng):
    """Records SD's UNet and its layers' features: the state after self-attention, or the resnet's output."""
    unet = UNet2DConditionModel(
        down_block_types=[f"{'CrossAttn' if a else ''}DownBlock2D" for a in cases.ATTENTION],
        up_block_types=[f"{'CrossAttn' if a else ''}UpBlock2D" for a in cases.ATTENTION[::-1]],
        attention_head_dim=cases.HEADS,  # in SD1.5's config, this is the number of heads
        **_unet_sizes(),
    )
    weights = randomise(unet, rng)
    found, handles = {}, []
    for block_name, block in unet.named_modules():
        if not hasattr(block, "resnets"):
            continue
        attentions = getattr(block, "attentions", None)
        for j, resnet in enumerate(block.resnets):
            layer = f"{block_name}.{j}"
            if attentions is None:
                handles.append(resnet.register_forward_hook(lambda _, __, y, n=layer: found.update({n: y})))
            elif j < len(attentions):
                norm2 = attentions[j].transformer_blocks[0].norm2
                handles.append(norm2.register_forward_pre_hook(lambda _, x, n=layer: found.update({n: x[0]})))
    latents = normal(rng, len(cases.TIMESTEPS), cases.LATENT_CHANNELS, *cases.LATENT_SIZE)
    out = unet(latents, torch.tensor(cases.TIMESTEPS), normal(rng, len(cases.TIMESTEPS), 3, cases.TEXT)).sample
    features = {f"features/{n}": a.numpy() if a.ndim == 3 else channels_last(a) for n, a in found.items()}
    return _named("unet", weights, latents=channels_last(latents), prediction=channels_last(out), **features)


def record_motion(rng):
    """Records one temporal module of diffusers.

    Its GroupNorm computes statistics over all frames, AnimateDiff's code over each frame. The recorded frames are
    shifts of one picture, for which both agree.
    """
    width = cases.CHANNELS[1]
    module = AnimateDiffTransformer3D(
        cases.HEADS,
        width // cases.HEADS,
        in_channels=width,
        norm_num_groups=cases.GROUPS,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=32,
    )
    weights = randomise(module, rng)
    picture = normal(rng, 2, width, 4, 6, scale=0.03)
    frames = torch.stack([picture.roll(k, dims=-1) for k in range(cases.FRAMES)], dim=1)  # (B, f, C, h, w)
    out = module(frames.flatten(0, 1), num_frames=cases.FRAMES).unflatten(0, frames.shape[:2])
    return _named("motion", weights, frames=channels_last(frames), output=channels_last(out))


def record_video(rng):
    """Records AnimateDiff's UNet, with the norms of its temporal modules computed frame by frame."""
    unet = UNetMotionModel(
        down_block_types=[f"{'CrossAttn' if a else ''}DownBlockMotion" for a in cases.ATTENTION],
        up_block_types=[f"{'CrossAttn' if a else ''}UpBlockMotion" for a in cases.ATTENTION[::-1]],
        num_attention_heads=cases.HEADS,
        motion_num_attention_heads=cases.HEADS,
        **_unet_sizes(),
    )
    weights = randomise(unet, rng)
    latents = normal(rng, 2, cases.LATENT_CHANNELS, cases.FRAMES, *cases.VIDEO_SIZE)  # (B, C, f, h, w)
    timesteps, text = torch.tensor(cases.TIMESTEPS[1:]), normal(rng, 2 * cases.FRAMES, 3, cases.TEXT)
    unchanged = unet(latents, timesteps, text).sample
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm.forward = record_hallo.frame_by_frame(module.norm.forward)
    out = unet(latents, timesteps, text).sample
    change = (unchanged - out).abs().max() / out.abs().max()
    print(f"video: norms over all frames at once change the UNet's output by {change:.1%}")
    return _named(
        "video", weights, latents=channels_last(latents.transpose(1, 2)), prediction=channels_last(out.transpose(1, 2))
    )


def record_vae(rng):
    """Records SD's autoencoder on images that are not square."""
    levels = len(cases.VAE_CHANNELS)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=cases.VAE_CHANNELS,
        layers_per_block=cases.LAYERS,
        norm_num_groups=cases.VAE_GROUPS,
        latent_channels=cases.LATENT_CHANNELS,
    )
    weights = randomise(vae, rng)
    images = normal(rng, 1, 3, *cases.IMAGE_SIZE)
    latents = normal(rng, 1, cases.LATENT_CHANNELS, 8, 12)
    found = vae.encode(images).latent_dist
    arrays = dict(images=images, mean=found.mean, logvar=found.logvar, latents=latents)
    arrays |= dict(decoded=vae.decode(latents).sample)
    return _named("vae", weights, **{name: channels_last(a) for name, a in arrays.items()})


def record_sampling(rng):
    """Records schedules, and trajectories (steps + 1, ...) of schedulers with a substitute for the network."""
    x = rng.standard_normal(cases.SAMPLE_SHAPE).astype(np.float32)
    arrays = {"sampling/x_T": x}
    for zero in (False, True):
        arrays[f"sampling/alphas_cumprod_{zero}"] = ddim("trailing", zero, "v", True, 8).alphas_cumprod.numpy()
    for name, (solver, *options) in cases.SAMPLING.items():
        for steps in cases.STEPS:
            scheduler = ddim(*options, steps) if solver == "ddim" else dpm_solver(*options, steps)
            trajectory = [torch.from_numpy(x).double()]
            for t in scheduler.timesteps:
                prediction = cases.pseudo_model(trajectory[-1], float(t))
                trajectory.append(scheduler.step(prediction, t, trajectory[-1]).prev_sample.double())
            arrays[f"sampling/{name}_{steps}/timesteps"] = scheduler.timesteps.numpy()
            arrays[f"sampling/{name}_{steps}/trajectory"] = torch.stack(trajectory).numpy()
    return arrays


def record_wav2vec2(rng):
    """Records wav2vec 2.0 on unpadded and padded recordings, quiet ones, so that the first norm's epsilon matters."""
    arrays = {}
    samples = cases.WAV2VEC2_SAMPLES
    real = torch.arange(samples) < torch.tensor(cases.WAV2VEC2_LENGTHS)[:, None]
    for name, geometry in cases.WAV2VEC2.items():
        model = Wav2Vec2Model(Wav2Vec2Config(**geometry, mask_time_prob=0.0))  # without its masked_spec_embed
        weights = randomise(model, rng)
        audio = normal(rng, len(real), samples, scale=0.03)
        found = {"": model(audio, output_hidden_states=True)}
        found["padded_"] = model(audio * real, attention_mask=real.long(), output_hidden_states=True)
        states = {f"{key}states": torch.stack(out.hidden_states).numpy() for key, out in found.items()}
        last = {f"{key}last": out.last_hidden_state.numpy() for key, out in found.items()}
        arrays |= _named(f"wav2vec2_{name}", weights, audio=audio.numpy(), **states, **last)
    return arrays


def record_whisper(rng):
    """Records Whisper's encoder on spectra of its window's length, and the spectra of a recording with pauses."""
    model = WhisperEncoder(WhisperConfig(**cases.WHISPER))
    found, layers = [], model.layers
    weights = randomise(model, rng)
    mel = normal(rng, 2, cases.WHISPER["num_mel_bins"], 2 * cases.WHISPER["max_source_positions"])
    layers[0].register_forward_pre_hook(lambda _, x: found.append(x[0]))
    for layer in layers:
        layer.register_forward_hook(lambda _, __, y: found.append(y[0] if isinstance(y, tuple) else y))
    last = model(mel).last_hidden_state
    audio = normal(rng, cases.WHISPER_SAMPLES, scale=0.1) * (torch.arange(cases.WHISPER_SAMPLES) % 3000 > 1500)
    extractor = WhisperFeatureExtractor(feature_size=80)
    spectra = extractor._np_extract_fbank_features(audio.numpy()[None], "cpu")[0]
    arrays = dict(mel=mel.transpose(1, 2), states=torch.stack(found), last=last, audio=audio[None])
    arrays = {name: a.numpy() for name, a in arrays.items()} | dict(spectra=spectra.T.astype(np.float32))
    return _named("whisper", weights, **arrays)


def record_echomimic(rng):
    """Records a spatial transformer of EchoMimic in both halves of guidance.

    Self-attention sees the reference in the second half alone; attention to the audio tokens counts three times.
    """
    channels, frames, (h, w) = cases.CHANNELS[0], 3, cases.LATENT_SIZE
    model = Transformer2DModel(
        cases.HEADS, channels // cases.HEADS, channels, norm_num_groups=cases.GROUPS, cross_attention_dim=cases.VOICE
    )
    weights = randomise(model, rng, _GAINS | {"proj_in": 1.0, "proj_out": 1.0, "to_out.0": 1.0}, keep_text=True)
    x, voice = normal(rng, frames, channels, h, w), normal(rng, frames, cases.VOICE_TOKENS, cases.VOICE)
    reference, block = normal(rng, 1, h * w, channels), model.transformer_blocks[0]

    def append(module, args, kwargs):
        (own,) = args
        extra = torch.cat([own[:frames], reference.expand(frames, -1, -1)])  # doubled keys change nothing
        return (own,), kwargs | {"encoder_hidden_states": torch.cat([own, extra], dim=1)}

    block.attn1.register_forward_pre_hook(append, with_kwargs=True)
    block.attn2.register_forward_hook(lambda _, __, y: 3 * y)
    out = model(x.repeat(2, 1, 1, 1), torch.cat([0 * voice, voice])).sample
    arrays = dict(x=channels_last(x), reference=reference.unflatten(1, (h, w)).numpy(), voice=voice.numpy())
    return _named("echomimic", weights, **arrays, out=channels_last(out))


def record_hallo_parts(rng):
    """Records the torch reference of hallo (`record_hallo.py`)."""
    # Every branch must show in the output: larger gains than those of the other models.
    gains = {"to_q": 1.2, "to_k": 1.2, "proj_in": 0.3, "conv2": 0.3, "net.2": 0.5}
    gains |= {f"blocks.{i}": 1.7 for i in range(6)}  # of the Face Locator
    strong = functools.partial(randomise, gains=gains, keep_text=True)
    weights, arrays = record_hallo.record(rng, strong, normal)
    voice_weights, voice = record_hallo.record_voice(rng, randomise, normal)
    arrays |= record_hallo.record_steps()
    return _named("hallo", weights, **arrays) | _named("hallo_voice", voice_weights, **voice)


def ddim(spacing, zero, prediction, alpha_to_one, steps):
    scheduler = DDIMScheduler(
        **_schedule(spacing, zero, prediction), clip_sample=False, set_alpha_to_one=alpha_to_one, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    return scheduler


def dpm_solver(spacing, zero, prediction, alpha_to_one, steps):
    """Returns a second-order solver with final sigma zero, on DDIM's timesteps: its own 'leading' differs."""
    scheduler = DPMSolverMultistepScheduler(**_schedule(spacing, zero, prediction), algorithm_type="dpmsolver++")
    scheduler.set_timesteps(timesteps=ddim(spacing, zero, prediction, alpha_to_one, steps).timesteps.tolist())
    return scheduler


def _schedule(spacing, zero, prediction):
    kind = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    return dict(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=zero,
        timestep_spacing=spacing,
        prediction_type=kind,
    )


def _unet_sizes():
    return dict(
        block_out_channels=cases.CHANNELS,
        layers_per_block=cases.LAYERS,
        norm_num_groups=cases.GROUPS,
        in_channels=cases.LATENT_CHANNELS,
        out_channels=cases.LATENT_CHANNELS,
        cross_attention_dim=cases.TEXT,
    )


def _named(model, weights, **arrays):
    return {f"{model}/weights/{n}": a for n, a in weights.items()} | {f"{model}/{n}": a for n, a in arrays.items()}


def record():
    """Returns {name: array}: weights in float16, timesteps in int64, the rest in float32."""
    arrays = {}
    parts = record_unet, record_motion, record_video, record_vae, record_sampling, record_wav2vec2, record_hallo_parts
    parts = (*parts, record_whisper, record_echomimic)
    with torch.no_grad():
        for seed, part in enumerate(parts):
            arrays |= part(np.random.default_rng(seed))
    return {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}


def check(arrays):
    """Compares arrays with the stored file; returns the exit status."""
    with np.load(cases.REFERENCE) as stored:
        other = {(n, a.shape) for n, a in stored.items()} ^ {(n, a.shape) for n, a in arrays.items()}
        if other:
            print(f"other arrays than in {cases.REFERENCE}: {sorted(other)[:4]}; record again")
            return 1
        errors = {n: float(np.abs(stored[n].astype(np.float64) - arrays[n]).max()) for n in arrays}
    worst = max(errors, key=errors.get)
    print(f"{len(arrays)} arrays; the largest difference is {errors[worst]:.1e}, of {worst}")
    return int(errors[worst] > TOLERANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored file and write nothing")
    checks = parser.parse_args().check
    arrays = record()
    if checks:
        return check(arrays)
    np.savez_compressed(cases.REFERENCE, **arrays)
    print(f"{cases.REFERENCE}: {len(arrays)} arrays, {cases.REFERENCE.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

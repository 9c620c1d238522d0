"""Outputs of a torch reference of hallo's networks, assembled from modules of diffusers and transformers.

`tests/parity/record.py` stores them with the others. The parts that neither library has are the wiring: the reference
bank, the three branches of the audio modules, and the order of the modules.
"""

import types

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention import Attention, FeedForward
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.embeddings import ImageProjection
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from tests.parity import cases


class AudioBlock(nn.Module):
    """Self-attention, three audio-attentions, and a feed-forward network."""

    def __init__(self, width, heads, features):
        super().__init__()
        self.attn1 = Attention(width, heads=heads, dim_head=width // heads)
        for i in range(3):
            setattr(self, f"attn2_{i}", Attention(width, features, heads=heads, dim_head=width // heads))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(width))
        for name in cases.BRANCHES:
            setattr(self, f"zero_conv_{name}", nn.Conv2d(width, width, 1))
        self.ff = FeedForward(width, activation_fn="geglu")

    def forward(self, x, voice, masks, weights, size):
        x = x + self.attn1(self.norm1(x))
        y = self.norm2(x)
        for i, name in enumerate(cases.BRANCHES):
            h = getattr(self, f"attn2_{i}")(y, encoder_hidden_states=voice) * masks[:, :, i, None]
            h = getattr(self, f"zero_conv_{name}")(h.transpose(1, 2).unflatten(2, size))
            x = x + weights[i] * h.flatten(2).transpose(1, 2)
        return x + self.ff(self.norm3(x))


class AudioModule(nn.Module):
    """Norm, 1x1 convolution to an inner width, an `AudioBlock` and a 1x1 convolution, with a residual connection."""

    def __init__(self, channels, width, heads, groups, features):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        self.transformer_blocks = nn.ModuleList([AudioBlock(width, heads, features)])

    def forward(self, x, voice, masks, weights):
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        h = self.transformer_blocks[0](h, voice, masks, weights, x.shape[2:])
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


def unet_sizes(channels, attention, **more):
    """Returns the arguments of a UNet2DConditionModel with attention on some levels, finest first."""
    names = [f"{'CrossAttn' if on else ''}DownBlock2D" for on in attention]
    return dict(
        block_out_channels=channels, down_block_types=names,
        up_block_types=[name.replace("Down", "Up") for name in reversed(names)], **more,
    )  # fmt: skip


def layers_of(unet):
    """Yields (name, spatial transformer, inner width of hallo's audio module behind it) of a UNet's layers."""
    widths = unet.config.block_out_channels
    for i, block in enumerate(unet.down_blocks):
        for j, attention in enumerate(getattr(block, "attentions", ())):
            yield f"down_blocks.{i}.{j}", attention, widths[i if j else max(i - 1, 0)]
    yield "mid_block.0", unet.mid_block.attentions[0], widths[-1]
    for i, block in enumerate(unet.up_blocks):
        for j, attention in enumerate(getattr(block, "attentions", ())):
            yield f"up_blocks.{i}.{j}", attention, widths[max(len(widths) - 2 - i, 0)]


def frame_by_frame(norm):
    """Wraps the forward function of a temporal module's norm, so that each frame has its own statistics.

    That is AnimateDiff's computation; diffusers takes them over all frames.
    """

    def forward(x):  # (B, C, f, h, w)
        frames = x.transpose(1, 2)
        return norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)

    return forward


class Hallo(nn.Module):
    """The denoising network: SD's UNet with an audio module and a temporal module behind each transformer.

    Args:
        sizes: of `unet_sizes`.
        features: size of an audio token.
    """

    def __init__(self, sizes, features):
        super().__init__()
        self.unet = UNet2DConditionModel(**sizes)
        self.layers, added = {}, {}
        heads, groups = sizes["attention_head_dim"], sizes["norm_num_groups"]
        for name, attention, width in layers_of(self.unet):
            channels, (level, j) = attention.in_channels, name.rsplit(".", 1)
            audio = AudioModule(channels, width, heads, groups, features)
            motion = AnimateDiffTransformer3D(
                heads, channels // heads, in_channels=channels, norm_num_groups=groups,
                positional_embeddings="sinusoidal", num_positional_embeddings=32,
            )  # fmt: skip
            motion.norm.forward = frame_by_frame(motion.norm.forward)
            added |= {f"{level}.audio_modules.{j}": audio, f"{level}.motion_modules.{j}": motion}
            self.layers[name] = attention, audio, motion
        self.added = nn.ModuleDict({name.replace(".", "/"): module for name, module in added.items()})

    def forward(self, latents, timesteps, given):
        """Predicts v for latents (rows, c, f, h, w); `given` holds the conditions by row."""
        rows, _, frames = latents.shape[:3]
        location = given.location.repeat_interleave(frames, 0)
        handles = [self.unet.conv_in.register_forward_hook(lambda _, __, y: y + location)]
        for name, (attention, audio, motion) in self.layers.items():
            attn1 = attention.transformer_blocks[0].attn1
            handles.append(attn1.register_forward_pre_hook(_with_reference(given, name, frames), with_kwargs=True))
            handles.append(attention.register_forward_hook(_behind(given, name, audio, motion, rows, frames)))
        face = given.face.repeat_interleave(frames, 0)
        out = self.unet(latents.transpose(1, 2).flatten(0, 1), timesteps.repeat_interleave(frames), face).sample
        for handle in handles:
            handle.remove()
        return out.unflatten(0, (rows, frames)).transpose(1, 2)


def _with_reference(given, name, frames):
    """Appends the bank to the keys of the rows that see the reference, and to those of the others their own tokens."""

    def hook(module, args, kwargs):
        (x,) = args
        bank = given.bank[name]  # (images, places, channels)
        index = torch.arange(len(x)) % len(bank)  # as hallo tiles it: over rows and frames at once
        context = torch.cat([x, bank[index]], dim=1)
        off = ~given.on.repeat_interleave(frames)
        context[off] = torch.cat([x[off], x[off]], dim=1)
        return (x,), kwargs | {"encoder_hidden_states": context}

    return hook


def _behind(given, name, audio, motion, rows, frames):
    def hook(module, args, output):
        x = audio(output[0], given.voice.flatten(0, 1), given.masks[output[0].shape[2:]], given.weights)
        before = given.motion[name]  # (rows, n, places, channels)
        before = before.transpose(2, 3).unflatten(3, x.shape[2:])
        clip = torch.cat([before, x.unflatten(0, (rows, frames))], dim=1)
        clip = motion(clip.flatten(0, 1), num_frames=clip.shape[1]).unflatten(0, clip.shape[:2])
        return (clip[:, -frames:].flatten(0, 1),)

    return hook


def features_of(unet, latents, face):
    """Returns {layer: norm1's output} of a ReferenceNet for images at timestep 0."""
    found, handles = {}, []
    for name, attention, _ in layers_of(unet):
        norm1 = attention.transformer_blocks[0].norm1
        handles.append(norm1.register_forward_hook(lambda _, __, y, name=name: found.update({name: y})))
    unet(latents, torch.zeros(len(latents), dtype=torch.long), face)
    for handle in handles:
        handle.remove()
    return found


def record(rng, randomise, normal):
    """Records the networks without guidance and with both halves of guidance.

    Args:
        rng: random numbers.
        randomise: sets a module's parameters and returns them.
        normal: draws a tensor.
    """
    sizes = unet_sizes(
        cases.CHANNELS, cases.ATTENTION, layers_per_block=cases.LAYERS, norm_num_groups=cases.GROUPS,
        in_channels=cases.LATENT_CHANNELS, out_channels=cases.LATENT_CHANNELS, cross_attention_dim=cases.TEXT,
        attention_head_dim=cases.HEADS,
    )  # fmt: skip
    net, reference = Hallo(sizes, cases.VOICE), UNet2DConditionModel(**sizes)
    face = ImageProjection(cases.FACE, cases.TEXT, cases.FACE_TOKENS)
    locator = ControlNetConditioningEmbedding(cases.CHANNELS[0], 3, cases.LOCATOR)
    parts = dict(backbone=net, reference_net=reference, face_projector=face, face_locator=locator)
    weights = {f"{part}.{name}": a for part, module in parts.items() for name, a in randomise(module, rng).items()}

    f, n, (h, w) = 3, 2, cases.LATENT_SIZE
    latents, images = normal(rng, 1, cases.LATENT_CHANNELS, f, h, w), normal(rng, 1 + n, cases.LATENT_CHANNELS, h, w)
    embedding, voice = normal(rng, 1, cases.FACE), normal(rng, 1, f, cases.VOICE_TOKENS, cases.VOICE)
    mask = torch.zeros(1, 1, 8 * h, 8 * w, dtype=torch.float64)
    mask[:, :, 2 * h : 6 * h, 3 * w : 5 * w] = 1
    levels = [(h >> i, w >> i) for i in (0, 1)]
    masks = {size: torch.from_numpy(rng.random((1, size[0] * size[1], 3))).float().double() for size in levels}
    branch_weights = torch.tensor([0.7, 1.3, 1.1], dtype=torch.float64)
    tokens, null = face(embedding), face(torch.zeros_like(embedding))
    location, time = locator(mask.repeat(1, 3, 1, 1)), torch.tensor([499])

    bank = features_of(reference, images, tokens.repeat(1 + n, 1, 1))
    plain = types.SimpleNamespace(
        bank={name: a[:1] for name, a in bank.items()}, motion={name: a[None, 1:] for name, a in bank.items()},
        on=torch.tensor([True]), face=tokens, voice=voice, masks=masks, weights=branch_weights, location=location,
    )  # fmt: skip
    out = net(latents, time, plain)

    alternating = torch.cat([null, tokens]).repeat(1 + n, 1, 1)
    tiled = features_of(reference, images.repeat(2, 1, 1, 1), alternating)
    halves = {name: a.unflatten(0, (2, 1 + n)) for name, a in tiled.items()}
    both = types.SimpleNamespace(
        bank={name: a[:, 0] for name, a in halves.items()}, motion={name: a[:, 1:] for name, a in halves.items()},
        on=torch.tensor([False, True]), face=torch.cat([null, tokens]), voice=torch.cat([0 * voice, voice]),
        masks=masks, weights=branch_weights, location=torch.cat([0 * location, location]),
    )  # fmt: skip
    guided = net(latents.repeat(2, 1, 1, 1, 1), time.repeat(2), both)
    arrays = dict(latents=latents.movedim(1, -1), images=images.movedim(1, -1)[None], embedding=embedding, voice=voice)
    arrays |= dict(mask=mask.movedim(1, -1), tokens=tokens, null=null, location=location.movedim(1, -1))
    arrays |= dict(out=out.movedim(1, -1), guided=guided.movedim(1, -1))
    arrays |= {f"masks/{i}": a.unflatten(1, size) for i, (size, a) in enumerate(masks.items())}
    arrays |= {f"bank/{name}": a for name, a in bank.items()} | {f"tiled/{name}": a for name, a in tiled.items()}
    return weights, {name: a.numpy() for name, a in arrays.items()}


def record_voice(rng, randomise, normal):
    """Records wav2vec 2.0 with its transformer at the rate of the video."""
    model = Wav2Vec2Model(Wav2Vec2Config(**cases.WAV2VEC2["base"], mask_time_prob=0.0))
    weights = randomise(model, rng)
    audio = normal(rng, 1, cases.WAV2VEC2_SAMPLES, scale=0.03)
    frames, convolve = -(-cases.WAV2VEC2_SAMPLES // 640), model.feature_extractor.forward
    model.feature_extractor.forward = lambda x: F.interpolate(convolve(x), frames, mode="linear", align_corners=True)
    standard = (audio - audio.mean()) / (audio.var(unbiased=False) + 1e-7) ** 0.5
    states = model(standard, output_hidden_states=True).hidden_states
    return weights, dict(audio=audio.numpy(), states=torch.stack(states[1:], dim=2).numpy())


def record_steps():
    """Records DDIM trajectories with a substitute for the network: hallo's schedule, 3 and 30 steps."""
    arrays, x = {}, np.random.default_rng(0).standard_normal(cases.SAMPLE_SHAPE).astype(np.float32)
    for steps in cases.HALLO_STEPS:
        scheduler = DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True, clip_sample=False,
            timestep_spacing="trailing", prediction_type="v_prediction", steps_offset=1,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        current = torch.from_numpy(x).double()
        for t in scheduler.timesteps:
            current = scheduler.step(cases.pseudo_model(current, float(t)), t, current).prev_sample.double()
        arrays[f"steps/{steps}"] = current.numpy()
    return arrays | {"steps/x": x}

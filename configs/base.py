"""EMO at the size of Stable Diffusion 1.5: 512x512, f = 12, n = 4 (the paper's).

emo train --config configs/base.py:image --workdir RUN --config.data.directory=DIR --config.train.init_from=SD
"""

from ml_collections import ConfigDict

BATCH_SIZES = {"vae": 48, "image": 48, "video": 4, "speed": 4}  # Section 4.1; the VAE's is ours


def get_config(stage="image"):
    """Every field there is, at the paper's values; what the paper leaves open is marked ours.

    Args:
        stage: vae | image | video | speed.
    """
    if stage not in BATCH_SIZES:
        raise ValueError(f"configs/base.py has no stage {stage!r}; expected one of {', '.join(BATCH_SIZES)}")
    return ConfigDict(
        dict(
            model=model(),
            clip=dict(
                frames=12,
                motion_frames=4,
                audio_window=2,
                audio_context=2.0,  # ours: seconds of a record that wav2vec 2.0 hears besides, on both sides of a clip
                fps=25.0,
                image_size=(512, 512),
                face=face(),
            ),
            diffusion=dict(
                train_steps=1000,
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                zero_terminal_snr=False,
                prediction="eps",
                spacing="leading",
                min_snr_gamma=0.0,  # 0: off
                noise_offset=0.0,
            ),
            sampling=dict(  # steps are Section 4.1's, the rest ours
                solver="ddim", steps=40, eta=0.0, reference_scale=3.5, audio_scale=3.5, speed=0.6, clips=4
            ),
            data=dict(
                directory="",
                split="train",
                sources=(),  # in place of these two, several and how often: ((directory, split, weight), ...)
                crop_scale=(1.0, 1.0),
                min_reference_gap=1.0,
                same_window_prob=0.0,  # of cutting reference and clip alike, where crop_scale leaves a choice
                first_clip_prob=0.1,  # of a clip without motion frames
                flip_prob=0.0,
                color_jitter=0.0,  # brightness, contrast, saturation of a whole sample, each by 1 +- so much at most
                num_workers=2,
                prefetch=2,
            ),
            train=train(stage),
        )
    )


def model():
    """The networks (Section 3.2)."""
    return dict(
        dtype="bfloat16",
        unet=dict(
            channels=(320, 640, 1280, 1280),
            attention=(True, True, True, False),
            layers=2,
            heads=8,
            groups=32,
            remat="blocks",  # none | blocks | dots: what the backward pass recomputes
        ),
        vae=dict(
            channels=(128, 256, 512, 512),
            decoder_channels=(128, 256, 512, 512),
            layers=2,
            groups=32,
            latent_channels=4,
            patch=1,
            shortcut=False,
        ),
        reference_attention="cross",  # cross | concat | off
        reference_positions=False,  # ours: tells cross-attention where things are, for nets trained from nothing
        audio_attention=True,
        temporal_modules=True,
        face_locator=True,
        speed_layers=True,
        locator_channels=(16, 32, 96),
        audio=audio(),
        # Ours: how parameters start that no weights hold; `reference` in emo convert alone, elsewhere they start fresh.
        init=dict(
            reference="self",  # keys and values of reference-attention: self (those of self-attention) | fresh
            added="zero",  # outputs of audio-attention, temporal modules, speed layers and locator: zero | fresh
        ),
        # Ours: centres in degrees per frame; fit them to the data set's quantiles.
        speed=dict(
            centres=(0.1, 0.2, 0.35, 0.55, 0.8, 1.1, 1.5, 2.0, 2.8),
            radii=(0.1, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.8),
            features=768,
        ),
    )


def face():
    """Ours: where faces lie in training's clips, which is where generation puts a portrait's; fit it to the data set.

    `emo prepare videos` cuts faces to this height. It is also that of `emo prepare synthetic` as configs/tiny.py cuts
    it (data.crop_scale 0.8): medians over 300 records, of faces at rest with the mouth shut.
    """
    return dict(
        height=0.54,  # of the frame
        centre=(0.5, 0.53),  # of the frame's width and height
        # By how much a clip's union of boxes exceeds the box at rest (left, top, right, bottom, in its width and
        # height): heads move and jaws drop.
        growth=(0.012, 0.025, 0.012, 0.098),
    )


def audio():
    """What is heard (Section 3.2): wav2vec 2.0's hidden states, or log-mel spectra, of 2m + 1 frames become tokens."""
    return dict(
        encoder="wav2vec2",  # mel | wav2vec2
        bands=80,
        steps=4,
        layers=tuple(range(1, 13)),  # hidden states of wav2vec2; 0 is the input of its first layer
        wav2vec2=dict(  # base, by transformers' names
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            layer_norm_eps=1e-5,
            feat_extract_norm="group",  # group | layer
            conv_dim=(512, 512, 512, 512, 512, 512, 512),
            conv_stride=(5, 2, 2, 2, 2, 2, 2),
            conv_kernel=(10, 3, 3, 3, 3, 2, 2),
            conv_bias=False,
            num_conv_pos_embeddings=128,
            num_conv_pos_embedding_groups=16,
            do_stable_layer_norm=False,
            do_normalize=True,
        ),
        tokens=32,
        features=768,
        hidden=512,
    )


def train(stage):
    """The loop; lr, batch sizes and optimizer are Section 4.1's, the rest ours."""
    return dict(
        stage=stage,
        also=(),  # parts that the stage trains besides its own (training.stages.PARTS), for ablations
        steps=100_000,
        batch_size=BATCH_SIZES[stage],
        accumulate=1,  # parts of the batch, one in memory at a time
        donate=True,  # the step overwrites the old state; False keeps both, to look at
        seed=0,
        init_from="",  # the run of the stage before
        optimizer=dict(
            name="adamw",  # adamw | muon
            learning_rate=1e-5,
            warmup=500,
            schedule="constant",  # constant | cosine
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        ema=0.9999,
        drop_reference=0.05,
        drop_audio=0.05,
        drop_both=0.05,  # besides: what guidance steps away from
        motion_noise=0.0,  # standard deviation of the noise put on motion frames' latents
        face_weight=1.0,  # of the face's region in the losses; the rest counts 1
        kl_weight=1e-6,
        # Devices along each axis, one of them -1 for the rest: samples are split over data and fsdp, parameters and
        # optimizer state over fsdp, each clip over frame (in stages of single frames: samples), attention heads and
        # inner features over tensor. dcn_data: the slices of a TPU, or else the processes, that data spans.
        mesh=dict(data=-1, fsdp=1, frame=1, tensor=1, dcn_data=1),
        log_every=50,
        save_every=1000,
        keep=3,  # newest checkpoints
        keep_every=0,  # and every checkpoint of a multiple of so many steps; 0: none
        max_skipped=10,  # steps in a row whose loss or gradients are not finite, after which the run ends
        stall_seconds=60.0,  # of waiting for a batch, after which a line says so
        sample_every=5000,
    )

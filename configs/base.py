"""EMO at the paper's size: Stable Diffusion 1.5's networks, 512x512 pixels, clips of f = 12 and n = 4 motion frames.

Every field has the value of the paper; fields that the paper leaves open are marked "ours". SD is a folder of
`emo convert`, which holds Stable Diffusion's and AnimateDiff's weights:

    emo train --config configs/base.py:image --workdir runs/image --config.data.directory=DATA \
        --config.train.init_from=SD
    emo train --config configs/base.py:video --workdir runs/video --config.data.directory=DATA \
        --config.train.init_from=runs/image
    emo train --config configs/base.py:speed --workdir runs/speed --config.data.directory=DATA \
        --config.train.init_from=runs/video
    emo train --config configs/base.py:distill --workdir runs/distill --config.data.directory=DATA \
        --config.train.init_from=runs/speed    # ours: few steps, without passes of guidance

Expected result: 100,000 steps of each stage on 250 hours of video are the paper's training; this project has planned
them (`emo plan`, docs/benchmarks.md) but not run them.
"""

from ml_collections import ConfigDict

BATCH_SIZES = {"vae": 48, "image": 48, "video": 4, "speed": 4, "distill": 4}  # Section 4.1; others ours


def get_config(stage: str = "image") -> ConfigDict:
    """Returns the config of a stage, with every field that exists.

    Args:
        stage: vae | image | video | speed | distill.

    Raises:
        ValueError: an unknown stage.
    """
    if stage not in BATCH_SIZES:
        raise ValueError(f"configs/base.py has no stage {stage!r}; expected one of {', '.join(BATCH_SIZES)}")
    config = ConfigDict(
        dict(
            model=model(),
            clip=dict(
                frames=12,
                motion_frames=4,
                audio_window=2,
                first_motion="zeros",  # zeros | portrait: motion frames of a video's first clip
                flow_cell=0,  # pixels per cell of flow: an eighth of a latent with vae.flow_channels
                audio_context=2.0,  # ours: seconds before and after a clip that wav2vec 2.0 also gets
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
            sampling=dict(  # steps as in Section 4.1, the rest ours
                # clips: one after the other, from the last n frames of the clip before. windows: all frames together,
                # in overlapping windows of a clip's length whose predictions are averaged, as in EchoMimic.
                strategy="clips",
                overlap=3,  # frames that neighbouring windows share
                shift=2,  # frames by which the windows move from step to step
                solver="ddim",
                steps=40,
                eta=0.0,
                reference_scale=3.5,
                audio_scale=3.5,
                guidance_rescale=0.0,  # phi of Lin et al. 2023; 0: off
                guidance_interval=(0.0, 1.0),  # shares of the timesteps with guidance, from clean (0) to noise (1)
                # Steps from one computation of the levels below the first to the next (DeepCache); 1: in each step.
                deep_interval=1,
                speed=0.6,
                stride=False,  # DDIM goes to t - T // steps, as in diffusers, rather than to the next timestep
                bank_tiling=False,  # hallo: the reference and face tokens of guidance alternate between its halves
                reencode_motion=False,  # decode the motion frames and encode them again, as the relatives do
                pose_weight=1.0,  # weights of the branches of model.audio_branches
                face_weight=1.0,
                lip_weight=1.0,
                hold_colors=False,  # hold the mean and deviation of each channel of the latents to the first segment's
                portrait_return=0.0,  # share of its motion that a clip loses by its end, for VAEs of flow (drift.py)
                clips=4,
            ),
            data=dict(
                directory="",
                split="train",
                sources=(),  # instead of the two fields above: ((directory, split, weight), ...)
                # Ours: side of the crop relative to the frame. Masks take 0.60 of the height of prepared records and
                # so 0.60 to 0.75 of a crop, which covers the 0.69 of a portrait in generation.
                crop_scale=(0.8, 1.0),
                # Ours: crops place the face as generation does (clip.face); crop_scale then is around that crop.
                face_crop=False,
                min_reference_gap=1.0,
                same_window_prob=0.5,  # ours: of the same crop for reference and clip, as in generation
                max_speed=0.0,  # records whose head rotates faster on average (degrees per frame) are left out; 0: off
                first_clip_prob=0.1,  # of training on a clip without motion frames
                flip_prob=0.0,
                # none | videos | all: records without sound that stages with sound use nevertheless, with null audio;
                # all: pictures too, which stand still
                without_sound="none",
                # (height, width) of buckets for records of other aspect ratios than clip.image_size, with a training
                # step compiled for each; none: records are cut to clip.image_size
                buckets=(),
                color_jitter=0.0,  # scales a sample's brightness, contrast and saturation by up to 1 +- this
                num_workers=2,
                prefetch=2,
            ),
            train=train(stage),
        )
    )
    return as_student(config) if stage == "distill" else config


def as_student(config: ConfigDict) -> ConfigDict:
    """Gives a config the networks and the sampler of a distilled model; returns it."""
    config.model.guidance_inputs = True
    config.sampling.update(solver="lcm", steps=4, eta=0.0)
    return config


def model() -> dict:
    """Returns `model`: the networks (Section 3.2)."""
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
            flow_channels=0,  # ours, for small models: latents of frames say how the reference image moves ...
            mouth_channels=0,  # ... and where a mouth has opened
        ),
        reference_attention="cross",  # cross | concat | shared | off
        reference_positions=False,  # ours: position codes in reference-attention, for training from scratch
        image_inputs=False,  # ours, for small models: latents of the reference and the last motion frame at the input
        guidance_inputs=False,  # ours: guidance scales are inputs of the Backbone, which stage distill trains
        audio_attention=True,
        audio_branches=False,  # hallo: audio modules with a branch for pose, face and lips, instead of audio-attention
        temporal_modules=True,
        temporal_levels="all",  # all | attention: only the levels with spatial transformers, as in hallo
        face_locator=True,
        speed_layers=True,
        temporal_positions=32,  # of AnimateDiff v2 and v3 (v1: 24), the longest motion + clip frames; 0: no limit
        speed_positions=True,  # ours: positions of frames in the context of speed layers; without, order is lost
        locator="strided",  # strided | controlnet
        locator_channels=(16, 32, 96),
        locator_inputs=1,  # equal channels of the mask, with `controlnet`
        face_embedding=dict(tokens=0, size=512, features=768),  # hallo: tokens of an identity embedding; 0: none
        audio=audio(),
        # Ours: initial values of parameters that converted weights lack. `reference` applies to `emo convert` only.
        init=dict(
            # Reference-attention: attn1 (a copy of self-attention and its norm) | self (keys and values from there, the
            # rest from attention to the prompt) | zero (as self, with zero output) | fresh (as self, random keys and
            # values). See docs/benchmarks.md, "Start of reference-attention".
            reference="attn1",
            added="zero",  # outputs of audio-attention, temporal modules, speed layers and locator: zero | fresh
        ),
        # Ours: centres and radii of the buckets in degrees per frame; `emo prepare stats` fits them to a data set.
        speed=dict(
            centres=(0.1, 0.2, 0.35, 0.55, 0.8, 1.1, 1.5, 2.0, 2.8),
            radii=(0.1, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.8),
            features=768,
        ),
    )


def face() -> dict:
    """Returns `clip.face`: size and position of faces in the training clips (ours).

    Generation places a portrait's face there, and `emo prepare videos` crops faces to this height. The values are the
    medians over 300 records of `emo prepare synthetic`, cropped as in configs/tiny.py (data.crop_scale 0.8), of faces
    at rest with a closed mouth. `emo prepare stats` fits them to a data set.
    """
    return dict(
        height=0.54,  # fraction of the frame's height
        centre=(0.5, 0.53),  # (x, y) as fractions of the frame's width and height
        # By how much the union of a clip's boxes exceeds the box at rest, because heads move and jaws drop: left, top,
        # right, bottom as fractions of the box's width and height.
        growth=(0.012, 0.025, 0.012, 0.098),
    )


def audio() -> dict:
    """Returns `model.audio` (Section 3.2): the encoder, and the tokens that features of 2m + 1 frames become."""
    return dict(
        encoder="wav2vec2",  # mel | wav2vec2 | whisper
        bands=80,
        steps=4,  # mel: spectra of a frame; whisper: outputs of the encoder that a frame gets
        timing="centres",  # centres | frames: wav2vec 2.0's transformer runs at the rate of the video, as in hallo
        layers=tuple(range(1, 13)),  # hidden states of the encoder; 0 is the input of its first layer
        wav2vec2=dict(  # wav2vec 2.0 base, with the field names of transformers
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
        whisper=dict(  # the encoder of whisper-tiny, with the field names of transformers
            d_model=384,
            encoder_layers=4,
            encoder_attention_heads=6,
            encoder_ffn_dim=1536,
            num_mel_bins=80,
            max_source_positions=1500,
        ),
        gain=1.0,  # factor of audio-attention's output; EchoMimic: 3
        projected=True,  # whether an MLP makes tokens of the features; False: the features are the tokens
        tokens=32,
        features=768,
        hidden=512,
    )


def train(stage: str) -> dict:
    """Returns `train`: learning rate, batch size and optimizer as in Section 4.1, the rest ours."""
    return dict(
        stage=stage,
        also=(),  # further parts to train (models.parts.PARTS), for ablations
        # Of what the stage and `also` train: only parts of these names, and parameters that match these patterns of
        # shell style, such as backbone/*/audio_attn/*; (): everything.
        only=(),
        # LoRA (Hu et al. 2021): the kernels of these parts are frozen, and the product of two matrices of this rank is
        # trained for each. rank 0: off; parts (): all parts that are trained. Other parts are trained as without it.
        lora=dict(rank=0, parts=()),
        steps=100_000,
        batch_size=BATCH_SIZES[stage],
        accumulate=1,  # number of parts that the batch is processed in
        donate=True,  # the step overwrites the old state; False keeps both, for debugging
        seed=0,
        init_from="",  # run or weights of the previous stage
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
        # Ours, of stage distill (training/distillation.py).
        distill=dict(
            teacher="",  # run or weights; "": train.init_from
            target="consistency",  # consistency (few steps) | guidance (the teacher's steps, without further passes)
            guidance="passes",  # of the teacher: passes | inputs (the teacher is a student with the target guidance)
            steps=40,  # of the teacher's sampler, DDIM
            # The scales are drawn between these; a student should not be sampled with others.
            reference_scale=(1.0, 5.0),
            audio_scale=(1.0, 5.0),
        ),
        ema=0.9999,
        drop_reference=0.05,
        drop_audio=0.05,
        drop_both=0.05,  # in addition: the null condition of guidance
        # Augmentation of the motion frames' latents, which are clean in training and generated in sampling.
        motion_noise=0.05,  # standard deviation of added noise
        # Share of patches replaced by zeros, as in Hallo2 (there 0.25), or by those of the portrait (first_motion).
        motion_patch_drop=0.0,
        motion_patch_size=1,  # side of these patches, in latents
        face_weight=1.0,  # weight of the face's region in the losses, relative to the rest
        mouth_weight=1.0,  # weight of the mouth's part of that region, relative to the rest of the face
        motion_weight=1.0,  # weight of the squared error's part that changes over the clip
        kl_weight=1e-6,
        gradient_weight=0.0,  # of the error of the image's gradients in the stage vae
        # Devices along each axis; one may be -1, for the remaining devices. Samples are split over data and fsdp,
        # parameters and optimizer state over fsdp, the frames of a clip over frame (in stages of single frames:
        # samples), attention heads and inner features over tensor. dcn_data: the TPU slices, otherwise processes, that
        # data spans.
        mesh=dict(data=-1, fsdp=1, frame=1, tensor=1, dcn_data=1),
        log_every=50,
        save_every=1000,
        keep=3,  # number of newest checkpoints to keep
        keep_every=0,  # also keep checkpoints at multiples of this many steps; 0: none
        max_skipped=10,  # consecutive non-finite steps after which the run ends
        stall_seconds=60.0,  # time to wait for a batch before a warning
        log=("tensorboard",),  # some of tensorboard, csv, wandb
        # Loss of the averaged weights on held-out records, at fixed timesteps and noise.
        validation=dict(
            every=1000,  # steps; 0: off
            directory="",  # "": the directories that train, where they have the split
            split="validation",
            clips=32,  # number of clips, rounded up to complete batches
            keep_best=True,  # keep the checkpoint that is best by `best_by` as well
            best_by="loss",  # the validation loss, or a property among `evaluators`
        ),
        # Measures of generated videos of held-out people, as `emo evaluate` makes them: (property, every N steps).
        evaluators=(),
        evaluation=dict(
            data="",  # records whose split validation is used; "": rendered people
            identities=4,
            seconds=2.0,
            long=60.0,  # of the property length
        ),
        sample_every=5000,
    )

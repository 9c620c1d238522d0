"""The table of stages, against Sections 3.3 and 4.1 of the paper."""

import functools
import re

import pytest
from flax.traverse_util import flatten_dict

from emo_jax.models.emo import build
from emo_jax.models.parts import PARTS, part_of
from emo_jax.training.stages import STAGES, clip_of, get_stage, split, stage_of
from tests.small import WAV2VEC2, as_hallo, small_config


@functools.cache
def paths_of(mode):
    config = small_config(reference_attention=mode, audio=WAV2VEC2, image_inputs=True, guidance_inputs=True)
    return flatten_dict(build(config).abstract_params(), sep="/")


@pytest.mark.parametrize("mode", ["cross", pytest.param("concat", marks=pytest.mark.slow)])
def test_every_parameter_belongs_to_a_part_and_every_part_has_parameters(mode):
    paths = paths_of(mode)
    assert {part_of(path) for path in paths} == {part.name for part in PARTS} - {"face_projector", "teacher"}


@pytest.mark.slow
def test_the_face_projector_is_a_part_of_hallo():
    paths = flatten_dict(build(as_hallo(small_config())).abstract_params(), sep="/")
    assert {"face_projector/proj/kernel"} <= {path for path in paths if part_of(path) == "face_projector"}


EXAMPLES = {
    "vae/scaling_factor": "vae_scale",
    "vae/encoder/conv_in/kernel": "vae",
    "backbone/conv_in/kernel": "backbone",
    "backbone/guidance_embedding/linear_1/kernel": "guidance_inputs",
    "backbone/conv_in_reference/kernel": "backbone",
    "backbone/conv_in_motion/kernel": "temporal_modules",
    "backbone/down_blocks_0/attentions_0/transformer_blocks_0/attn2/to_q/kernel": "backbone",
    "backbone/down_blocks_0/attentions_0/transformer_blocks_0/norm_reference/scale": "backbone",
    "backbone/down_blocks_0/attentions_0/transformer_blocks_0/audio_attn/to_v/kernel": "audio_layers",
    "backbone/down_blocks_0/attentions_0/transformer_blocks_0/norm_audio/bias": "audio_layers",
    "audio_encoder/encoder/pos_conv_embed/conv/weight_v": "audio_encoder",
    "audio_projector/proj1/kernel": "audio_layers",
    "backbone/mid_block/motion_modules_0/proj_in/kernel": "temporal_modules",
    "backbone/mid_block/motion_modules_0/transformer_blocks_0/attn1/to_q/kernel": "temporal_modules",
    "backbone/mid_block/motion_modules_0/transformer_blocks_0/speed_attn/to_q/kernel": "speed_layers",
    "backbone/mid_block/motion_modules_0/transformer_blocks_0/norm_speed/scale": "speed_layers",
    "speed_encoder/linear_1/kernel": "speed_layers",
    "face_locator/conv_out/kernel": "face_locator",
    "reference_net/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel": "reference_net",
}


def test_part_of_examples():
    paths = paths_of("cross")
    assert set(EXAMPLES) <= set(paths)
    assert {path: part_of(path) for path in EXAMPLES} == EXAMPLES
    with pytest.raises(ValueError, match="hands/kernel"):
        part_of("hands/kernel")


TRAINS = {  # written down again, independently of the table
    "vae": r"vae/(?!scaling_factor)",
    "image": r"(backbone/(?!.*(motion|audio_attn|norm_audio|guidance))|reference_net/|face_locator/)",
    "video": r"(backbone/(?!.*(speed_attn|norm_speed|guidance))|reference_net/|face_locator/|audio_projector/)",
    "speed": r"(backbone/(.*motion_modules|conv_in_motion)|speed_encoder/)",
    "distill": r"backbone/",  # ours
}


@pytest.mark.parametrize("stage", TRAINS)
def test_each_stage_trains_what_the_paper_says(stage):
    paths = paths_of("cross")
    trained, frozen = split(paths, get_stage(stage))
    assert not set(trained) & set(frozen) and {*trained, *frozen} == set(paths)
    assert set(trained) == {path for path in paths if re.match(TRAINS[stage], path)}


def test_train_also_adds_parts():
    config = small_config("speed")
    paths = paths_of("cross")
    alone = set(split(paths, stage_of(config))[0])
    config.train.also = ("audio_layers",)
    more = set(split(paths, stage_of(config))[0]) - alone
    assert more == {path for path in paths if part_of(path) == "audio_layers"} and more
    assert not stage_of(small_config("video")).speed
    config.train.update(stage="video", also=("speed_layers",))
    assert stage_of(config).speed  # trained speed layers need speeds
    config.train.also = ("mouth",)
    with pytest.raises(ValueError, match="train.also .*'mouth'"):
        stage_of(config)


def test_order_and_inputs_of_the_stages():
    assert [(name, stage.after) for name, stage in STAGES.items()] == [
        ("vae", None), ("image", "vae"), ("video", "image"), ("speed", "video"), ("distill", "video"),
    ]  # fmt: skip
    inputs = {name: (stage.video, stage.sound, stage.speed) for name, stage in STAGES.items()}
    assert inputs == dict(vae=(0, 0, 0), image=(0, 0, 0), video=(1, 1, 0), speed=(1, 1, 1), distill=(1, 1, 1))
    with pytest.raises(ValueError, match="train.stage"):
        get_stage("sound")


def test_clip_config_of_a_stage():
    config = small_config()
    config.clip.audio_context = 2.0
    clip = clip_of(config, get_stage("image"))
    assert (clip.frames, clip.motion_frames, clip.audio_context) == (1, 0, 0) and tuple(clip.image_size) == (64, 64)
    clip = clip_of(config, get_stage("video"))
    assert (clip.frames, clip.motion_frames, clip.audio_context) == (4, 2, 2)
    assert (config.clip.frames, config.clip.motion_frames) == (4, 2)


def test_a_stage_without_parameters_raises():
    silent = {path: shape for path, shape in paths_of("cross").items() if path.startswith("vae/")}
    with pytest.raises(ValueError, match="speed_layers"):
        split(silent, get_stage("speed"))

"""Types and ranges of configs in JSON files: each error names the file and the field."""

import copy
import json
import re

import numpy as np
import pytest

from emo_jax import config as config_lib
from emo_jax.models.config_schema import config_from_fields, wav2vec2_schema
from emo_jax.models.emo import build
from emo_jax.weights import diffusers_folder, runs
from emo_jax.weights.store import read_config, save_weights
from emo_jax.weights.wav2vec2 import from_transformers_config
from tests.small import small_config

FIELDS = json.loads(config_lib.to_json(small_config()))
WRONG = ([], {}, None, 10**30, "x", [[1]], float("inf"), float("nan"))
"""Values that no number, boolean or list of the config may have."""


def leaves(value, name=""):
    """Yields (dotted name, value) of the fields that are no groups."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{name}{key}.")
        else:
            yield name + key, item


def changed(name, value):
    """Returns the fields with another value of one."""
    fields = group = copy.deepcopy(FIELDS)
    *groups, last = name.split(".")
    for key in groups:
        group = group[key]
    group[last] = value
    return fields


def test_every_field_rejects_other_types():
    numbers = [(name, value) for name, value in leaves(FIELDS) if not isinstance(value, str)]
    assert len(numbers) > 100
    for name, value in numbers:
        if name == "model.unet.remat":
            continue  # older weights have booleans
        for wrong in WRONG:
            if wrong == [] and (value == [] or name == "train.log"):
                continue  # lists that may be empty
            with pytest.raises(ValueError, match=re.escape(name)) as caught:
                config_from_fields(changed(name, wrong))
            assert len(str(caught.value)) < 300


def test_integers_reject_fractions_and_booleans_and_sizes_have_bounds():
    for name, value in leaves(FIELDS):
        if type(value) is int:
            for wrong in (1.0, True, -2):
                with pytest.raises(ValueError, match=re.escape(name)):
                    config_from_fields(changed(name, wrong))
    for name in ("model.unet.layers", "model.unet.heads", "model.audio.tokens", "clip.frames", "sampling.steps"):
        for wrong in (0, -1, 10**6):
            with pytest.raises(ValueError, match=f"{re.escape(name)} is {wrong}; expected an integer from 1 to"):
                config_from_fields(changed(name, wrong))
    for wrong in ([128], [128, 128, 3], [0, 128], [128, 10**9], [128.0, 128]):
        with pytest.raises(ValueError, match="clip.image_size"):
            config_from_fields(changed("clip.image_size", wrong))


def test_missing_fields_of_the_networks_are_named_and_others_have_defaults():
    for name in ("model.unet.channels", "model.speed", "clip.frames", "diffusion", "sampling", "sampling.clips"):
        fields = copy.deepcopy(FIELDS)
        *groups, last = name.split(".")
        group = fields
        for key in groups:
            group = group[key]
        del group[last]
        with pytest.raises(ValueError, match=f"{re.escape(name)} is missing"):
            config_from_fields(fields)
    older = copy.deepcopy(FIELDS)
    for name in ("temporal_positions", "speed_positions"):
        older["model"].pop(name)
    older["train"].pop("motion_patch_drop", None)
    for name in ("guidance_rescale", "stride", "lip_weight"):
        older["sampling"].pop(name)
    older["newer"] = {"field": 1}
    assert build(config_from_fields(older)).config.model.unet.layers == FIELDS["model"]["unet"]["layers"]


@pytest.mark.parametrize("content, field", [
    (changed("model.unet.channels", [64.0, 128]), r"model.unet.channels\[0\] is 64.0"),
    (changed("model.vae.patch", 0), "model.vae.patch is 0"),
    ([], "the content is"),
    (FIELDS | {"clip": 3}, "clip is 3"),
    (FIELDS | {"__class__": 1}, "__class__"),
])  # fmt: skip
def test_files_of_weights_and_runs_are_checked(tmp_path, content, field):
    save_weights(tmp_path / "weights", small_config(), {"a": np.ones(3)})
    (tmp_path / "weights/config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"config.json: .*{field}|{field}"):
        read_config(tmp_path / "weights")
    index = tmp_path / "diffusers" / diffusers_folder.INDEX
    index.parent.mkdir()
    index.write_text(json.dumps({"emo_config": content}))
    with pytest.raises(ValueError, match="emo_config"):
        read_config(index.parent)


def test_config_of_a_damaged_checkpoint_is_named(tmp_path):
    runs.save_weights_as_run(tmp_path, small_config(), {"vae/a": np.ones(3), "b": np.ones(3)})
    step = tmp_path / "checkpoints/0"
    (step / "checksums.json").unlink()  # as checkpoints of earlier versions, where the checksum finds nothing
    for file in (step / "config").iterdir():
        file.write_text(json.dumps(changed("model.unet.groups", -8)))
    with pytest.raises(ValueError, match="config.model.unet.groups is -8"):
        read_config(tmp_path)


@pytest.mark.parametrize("field, value", [
    ("hidden_size", 768.5), ("hidden_size", 0), ("num_hidden_layers", -1), ("conv_stride", [5] * 6 + [10**6]),
    ("conv_kernel", []), ("conv_dim", 512), ("num_attention_heads", "12"), ("conv_bias", None), ("layer_norm_eps", "1"),
])  # fmt: skip
def test_config_of_a_wav2vec2_is_checked(field, value):
    with pytest.raises(ValueError, match=f"config.json: .*{field}"):
        from_transformers_config({field: value})
    with pytest.raises(ValueError, match=f"model.audio.wav2vec2.{field}"):
        config_from_fields(changed(f"model.audio.wav2vec2.{field}", value))
    wav2vec2_schema()(FIELDS["model"]["audio"]["wav2vec2"], "")


def test_values_of_the_command_line_are_checked():
    for name, value in (("unet.layers", -1), ("vae.patch", 0), ("audio.tokens", 0), ("speed.radii", (0.0,) * 9)):
        config = small_config()
        group, field = name.split(".")
        config.model[group][field] = value
        with pytest.raises(ValueError, match=f"model.{name}"):
            build(config)


@pytest.mark.parametrize("field, value, change", [
    ("first_motion", "portriat", {"clip": {"first_motion": "portriat"}}),
    ("audio_branches", True, {"model": {"audio_branches": True, "audio_attention": False}}),
    ("reference_attention", "concat", {"model": {"reference_attention": "concat", "face_embedding": {"tokens": 2}}}),
])  # fmt: skip
def test_settings_of_the_variants_that_have_no_effect_are_refused(field, value, change):
    config = small_config()
    config.update(change)
    with pytest.raises(ValueError, match=f"{field} is '?{value}"):
        build(config)

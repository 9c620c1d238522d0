"""Every config of configs/ builds; unknown fields and values that do not fit raise."""

import importlib
import inspect
import json
import math
import pathlib
import re

import pytest
from emo_jax.configs import base, relatives
from flax.traverse_util import flatten_dict

from emo_jax import config as config_lib
from emo_jax.diffusion.schedule import make_schedule, timesteps
from emo_jax.models.config_schema import config_from_fields
from emo_jax.models.emo import build
from emo_jax.models.parts import part_of
from emo_jax.training.optimizer import make_optimizer
from emo_jax.training.stages import STAGES, get_stage, split
from tests.small import small_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections

CONFIGS = pathlib.Path(base.__file__).parent
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py") if path.name != "__init__.py")
ARGUMENTS = dict.fromkeys(("base.py", "echomimic.py", "hallo.py", "relatives.py", "small.py", "tiny.py"), tuple(STAGES))
ARGUMENTS["echomimic_acc.py"] = ("video",)


QUICK = (("base.py", "video"), ("hallo.py", "video"))


def every_config():
    """Yields (file, argument) of every config, as pytest parameters; the argument is None if the file takes none."""
    for file in FILES:
        module = importlib.import_module("emo_jax.configs." + file.removesuffix(".py").replace("/", "."))
        if not hasattr(module, "get_config"):
            continue
        takes = inspect.signature(module.get_config).parameters
        for argument in ARGUMENTS[file] if takes else (None,):
            # Networks take seconds to trace.
            marks = [] if (file, argument) in QUICK or argument is None or file == "tiny.py" else [pytest.mark.slow]
            yield pytest.param(file, argument, marks=marks)


def shapes(config):
    """Returns {path: shape and dtype} of a config's parameters."""
    return flatten_dict(build(config).abstract_params(), sep="/")


def parse(file, argument, *overrides):
    return config_lib.parse([f"--config={CONFIGS / file}" + (f":{argument}" if argument else ""), *overrides])


@pytest.mark.parametrize("file, argument", list(every_config()))
def test_every_config_builds(file, argument):
    config = parse(file, argument)
    assert keys(config) == keys(base.get_config())  # no unknown field, none missing
    build(config)
    shallow = parse(file, argument, "--config.model.unet.layers=1", "--config.model.vae.layers=1")
    params = shapes(shallow)  # the depth does not matter here, and takes minutes to trace in all configs
    trained, frozen = split(params, get_stage(config.train.stage))
    assert trained and (frozen or config.train.stage == "vae") and len(trained) + len(frozen) == len(params)
    schedule = make_schedule(config.diffusion)
    assert len(timesteps(schedule, config.sampling.steps, schedule.spacing)) == config.sampling.steps
    make_optimizer(config.train.optimizer, config.train.steps)
    assert config_lib.to_json(config_from_fields(json.loads(config_lib.to_json(config)))) == config_lib.to_json(config)


def test_relatives_train_and_sample_pure_noise():
    """The released settings: v-prediction, zero terminal SNR, trailing timesteps, offset 0.05 and gamma 5."""
    config = relatives.get_config("video")
    schedule = make_schedule(config.diffusion)
    assert (schedule.prediction, schedule.spacing) == ("v", "trailing")
    assert (schedule.noise_offset, schedule.min_snr_gamma) == (0.05, 5)
    assert schedule.alphas[999] == 0 and timesteps(schedule, config.sampling.steps, schedule.spacing)[0] == 999
    assert (config.clip.motion_frames, config.model.reference_attention) == (2, "concat")


def keys(config, prefix=""):
    found = set()
    for name, value in config.items():
        found |= keys(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name}
    return found


def test_small_config_has_the_parts_of_the_base_config():
    large, small = shapes(base.get_config()), shapes(small_config())
    order = [[part_of(path) for path in paths] for paths in (large, small)]
    assert [part for part in dict.fromkeys(order[0]) if part != "audio_encoder"] == list(dict.fromkeys(order[1]))
    layers = [{re.sub(r"\d+", "N", path) for path in paths if "_blocks_" in path} for paths in (large, small)]
    assert {path for path in layers[0] ^ layers[1] if not path.startswith("vae/")} == set()
    for name in ("reference_attention", "audio_attention", "temporal_modules", "face_locator", "speed_layers"):
        assert base.get_config().model[name] == small_config().model[name]


def test_crops_of_the_base_config_cover_the_size_of_faces_in_generation():
    """Masks were measured at 0.60 of the height of prepared records, and at 0.69 in generation."""
    low, high = base.get_config().data.crop_scale
    assert 0.60 / high < 0.69 < 0.60 / low


# ---- sizes, against SD1.5 and AnimateDiff


@pytest.fixture(scope="module")
def counts():
    return _count(base.get_config())


def _count(config):
    """Returns {part: number of parameters}."""
    counts = dict.fromkeys(("vae", "backbone", "reference_net", "temporal_modules"), 0)
    for path, leaf in shapes(config).items():
        counts[part_of(path)] = counts.get(part_of(path), 0) + math.prod(leaf.shape)
    return counts


WIDTHS = {320: 5, 640: 5, 1280: 6}  # spatial transformers of SD1.5: two down, three up, one in the middle
TEMPORAL_WIDTHS = {320: 5, 640: 5, 1280: 11}  # a motion module after every resnet, also on the coarsest level
SD15_UNET = 859_520_964
TEXT = 768


def test_vae_has_the_size_of_stable_diffusion_s(counts):
    assert counts["vae"] == 83_653_863


def test_unet_without_text_attention_has_the_size_of_stable_diffusion_s(counts):
    config = base.get_config()
    config.model.update(
        reference_attention="off", audio_attention=False, temporal_modules=False, speed_layers=False, face_locator=False
    )
    text_attention = sum(n * (2 * c * c + 2 * TEXT * c + c + 2 * c) for c, n in WIDTHS.items())  # and its norm
    assert _count(config)["backbone"] == SD15_UNET - text_attention == 815_533_444


def test_size_of_reference_attention(counts):
    added = sum(n * (4 * c * c + c + 4 * c) for c, n in WIDTHS.items())  # K and V from the width itself, two norms
    assert counts["backbone"] == 815_533_444 + added == 865_157_444


def test_reference_net_ends_at_its_last_feature(counts):
    c = 320
    feed_forward = c * 8 * c + 8 * c + 4 * c * c + c
    unused = 2 * c + feed_forward + (c * c + c) + 2 * c + (9 * c * 4 + 4)  # norm, feed-forward, proj_out; norm and conv
    assert counts["reference_net"] == 815_533_444 - unused == 814_186_240


def test_temporal_modules_have_the_size_of_animatediff_s(counts):
    # proj_in and proj_out, two attentions, a gated feed-forward, and the norms
    each = {c: 2 * (c * c + c) + 2 * (4 * c * c + c) + (12 * c * c + 9 * c) + 8 * c for c in TEMPORAL_WIDTHS}
    assert counts["temporal_modules"] == sum(n * each[c] for c, n in TEMPORAL_WIDTHS.items()) == 453_209_280


# ---- errors


@pytest.mark.parametrize("override, word", [
    ("--config.train.stepz=3", "stepz"),
    ("--config.model.unet.head=3", "head"),
    ("--config.trian.steps=3", "trian"),
    ("--config.train.steps=many", "many"),
    ("--train.steps=3", "train.steps"),
    ("extra", "extra"),
])  # fmt: skip
def test_unknown_field_or_bad_value_raises(override, word):
    with pytest.raises(ValueError, match=word) as caught:
        parse("tiny.py", "video", override)
    assert "\n" not in str(caught.value)


def test_overrides():
    config = parse("tiny.py", "image", "--config.train.steps=7", "--config.clip.image_size=(64,96)")
    assert config.train.steps == 7 and tuple(config.clip.image_size) == (64, 96) and config.train.stage == "image"


@pytest.mark.parametrize("arguments, message", [
    ([], "no config given"),
    (["--config=configs/nowhere.py"],
     "'configs/nowhere.py' is neither .*: base, echomimic, echomimic_acc, hallo, relatives, small, tiny"),
    ([f"--config={CONFIGS / 'tiny.py'}:sound"], r"^\S*tiny.py:sound: configs/tiny.py has no stage 'sound'; "),
])  # fmt: skip
def test_missing_config_raises(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        config_lib.parse(arguments)
    assert "\n" not in str(caught.value)


FAULTY = """
from ml_collections import ConfigDict


def get_config(fault="none"):
    if fault == "value":
        try:
            {}["inner"]
        except KeyError as error:
            raise ValueError("no stage\\nof that name") from error
    if fault == "name":
        return nowhere
    if fault == "file":
        return open("nowhere.json")
    return ConfigDict()
"""


@pytest.mark.parametrize("fault, message", [
    ("value", "no stage of that name"),
    ("name", "NameError: name 'nowhere' is not defined"),
    ("file", "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.json'"),
])  # fmt: skip
def test_an_error_inside_a_config_file_is_reported_as_raised(tmp_path, fault, message):
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    for arguments in ([f"--config={file}:{fault}"], ["--config", f"{file}:{fault}"]):
        with pytest.raises(ValueError) as caught:
            config_lib.parse(arguments)
        assert str(caught.value) == f"{file}:{fault}: {message}"


BAD = [
    ("model.reference_attention", dict(model=dict(reference_attention="both"))),
    ("model.speed_layers", dict(model=dict(temporal_modules=False))),
    ("model.audio.encoder", dict(model=dict(audio=dict(encoder="wav2vec3")))),
    ("model.audio.layers", dict(model=dict(audio=dict(encoder="wav2vec2", layers=(1, 13))))),
    ("wav2vec2.num_attention_heads", dict(
        model=dict(audio=dict(encoder="wav2vec2", wav2vec2=dict(num_attention_heads=5)))
    )),
    ("model.audio.gain", dict(model=dict(audio_branches=True, audio=dict(gain=2.0)))),
    ("model.dtype", dict(model=dict(dtype="float31"))),
    ("model.unet.heads", dict(model=dict(unet=dict(heads=3)))),
    ("model.unet.heads", dict(model=dict(unet=dict(heads=0)))),
    ("model.unet.groups", dict(model=dict(unet=dict(groups=5)))),
    ("model.unet.groups", dict(model=dict(unet=dict(groups=0)))),
    ("model.unet.attention", dict(model=dict(unet=dict(attention=(True, True, False))))),
    ("model.vae.groups", dict(model=dict(vae=dict(groups=3)))),
    ("model.vae.groups", dict(model=dict(vae=dict(groups=0)))),
    ("model.vae.decoder_channels", dict(model=dict(vae=dict(decoder_channels=(8, 16))))),
    ("model.locator_channels", dict(model=dict(locator_channels=(4, 4, 8)))),
    ("model.speed.radii", dict(model=dict(speed=dict(radii=(0.1, 0.2))))),
    ("clip.image_size", dict(clip=dict(image_size=(48, 64)))),
    ("clip.image_size", dict(clip=dict(image_size=(64, 80)))),
    ("clip.motion_frames", dict(clip=dict(motion_frames=5))),
    ("clip.motion_frames", dict(clip=dict(frames=28, motion_frames=5))),
]  # (field that the message names, fields of the config)


@pytest.mark.parametrize("field, changes", BAD)
def test_networks_that_do_not_fit_together_raise(field, changes):
    config = small_config()
    with config.ignore_type():
        config.update(changes)
    with pytest.raises(ValueError, match=re.escape(field)) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_the_small_model_fits_into_the_package():
    params = shapes(parse("small.py", "video"))
    assert 2 * sum(math.prod(array.shape) for array in params.values()) < 60e6  # bytes in float16

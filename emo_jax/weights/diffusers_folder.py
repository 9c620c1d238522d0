"""Weights in a folder as diffusers lays out a pipeline: model_index.json and one folder per component.

    model_index.json                the components and EMO's config
    scheduler/scheduler_config.json
    vae/, unet/, reference_net/, face_locator/, audio_projector/, speed_encoder/, face_projector/
        config.json, diffusion_pytorch_model.safetensors
    audio_encoder/                  config.json, preprocessor_config.json, model.safetensors (wav2vec 2.0, Whisper)

Tensors have diffusers' and transformers' names and layouts. A VAE with Stable Diffusion's architecture is an
AutoencoderKL, and the audio encoder a Wav2Vec2Model, which other tools load as they are. Of a WhisperModel there is the
encoder alone.
"""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from emo_jax import config as config_lib
from emo_jax import schema
from emo_jax.models.config_schema import config_from_fields, config_schema
from emo_jax.weights import names
from emo_jax.weights.files import SCALE, load_tensors, save_tensors

if TYPE_CHECKING:
    from diffusers.configuration_utils import ConfigMixin

INDEX = "model_index.json"
_TENSORS = "diffusion_pytorch_model.safetensors"
_FOLDERS = {
    "vae": "vae",
    "unet": "backbone",
    "reference_net": "reference_net",
    "face_locator": "face_locator",
    "audio_projector": "audio_projector",
    "speed_encoder": "speed_encoder",
    "face_projector": "face_projector",
}
"""The branch of the params tree that each folder holds, besides audio_encoder."""
_CLASSES = {
    "unet": ("Backbone", "unet"),
    "reference_net": ("ReferenceNet", "unet"),
    "face_locator": ("FaceLocator", "locator_channels"),
    "audio_projector": ("AudioProjector", "audio"),
    "speed_encoder": ("SpeedEncoder", "speed"),
    "face_projector": ("FaceProjector", "face_embedding"),
}
"""The class of each component of emo_jax, and the field of `config.model` that describes it."""
NAMES = {INDEX, "scheduler", "audio_encoder", *_FOLDERS}
"""The names of all files and folders that an export may hold."""


def is_diffusers_folder(folder: pathlib.Path) -> bool:
    """Returns whether a folder has diffusers' layout."""
    return (folder / INDEX).is_file()


def save(folder: pathlib.Path, config: ConfigDict, flat: dict[str, Any], dtype: type = np.float16) -> None:
    """Writes a model in diffusers' layout.

    Args:
        folder: an empty folder.
        config: EMO's config.
        flat: the params {path: array}.
        dtype: the type of the stored numbers.
    """
    index = {"emo_config": json.loads(config_lib.to_json(config))}
    for name, branch in _FOLDERS.items():
        params = {path.removeprefix(f"{branch}/"): a for path, a in flat.items() if path.startswith(f"{branch}/")}
        if not params:
            continue
        index[name] = _write_component(folder / name, name, config, params, dtype)
    params = {p.removeprefix("audio_encoder/"): a for p, a in flat.items() if p.startswith("audio_encoder/")}
    if params:
        name = _save_audio_encoder(folder / "audio_encoder", config.model.audio, params, dtype)
        index["audio_encoder"] = ["transformers", f"{name}Model"]
        index["feature_extractor"] = ["transformers", f"{name}FeatureExtractor"]
    _config("DDIMScheduler", "scheduler_config.json", _scheduler_fields(config)).save_config(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    _config("EmoPipeline", INDEX, index).save_config(folder)


def load(folder: pathlib.Path) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """Reads a folder of `save`.

    Returns:
        (config, {path: array}), in the type that the numbers are stored in.

    Raises:
        ValueError: a file is missing or damaged.
    """
    config, flat = load_config(folder), {}
    for name, branch in _FOLDERS.items():
        if (folder / name).is_dir():
            for key, array in _read(folder / name / _TENSORS).items():
                path, value = names.to_path(key, array)
                flat[f"{branch}/{path}"] = np.ascontiguousarray(value)
    if (folder / "vae").is_dir():
        fields = schema.read_json(folder / "vae" / "config.json", schema.fields({"scaling_factor": SCALE}, extra=True))
        flat["vae/scaling_factor"] = np.float32(fields["scaling_factor"])
    if (folder / "audio_encoder").is_dir():
        params = _load_audio_encoder(folder / "audio_encoder", config)
        flat |= {f"audio_encoder/{path}": np.ascontiguousarray(array) for path, array in params.items()}
    return config, flat


def _save_audio_encoder(folder: pathlib.Path, audio: ConfigDict, params: dict[str, Any], dtype: type) -> str:
    """Writes the audio encoder; returns the beginning of its classes' names in transformers."""
    from emo_jax.weights.wav2vec2 import save_wav2vec2
    from emo_jax.weights.whisper import save_whisper

    if audio.encoder == "whisper":
        save_whisper(folder, audio.whisper, params, dtype)
        return "Whisper"
    save_wav2vec2(folder, audio.wav2vec2, params, dtype)
    return "Wav2Vec2"


def _load_audio_encoder(folder: pathlib.Path, config: ConfigDict) -> dict[str, np.ndarray]:
    from emo_jax.models.whisper import WhisperConfig
    from emo_jax.weights.wav2vec2 import load_wav2vec2
    from emo_jax.weights.whisper import load_whisper

    if config.model.audio.encoder == "whisper":
        sizes: dict[str, Any] = config.model.audio.whisper.to_dict()
        return load_whisper(folder, WhisperConfig(**sizes))[0]
    return load_wav2vec2(folder)[1]


def load_config(folder: pathlib.Path) -> ConfigDict:
    """Reads EMO's config from a folder of `save`. Raises ValueError if model_index.json does not hold it."""
    index = schema.read_json(folder / INDEX, schema.fields({}, {"emo_config": config_schema()}, extra=True))
    if "emo_config" not in index:
        raise ValueError(f"{folder}/{INDEX} has no emo_config; expected a folder of emo export --to diffusers")
    return config_from_fields(index["emo_config"], "emo_config").lock()


def _write_component(folder: pathlib.Path, name: str, config: ConfigDict, params: dict, dtype: type) -> list[str]:
    """Writes one component; returns its entry in model_index.json: library and class."""
    if name == "vae":
        factor = float(np.asarray(params.pop("scaling_factor"), np.float32))
        fields = _vae_fields(config) | {"scaling_factor": factor}
        vae = config.model.vae
        standard = vae.patch == 1 and not vae.shortcut and not vae.get("flow_channels", 0)
        library, kind = ("diffusers", "AutoencoderKL") if standard else ("emo_jax", "VAE")
    else:
        library, (kind, section) = "emo_jax", _CLASSES[name]
        fields = config.model[section]
        fields = fields.to_dict() if isinstance(fields, ConfigDict) else {section: fields}
    _config(kind, "config.json", fields).save_config(folder)
    tensors = dict(names.from_path(path, np.asarray(array, dtype)) for path, array in params.items())
    save_tensors(folder / _TENSORS, {key: np.ascontiguousarray(array) for key, array in tensors.items()})
    return [library, kind]


def _config(name: str, file: str, fields: dict[str, Any]) -> ConfigMixin:
    """Returns a diffusers config that `save_config` writes to `file`, with `name` as its class."""
    from diffusers.configuration_utils import ConfigMixin

    config = type(name, (ConfigMixin,), {"config_name": file})()
    config.register_to_config(**fields)
    return config


def _vae_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of an AutoencoderKL's config."""
    vae = config.model.vae
    levels = len(vae.channels)
    return dict(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=list(vae.channels),
        layers_per_block=vae.layers,
        act_fn="silu",
        latent_channels=vae.latent_channels,
        norm_num_groups=vae.groups,
        sample_size=config.clip.image_size[0],
    )


def _scheduler_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of a DDIMScheduler's config."""
    diffusion = config.diffusion
    predictions = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    return dict(
        num_train_timesteps=diffusion.train_steps,
        beta_schedule=diffusion.beta_schedule,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        prediction_type=predictions[diffusion.prediction],
        timestep_spacing=diffusion.spacing,
        rescale_betas_zero_snr=diffusion.zero_terminal_snr,
        clip_sample=False,
        set_alpha_to_one=diffusion.spacing == "trailing",
        steps_offset=int(diffusion.spacing == "leading"),
    )


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ValueError(f"{file} is missing; export the model again")
    return load_tensors(file)

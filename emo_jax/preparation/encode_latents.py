"""Encodes records with the VAE (and wav2vec 2.0) once, so that training need not do it in every step.

Each process encodes its own shards on its own devices; see `shards` for how a build resumes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict

from emo_jax.data import latents, records, transforms
from emo_jax.data.latents import Layout
from emo_jax.data.record import has_reliable_speed
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import batch_sharding, make_mesh, place_batch, replicated, traced_for_mesh
from emo_jax.files import write_text
from emo_jax.media import mp4
from emo_jax.models.emo import EMO, build
from emo_jax.models.hearing import make_recording
from emo_jax.models.parts import ENCODERS
from emo_jax.models.wav2vec2 import Wav2Vec2
from emo_jax.preparation.shards import ShardedBuild, shard_names
from emo_jax.progress import Progress
from emo_jax.weights.encoders import encoder_digest, encoder_magnitudes
from emo_jax.weights.store import nest, read_flat


@dataclasses.dataclass(frozen=True)
class LatentBuild(ShardedBuild):
    """A directory of latents.

    Attributes:
        target: absolute path of the directory.
        source: the records.
        layout: the layout of the latents.
        max_shards: maximum number of shards.
        seed: seed of the crop windows.
        encoder_digest: digest of the encoders' weights.
    """

    target: pathlib.Path
    source: records.RecordSource
    layout: Layout
    max_shards: int
    seed: int = 0
    encoder_digest: str = ""

    differences: ClassVar[str] = "other records, weights or settings"
    writer_options: ClassVar[str] = "group_size:1,uncompressed"

    @property
    def shards(self) -> int:
        """The number of shards."""
        return min(self.max_shards, len(self.source))

    def positions(self, index: int) -> range:
        """Returns the positions of the records of one shard."""
        return self.bounds(index, len(self.source))

    def describe(self) -> str:
        """Returns everything that the latents depend on, as JSON."""
        description = dict(
            records=os.path.abspath(self.source.directory),
            split=self.source.split,
            count=len(self.source),
            seed=self.seed,
            shards=self.shards,
            layout=dataclasses.asdict(self.layout),
            encoders=self.encoder_digest,
        )
        return json.dumps(description, indent=1)


def encode_records(
    directory: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike,
    config: ConfigDict | None = None,
    *,
    split: str = "train",
    windows: int = 2,
    seed: int = 0,
    batch: int = 8,
    shards: int = 64,
) -> None:
    """Encodes a split of records to latents, which `data.directory` and `data.sources` of `emo train` accept.

    Several processes share the work; they are configured as those of `emo train`.

    Args:
        directory: directory of the records.
        output: directory of the latents.
        checkpoint: weights whose encoders are used; see `read_flat`.
        config: its clip.image_size, clip.audio_window, data.crop_scale and data.flip_prob (above 0: mirrored latents
            are encoded as well) must be those of the later training; None: the checkpoint's config.
        split: split of the records.
        windows: crop windows per record; one is encoded if all records allow only one.
        seed: seed of the crop windows.
        batch: frames per device and call of the encoder.
        shards: maximum number of files.

    Raises:
        ValueError: if an argument is out of range, there is no device, the weights do not fit the config, or the output
            was built from other inputs.
        OSError: if files cannot be written; the same call resumes.
    """
    processes.start()
    for name, value, minimum in (
        ("windows", windows, 1),
        ("batch", batch, 1),
        ("shards", shards, 1),
        ("seed", seed, 0),
    ):
        if value < minimum:
            raise ValueError(f"--{name} is {value}; expected at least {minimum}")
    processes.check_devices()
    checkpoint_config, flat = read_flat(checkpoint)
    emo = build(config or checkpoint_config)
    params = nest(emo, flat, checkpoint, ENCODERS)
    source = records.open_records(directory, split)
    layout = _limit_windows(source, make_layout(emo, windows))
    plan = LatentBuild(pathlib.Path(output).absolute(), source, layout, shards, seed, encoder_digest(flat))
    if plan.begin():
        write_shards(plan, RecordEncoder(emo, params, batch))
        processes.barrier("latents")  # until all processes have written their shards
        if processes.is_main():
            publish_latents(plan, encoder_magnitudes(flat))
    if processes.is_main():
        size = sum(path.stat().st_size for path in plan.target.iterdir())
        print(f"{plan.target}: {len(source)} records, {size / 2**20:.1f} MiB")


def make_layout(emo: EMO, windows: int) -> Layout:
    """Returns the layout of the latents of a model, with `windows` crop windows per record."""
    if emo.uses_flow:
        raise ValueError("model.vae.flow_channels: latents of flow depend on the reference; train on the records")
    config, encoder = emo.config, emo.audio_encoder
    layout = Layout(
        image_size=tuple(config.clip.image_size),
        latent_shape=emo.latent_shape,
        crop_scale=tuple(config.data.crop_scale),
        windows=windows,
        mirrored=config.data.flip_prob > 0,
    )
    if not isinstance(encoder, Wav2Vec2):  # features of Whisper would be as large as the latents
        return layout
    return dataclasses.replace(
        layout,
        layers=tuple(config.model.audio.layers),
        features=encoder.config.hidden_size,
        reach=config.clip.audio_window,
    )


def _limit_windows(source: records.RecordSource, layout: Layout) -> Layout:
    """Returns the layout with one window if the crop scale and the frame sizes of all records allow only one.

    Raises:
        ValueError: if a record is a single picture, which needs two windows, and the layout has one.
    """
    has_pictures = (source.index()["frames"] == 1).any()
    if has_pictures and layout.windows == 1:
        raise ValueError(
            f"--windows is 1, but {source.directory} contains single pictures, whose reference and target must be "
            "cropped differently; use at least 2"
        )
    low, high = layout.crop_scale
    if has_pictures or low < high:
        return layout
    for position in range(len(source)):
        with records.open_record(source, position) as record:
            height, width = mp4.decode_video(record["video"], 0, 1).shape[1:3]
        if transforms.center_window((height, width), layout.image_size, low)[2:] != (height, width):
            return layout
    return dataclasses.replace(layout, windows=1)


class RecordEncoder:
    """The VAE's encoder and wav2vec 2.0, compiled for the devices of this process."""

    def __init__(self, emo: EMO, params: dict[str, Any], batch: int):
        """Places the parameters.

        Args:
            emo: the model.
            params: parameters of its encoders.
            batch: frames per device and call.
        """
        self._emo = emo
        self._mesh = make_mesh(devices=jax.local_devices())
        self._params = jax.device_put(params, replicated(self._mesh))
        self._batch = batch * self._mesh.size

        def encode(params: dict[str, Any], images: jax.Array) -> jax.Array:
            return emo.encode(params, images).astype(latents.DTYPE)

        sharding = batch_sharding(self._mesh)
        shardings = replicated(self._mesh), sharding
        self._encode = jax.jit(traced_for_mesh(self._mesh, encode), in_shardings=shardings, out_shardings=sharding)
        self._hidden_states = jax.jit(emo.hidden_states)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """Encodes images (frames, height, width, 3) uint8 to latents (frames, h, w, c) float16."""
        parts = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            part = np.pad(part, [(0, self._batch - len(part)), (0, 0), (0, 0), (0, 0)])
            parts.append(self._encode(self._params, place_batch(self._mesh, {"images": part})["images"]))
        return np.concatenate([np.asarray(part) for part in parts])[: len(images)]

    def encode_audio(
        self, audio: np.ndarray, moments: np.ndarray, frames: int, fps: float, layout: Layout
    ) -> np.ndarray:
        """Computes the audio features of a record.

        Args:
            audio: (samples,) int16; (0,) if the record has no sound, which gives zeros.
            moments: (20, 10) float32, moments of the recording that the audio is a part of; see `media.moments`.
            frames: number of frames of the record.
            fps: frames per second.
            layout: the layout of the latents.

        Returns:
            (frames + 2 * reach, layers, features) float16; no rows if the layout has no audio features.
        """
        count, encoder = frames + 2 * layout.reach, self._emo.audio_encoder
        if encoder is None or not layout.layers or not len(audio):
            return np.zeros((count if layout.layers else 0, *layout.audio_feature_shape), latents.DTYPE)
        hidden_states = functools.partial(self._hidden_states, self._params)
        waveform = audio[None].astype(np.float32) / 32768
        recording = make_recording(self._emo, hidden_states, waveform, fps, 1, moments[None])
        return np.asarray(recording(-layout.reach, count))[0].astype(latents.DTYPE)


def write_shards(build: LatentBuild, encoder: RecordEncoder) -> None:
    """Writes the missing shards among those of this process."""
    indices = [i for i in build.missing() if i % jax.process_count() == jax.process_index()]
    with Progress(sum(len(build.positions(i)) for i in indices), "latents", "record") as progress:
        for i in indices:
            build.write_shard(i, lambda writer, i=i: _write_records(writer, build, i, encoder, progress))


def _write_records(
    writer: ArrayRecordWriter, build: LatentBuild, shard: int, encoder: RecordEncoder, progress: Progress
) -> dict[str, list]:
    """Writes the records of a shard; returns the summary: the index of its records."""
    index: dict[str, list] = {"frames": [], "fps": [], "sound": [], "reliable_speed": []}
    for position in build.positions(shard):
        with records.open_record(build.source, position) as record:
            for entry in _encode_record(record, position, build, encoder):
                writer.write(entry)
        index["frames"].append(len(record["boxes"]))
        index["fps"].append(float(record["fps"]))
        index["sound"].append(bool(len(record["audio"])))
        index["reliable_speed"].append(has_reliable_speed(record["speed_confidence"], record["flags"]))
        progress.add()
    return index


def _encode_record(
    record: dict[str, Any], position: int, build: LatentBuild, encoder: RecordEncoder
) -> Iterator[bytes]:
    """Returns the entries of one record."""
    total, layout = len(record["boxes"]), build.layout
    frames = mp4.decode_video(record["video"], 0, total)
    windows = list(latents.draw_windows(build.seed, position, total, frames.shape[1:3], layout))
    fields = {name: record[name] for name in ("boxes", "speed", "audio", "audio_moments")}
    fields["windows"] = np.array(windows)

    def encode_windows() -> Iterator[np.ndarray]:
        for window in windows:
            images = transforms.crop(frames, window, layout.image_size)
            yield encoder.encode_images(images)
            if layout.mirrored:
                yield encoder.encode_images(images[:, :, ::-1])

    features = encoder.encode_audio(record["audio"], record["audio_moments"], total, float(record["fps"]), layout)
    return latents.pack_entries(fields, encode_windows(), features)


def publish_latents(build: LatentBuild, weights: dict[str, Any]) -> None:
    """Assembles the shards under the final name.

    Args:
        build: the directory; all of its shards are complete.
        weights: magnitudes of the encoders' weights, by which training recognizes them; see `encoder_magnitudes`.
    """
    summaries = build.read_summaries()
    files = shard_names(f"latents-{build.source.split}", build.shards)
    fields = [name for name in summaries[0] if all(name in summary for summary in summaries)]
    index = {name: _concatenate(summary[name] for summary in summaries) for name in fields}

    def write_metadata(directory: pathlib.Path) -> None:
        metadata = dict(
            split=build.source.split,
            layout=dataclasses.asdict(build.layout),
            files=files,
            records=index,
            weights=weights,
        )
        write_text(directory / latents.LATENTS_FILE, json.dumps(metadata))

    build.publish({name: i for i, name in enumerate(files)}, write_metadata)


def _concatenate(lists: Iterable[list]) -> list:
    return [value for values in lists for value in values]

"""Records encoded once by the VAE (and wav2vec 2.0), so that training need not do it in every step.

Every process encodes shards of its own on its own devices; a shard that is there is never made again.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from emo_jax.data import latents, records, transforms
from emo_jax.distributed import processes
from emo_jax.distributed.mesh import batch_sharding, make_mesh, place_batch, replicated, traced_for_mesh
from emo_jax.files import remove_leftovers, whole, write_text
from emo_jax.media import mp4
from emo_jax.models.audio_encoder import Recording
from emo_jax.models.emo import build
from emo_jax.models.parts import ENCODERS
from emo_jax.preparation.shards import begin
from emo_jax.progress import Progress
from emo_jax.weights.encoders import encoder_digest, encoder_magnitudes
from emo_jax.weights.store import nest, read_flat


def encode_records(directory, output, checkpoint, config=None, *, split="train", windows=2, seed=0, batch=8, shards=64):
    """Writes the latents of a split of records to `output`, for `data.directory` or `data.sources` of `emo train`.

    Several processes find each other as those of `emo train` do.

    Args:
        directory: of the records. checkpoint: weights whose encoders are used, see `read_flat`.
        config: its clip.image_size, clip.audio_window, data.crop_scale and data.flip_prob (above 0: mirrored as well)
            are those of the training to come; None: the checkpoint's.
        windows: crop windows of each record, drawn by `seed`. batch: frames a device encodes at once. shards: files.

    Raises:
        ValueError: arguments that make no sense, no device, weights of another config, or an output that is of
            something else.
        OSError: the files cannot be written; the same call goes on from there.
    """
    processes.start()
    for name, value, least in (("windows", windows, 1), ("batch", batch, 1), ("shards", shards, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"--{name} is {value}; expected at least {least}")
    processes.check_devices()
    found, flat = read_flat(checkpoint)
    emo = build(config or found)
    params = nest(emo, flat, checkpoint, ENCODERS)
    source, layout = records.open_records(directory, split), _layout(emo, windows)
    target, shards = pathlib.Path(output).absolute(), min(shards, len(source))
    work = target.parent / f".{target.name}.partial"
    told = dict(records=os.path.abspath(directory), split=split, count=len(source), seed=seed, shards=shards)
    told |= dict(layout=dataclasses.asdict(layout), encoders=encoder_digest(flat))
    if begin(target, work, json.dumps(told, indent=1), "of other records, by another checkpoint or config"):
        files = [f"latents-{split}.array_record-{i:05d}-of-{shards:05d}" for i in range(shards)]
        _make_shards(Encoder(emo, params, batch), source, work, files, layout, seed)
        processes.wait("latents")  # for the others' shards
        if processes.first():
            _finish(work, target, split, files, layout, encoder_magnitudes(flat))
    if processes.first():
        size = sum(path.stat().st_size for path in target.iterdir())
        print(f"{target}: {len(source)} records, {size / 2**20:.1f} MiB")


def _layout(emo, windows):
    config, encoder = emo.config, emo.audio_encoder
    heard = {} if encoder is None else dict(
        layers=tuple(config.model.audio.layers), features=encoder.config.hidden_size, reach=config.clip.audio_window
    )  # fmt: skip
    return latents.Layout(
        tuple(config.clip.image_size),
        emo.latent_shape,
        tuple(config.data.crop_scale),
        windows,
        config.data.flip_prob > 0,
        **heard,
    )


class Encoder:
    """The VAE's encoder and wav2vec 2.0, jitted over the devices of this process."""

    def __init__(self, emo, params, batch):
        self._emo = emo
        self._mesh = make_mesh(devices=jax.local_devices())
        self._params = jax.device_put(params, replicated(self._mesh))
        self._batch = batch * self._mesh.size

        def encode(params, images):
            return emo.encode(params, images).astype(latents.DTYPE)

        split = batch_sharding(self._mesh)
        places = replicated(self._mesh), split
        self._encode = jax.jit(traced_for_mesh(self._mesh, encode), in_shardings=places, out_shardings=split)
        self._listen = jax.jit(emo.hidden_states)

    def pictures(self, images):
        """Latents (N, h, w, c) float16 of images (N, H, W, 3) uint8."""
        parts = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            part = np.pad(part, [(0, self._batch - len(part)), (0, 0), (0, 0), (0, 0)])
            parts.append(self._encode(self._params, place_batch(self._mesh, {"images": part})["images"]))
        return np.concatenate([np.asarray(part) for part in parts])[: len(images)]

    def features(self, audio, frames, fps, layout):
        """Audio features (N + 2 * reach, L, D) float16 of a record of N frames and audio (S,) int16, 0 if silent."""
        if not layout.layers or not len(audio):
            return np.zeros((frames + 2 * layout.reach if layout.layers else 0, *layout.heard_shape), latents.DTYPE)
        listen = functools.partial(self._listen, self._params)
        sound = audio[None].astype(np.float32) / 32768
        recording = Recording(listen, sound, fps, layout.reach, self._emo.audio_encoder.config)
        return recording(-layout.reach, frames + 2 * layout.reach)[0].astype(latents.DTYPE)


def _make_shards(encoder, source, work, files, layout, seed):
    """The shards of this process that are not there yet; the summary of each is written last."""
    count = len(files)
    mine = [i for i in range(jax.process_index(), count, jax.process_count()) if not _summary(work, i).exists()]
    rows = {i: range(i * len(source) // count, (i + 1) * len(source) // count) for i in mine}
    with Progress(sum(map(len, rows.values())), "latents", "record") as progress:
        for i, positions in rows.items():
            with whole(work / files[i]) as partial:
                writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
                index = _write_records(writer, encoder, source, positions, layout, seed, progress)
                writer.close()
            write_text(_summary(work, i), json.dumps(index))


def _write_records(writer, encoder, source, positions, layout, seed, progress):
    """The shard's summary: frames, fps and sound of each record."""
    index = {"frames": [], "fps": [], "sound": []}
    for position in positions:
        with records.reading(source, position) as record:
            for entry in _entries(encoder, record, position, layout, seed):
                writer.write(entry)
        index["frames"].append(len(record["boxes"]))
        index["fps"].append(float(record["fps"]))
        index["sound"].append(bool(len(record["audio"])))
        progress.add()
    return index


def _entries(encoder, record, position, layout, seed):
    total = len(record["boxes"])
    frames = mp4.decode_video(record["video"], 0, total)
    windows = list(latents.draw_windows(seed, position, frames.shape[1:3], layout))
    fields = {name: record[name] for name in ("boxes", "speed", "audio")} | {"windows": np.array(windows)}

    def pictures():
        for window in windows:
            seen = transforms.crop(frames, window, layout.image_size)
            yield encoder.pictures(seen)
            if layout.mirrored:
                yield encoder.pictures(seen[:, :, ::-1])

    return latents.pack(fields, pictures(), encoder.features(record["audio"], total, float(record["fps"]), layout))


def _summary(work, index):
    return work / f"shard-{index:05d}.json"


def _finish(work, target, split, files, layout, weights):
    summaries = [json.loads(_summary(work, i).read_text()) for i in range(len(files))]
    index = {name: sum((summary[name] for summary in summaries), []) for name in summaries[0]}
    found = dict(split=split, layout=dataclasses.asdict(layout), files=files, records=index, weights=weights)
    remove_leftovers(work)
    write_text(work / latents.LATENTS_FILE, json.dumps(found))
    if target.is_dir():
        target.rmdir()  # empty, says `begin`
    os.replace(work, target)
    for i in range(len(files)):
        _summary(target, i).unlink()

"""Latents of records: training reads from them what it would have computed."""

import dataclasses
import functools
import json
import pickle
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emo_jax.cli import main as cli
from emo_jax.data import clip_sampler, latents, pipeline, records, transforms
from emo_jax.distributed.mesh import make_mesh
from emo_jax.media import mp4
from emo_jax.models.emo import build
from emo_jax.preparation import encode_latents
from emo_jax.preparation.encode_latents import encode_records
from emo_jax.training import losses
from emo_jax.training.encoders import check_encoders
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.weights.store import save_weights
from tests.data.clips import configs, plain_record
from tests.small import WAV2VEC2, small_config
from tests.steps import random_params


def hearing_config(stage="video", **data):
    config = small_config(stage)
    config.model.audio.update(WAV2VEC2)
    config.data.update(crop_scale=(0.8, 0.8), flip_prob=0.5, same_window_prob=0.0, min_reference_gap=0.2, **data)
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(networks, params, folder of the weights) of a small EMO with wav2vec 2.0."""
    emo = build(hearing_config())
    params = random_params(emo)
    folder = tmp_path_factory.mktemp("hearing") / "weights"
    save_weights(folder, emo.config, flatten_dict(params, sep="/"), np.float32)
    return emo, params, folder


@pytest.fixture(scope="module")
def encoded(model, talking_records, tmp_path_factory):
    """The latents of `talking_records`, in two shards."""
    output = tmp_path_factory.mktemp("latents") / "out"
    encode_records(talking_records, output, model[2], windows=2, shards=2, batch=16)
    return output


def test_entries_are_the_outputs_of_the_encoders(model, encoded, talking_records):
    emo, params, _ = model
    source, latent_source = records.open_records(talking_records, "train"), latents.LatentSource(encoded, "train")
    assert len(latent_source) == len(source) == 5 and sorted(p.name for p in encoded.iterdir()) == [
        "latents-train.array_record-00000-of-00002",
        "latents-train.array_record-00001-of-00002",
        "latents.json",
        "plan.json",
    ]
    for name, value in latent_source.index().items():
        np.testing.assert_array_equal(value, source.index()[name])
    record, fields = source[4], latent_source[4]
    for name in ("boxes", "speed", "audio"):
        np.testing.assert_array_equal(fields[name], record[name])
    assert len({tuple(window) for window in fields["windows"]}) == 2
    frames, encode = mp4.decode_video(record["video"], 7, 3), jax.jit(emo.encode)
    for number, window in enumerate(fields["windows"]):
        images = transforms.crop(frames, tuple(window), (64, 64))
        for mirrored in (False, True):
            want = encode(params, images[:, :, ::-1] if mirrored else images)
            np.testing.assert_allclose(latent_source.frames(4, number, mirrored, 7, 3), want, rtol=2e-3, atol=2e-3)


def test_audio_features_equal_those_of_the_recording(model, encoded):
    from emo_jax.models.audio_encoder import Recording

    emo, params, _ = model
    latent_source, m = latents.LatentSource(encoded, "train"), emo.config.clip.audio_window
    record = latent_source[2]
    total = len(record["boxes"])
    sound = record["audio"][None].astype(np.float32) / 32768
    hidden_states = jax.jit(emo.hidden_states)
    listen, moments = functools.partial(hidden_states, params), record["audio_moments"][None]
    recording = Recording(listen, sound, 25.0, m, emo.audio_encoder.config, moments=moments)
    want = recording(-m, total + 2 * m)[0]
    assert want.std() > 0.1
    np.testing.assert_allclose(latent_source.features(2, -m, total + 2 * m), want, rtol=2e-3, atol=5e-3)
    np.testing.assert_allclose(latent_source.features(2, 3, 5), want[3 + m : 8 + m], rtol=2e-3, atol=5e-3)


def draw_batches(config, stage, count=2, batch=4):
    iterator = pipeline.make_iterator(config.data, clip_of(config, get_stage(stage)), batch_size=batch, seed=3)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("stage", ["image", "video"])
def test_batches_contain_one_clip_each(model, encoded, stage):
    config = hearing_config(stage, directory=str(encoded))
    latent_source = latents.LatentSource(encoded, "train")
    clip = clip_of(config, get_stage(stage))
    spec, mirrors = pipeline.element_spec(clip, 4, latent_source.layout), 0
    for batch in draw_batches(config, stage):
        assert {name: (value.shape, value.dtype) for name, value in batch.items()} == spec
        for i in range(4):
            sample = {name: value[i] for name, value in batch.items()}
            matches = [place for place in places(latent_source, sample["frames"])]
            assert len(matches) == 1
            position, window, mirrored, start = matches[0]
            mirrors += mirrored
            record = latent_source[position]
            n, m = clip.motion_frames, clip.audio_window
            if sample["has_motion"]:
                want = latent_source.frames(position, window, mirrored, start - n, n)
                np.testing.assert_array_equal(sample["motion"], want)
            else:
                assert not sample["motion"].any()
            np.testing.assert_array_equal(
                sample["audio"], latent_source.features(position, start - m, clip.frames + 2 * m)
            )
            speed = transforms.speed_window(record["speed"], start, clip.frames, m)
            np.testing.assert_array_equal(sample["speed"], speed)
            boxes = record["boxes"][start : start + clip.frames]
            mask = transforms.union_mask(boxes, tuple(record["windows"][window]), (64, 64))
            np.testing.assert_array_equal(sample["mask"], mask[:, ::-1] if mirrored else mask)
            (reference,) = places(latent_source, sample["reference"][None])
            assert reference[0] == position and reference[2] == mirrored
            assert not start <= reference[3] < start + clip.frames
    assert 0 < mirrors < 8


@pytest.mark.parametrize("windows, probability, least, most", [(3, 0.0, 0, 0), (2, 0.5, 100, 140), (1, 0.0, 240, 240)])
def test_same_window_prob(encoded, monkeypatch, windows, probability, least, most):
    latent_source, windows_read = latents.LatentSource(encoded, "train"), []
    latent_source.layout = dataclasses.replace(latent_source.layout, windows=windows)
    frames = np.zeros((6, *latent_source.layout.latent_shape), np.float16)
    monkeypatch.setattr(
        latent_source, "frames", lambda _, window, *rest: windows_read.append(int(window)) or frames[: rest[-1]]
    )
    monkeypatch.setattr(latent_source, "features", lambda *_: None)
    fields = latent_source[0] | {"windows": np.zeros((3, 4)) + (0, 0, 64, 64)}
    monkeypatch.setattr(latents.LatentSource, "__getitem__", lambda *_: fields)
    config = hearing_config()
    config.data.same_window_prob = probability
    sampler = clip_sampler.make_clip_sampler(latent_source, config.data, config.clip)
    for seed in range(240):
        sampler(0, np.random.default_rng(seed))
    clips, references = windows_read[::2], windows_read[1::2]
    assert least <= sum(a == b for a, b in zip(clips, references, strict=True)) <= most
    assert set(clips) == set(references) == set(range(windows))


def test_damaged_latents_error_names_the_record(encoded, tmp_path):
    shutil.copytree(encoded, tmp_path / "copy")
    path = tmp_path / "copy" / "latents-train.array_record-00000-of-00002"
    data = bytearray(path.read_bytes())
    data[1000] ^= 255  # in the fields of its first record
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"copy, split train, record 0: .*hash mismatch"):
        draw_batches(hearing_config(directory=str(tmp_path / "copy")), "video", 20)


def places(latent_source, frames):
    """Yields the (position, window, mirrored, start) at which the latents (F, h, w, c) are stored."""
    for position in range(len(latent_source)):
        total = latent_source.index()["frames"][position]
        for window in range(2):
            for mirrored in (False, True):
                every = latent_source.frames(position, window, mirrored, 0, total)
                for start in range(total - len(frames) + 1):
                    if np.array_equal(every[start : start + len(frames)], frames):
                        yield position, window, mirrored, start


@pytest.mark.slow
def test_loss_inputs_equal_those_of_records(model, encoded, talking_records):
    """The same clip from records and from latents gives the same inputs of the denoising loss, up to float16."""
    emo, params, _ = model
    batch = draw_batches(hearing_config(directory=str(encoded)), "video", 1)[0]
    latent_source, source = latents.LatentSource(encoded, "train"), records.open_records(talking_records, "train")
    pictures = dict(batch)
    for name in ("reference", "frames", "motion"):
        rows = []
        for value, real in zip(batch[name], batch["has_motion"], strict=True):
            if name == "motion" and not real:
                rows.append(np.zeros((len(value), 64, 64, 3), np.uint8))
                continue
            value = value[None] if name == "reference" else value
            position, window, mirrored, start = next(places(latent_source, value))
            frames = mp4.decode_video(source[position]["video"], start, len(value))
            images = transforms.crop(frames, tuple(latent_source[position]["windows"][window]), (64, 64))
            images = images[:, :, ::-1] if mirrored else images
            rows.append(images[0] if name == "reference" else images)
        pictures[name] = np.stack(rows)
    stage, key = get_stage("video"), dict.fromkeys(losses._DRAWS, jax.random.key(1))
    inputs = jax.jit(lambda params, batch: losses._inputs(emo, stage, emo.config.train, params, batch, key))
    (x0, conditions), (want, known) = (inputs(params, b) for b in (batch, pictures))
    np.testing.assert_allclose(x0, want, rtol=2e-3, atol=2e-3)
    for name, features in conditions.reference.items():
        np.testing.assert_allclose(features, known.reference[name], rtol=0.05, atol=0.05)


class MeanEncoder:
    """A cheap stand-in for `RecordEncoder`, which counts the records."""

    records = 0
    fail_at: int | None = None

    def __init__(self, emo, params, batch):
        self._shape = emo.latent_shape

    def encode_images(self, images):
        return np.broadcast_to(images.mean((1, 2, 3))[:, None, None, None], (len(images), *self._shape))

    def encode_audio(self, audio, moments, frames, fps, layout):
        MeanEncoder.records += 1
        if MeanEncoder.records == MeanEncoder.fail_at:
            raise KeyboardInterrupt
        return np.full((frames + 2 * layout.reach, *layout.audio_feature_shape), audio.std())


def test_interrupted_build_resumes(model, talking_records, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_latents, "RecordEncoder", MeanEncoder)
    monkeypatch.setattr(
        encode_latents, "nest", lambda *_: {}
    )  # traces the model, for parameters that are not used here
    monkeypatch.setattr(MeanEncoder, "records", 0)
    options = dict(windows=2, shards=2, batch=16)
    encode_records(talking_records, tmp_path / "uninterrupted", model[2], **options)
    assert MeanEncoder.records == 5
    output = tmp_path / "run" / "out"
    monkeypatch.setattr(MeanEncoder, "fail_at", 9)  # in the second shard
    with pytest.raises(KeyboardInterrupt):
        encode_records(talking_records, output, model[2], **options)
    assert not output.exists()
    with pytest.raises(ValueError, match="unfinished build"):
        encode_records(talking_records, output, model[2], **options | {"windows": 3})
    (tmp_path / "run/.out.partial/.shard.host-1.tmp").write_text("half a shard")  # of a process that was killed
    encode_records(talking_records, output, model[2], **options)
    assert MeanEncoder.records == 9 + 3  # the two records of the complete shard are not encoded again
    assert sorted(path.name for path in output.iterdir()) == [
        "latents-train.array_record-00000-of-00002",
        "latents-train.array_record-00001-of-00002",
        "latents.json",
        "plan.json",
    ]
    for path in output.iterdir():
        assert path.read_bytes() == (tmp_path / "uninterrupted" / path.name).read_bytes(), path.name
    encode_records(talking_records, output, model[2], **options)  # complete already
    assert MeanEncoder.records == 12 and [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("scale, size, windows", [
    ((1.0, 1.0), (64, 64), 1), ((1.0, 1.0), (64, 32), 2), ((0.8, 0.8), (64, 64), 2), ((0.8, 1.0), (64, 64), 2),
])  # fmt: skip
def test_one_window_is_encoded_if_there_is_no_choice(model, talking_records, scale, size, windows):
    layout = encode_latents.make_layout(model[0], 2)
    layout = dataclasses.replace(layout, crop_scale=scale, image_size=size)
    source = records.open_records(talking_records, "train")  # frames of 80 x 80
    assert encode_latents._limit_windows(source, layout).windows == windows


def test_pictures_have_two_different_windows(model, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (1, 80, 80, 3)).astype(np.uint8)
    record = plain_record("picture", picture, 25, (20, 20, 60, 60), [0])
    records.write_records(tmp_path / "records", {"train": lambda: [record]}, progress=False)
    source, layout = records.open_records(tmp_path / "records", "train"), encode_latents.make_layout(model[0], 2)
    layout = dataclasses.replace(layout, crop_scale=(1.0, 1.0))
    assert encode_latents._limit_windows(source, layout).windows == 2
    for seed in range(20):
        first, second = latents.draw_windows(seed, 0, 1, (80, 80), layout)
        assert first == (0, 0, 80, 80) and 60 <= second[2] == second[3] <= 72
    with pytest.raises(ValueError, match="--windows is 1"):
        encode_latents._limit_windows(source, dataclasses.replace(layout, windows=1))


def test_latents_with_other_settings_raise(model, encoded, talking_records):
    def fails(message, directory=str(encoded), size=(64, 64), window=2, **data):
        config = hearing_config(directory=directory)
        config.data.update(data)
        config.clip.update(image_size=size, audio_window=window)
        with pytest.raises(ValueError, match=message):
            pipeline.make_dataset(config.data, config.clip, batch_size=1, seed=0)

    fails(r"clip.image_size is \(32, 32\).*\(64, 64\)", size=(32, 32))
    fails("data.crop_scale", crop_scale=(0.5, 0.8))
    fails("data.color_jitter is 0.1", color_jitter=0.1)
    fails("clip.audio_window is 3", window=3)
    fails("'test'.*train", split="test")
    both = ((str(encoded), "train", 1), (str(talking_records), "train", 1))
    fails("differ", directory="", sources=both)


def test_latents_of_other_encoders_raise(model, encoded):
    emo, params, _ = model
    sources, mesh = [latents.LatentSource(encoded, "train")], make_mesh(devices=jax.devices()[:1])
    flat = flatten_dict(params, sep="/")
    check_encoders(sources, emo, mesh, flat)
    kernel = "vae/encoder/conv_in/kernel"
    check_encoders(sources, emo, mesh, flat | {kernel: flat[kernel].astype("bfloat16")})
    check_encoders(sources, emo, mesh, {p: a * 2 if "vae/decoder" in p else a for p, a in flat.items()})
    with pytest.raises(ValueError, match=r"vae/encoder/conv_in/kernel"):
        check_encoders(sources, emo, mesh, flat | {kernel: flat[kernel] * 1.02})
    with pytest.raises(ValueError, match="stage vae"):
        check_encoders(sources, build(hearing_config("vae")), mesh, flat)
    other = hearing_config()
    other.model.audio.layers = (1,)
    with pytest.raises(ValueError, match=r"layers \(0, 2\).*layers \(1,\)"):
        check_encoders(sources, build(other), mesh, flat)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_prepare_latents_and_train_commands(model, talking_records, tmp_path, capsys):
    (tmp_path / "small.py").write_text(
        "from tests.preparation.test_encode_latents import hearing_config\n\n\n"
        "def get_config(stage):\n"
        "    config = hearing_config(stage, num_workers=0)\n"
        "    config.train.update(steps=2, batch_size=2, log_every=1, save_every=2, sample_every=2)\n"
        "    return config\n"
    )
    given = f"--config={tmp_path}/small.py:video"
    output = tmp_path / "out"
    arguments = [str(talking_records), "--output", str(output), "--checkpoint", str(model[2]), "--batch=16"]
    assert cli.main(["prepare", "latents", *arguments, given]) == 0
    assert "5 records" in capsys.readouterr().out
    run = ["train", given, f"--workdir={tmp_path}/run", f"--config.train.init_from={model[2]}"]
    assert cli.main([*run, f"--config.data.directory={output}"]) == 0
    assert "step 2" in capsys.readouterr().out
    assert (
        len(list((tmp_path / "run" / "samples").glob("0000002_*.mp4"))) == 2
    )  # sample portraits can come from latents


def test_workers_import_neither_jax_nor_tensorflow(record_dir, encoded):
    data, clip = configs(record_dir)
    program = f"""
import pickle, sys
from emo_jax.data import latents, pipeline, records
records.open_records({str(record_dir)!r}, "train")[0]
source = pickle.loads({pickle.dumps(latents.LatentSource(encoded, "train"))!r})
print(source.frames(1, 0, False, 2, 3).shape, {{"jax", "tensorflow"}} & set(sys.modules))
from ml_collections import ConfigDict
data, clip = ConfigDict({data.to_dict()!r}), ConfigDict({clip.to_dict()!r})
next(pipeline.make_iterator(data, clip, batch_size=2, seed=0))  # Grain imports JAX
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized(), "tensorflow" in sys.modules)
"""
    stdout = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert stdout == "(3, 4, 4, 4) set()\nFalse False\n"


def test_missing_files_raise(encoded, tmp_path):
    (tmp_path / "latents.json").write_text((encoded / "latents.json").read_text())
    with pytest.raises(ValueError, match="00000-of-00002"):
        latents.LatentSource(tmp_path, "train")
    metadata = json.loads((encoded / "latents.json").read_text())
    damaged = metadata["files"][0]
    for name in metadata["files"]:
        (tmp_path / name).write_bytes((encoded / name).read_bytes()[: 1000 if name == damaged else None])
    with pytest.raises(ValueError, match=f"{damaged} is damaged"):
        latents.LatentSource(tmp_path, "train")
    metadata["files"] = [str(encoded / name) for name in metadata["files"][:1]]
    (tmp_path / "latents.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="entries"):
        latents.LatentSource(tmp_path, "train")


@pytest.mark.parametrize("field, value, name", [
    (("layout", "image_size"), [64], "layout.image_size"),
    (("layout", "windows"), 10**30, "layout.windows"),
    (("layout", "mirrored"), 1, "layout.mirrored"),
    (("records", "frames", 0), 30.0, r"records.frames\[0\]"),
    (("files",), "latents", "files"),
    (("split",), None, "split"),
])  # fmt: skip
def test_damaged_json_error_names_the_field(encoded, tmp_path, field, value, name):
    metadata = json.loads((encoded / "latents.json").read_text())
    parent = metadata
    for key in field[:-1]:
        parent = parent[key]
    parent[field[-1]] = value
    (tmp_path / "latents.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=f"latents.json: {name}"):
        latents.LatentSource(tmp_path, "train")

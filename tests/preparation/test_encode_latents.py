"""Records encoded once: what training reads of them is what it would have computed."""

import dataclasses
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
from emo_jax.data import latents, pipeline, records, transforms
from emo_jax.distributed.mesh import make_mesh
from emo_jax.media import mp4
from emo_jax.models.emo import build
from emo_jax.preparation.encode_latents import Encoder, encode_records
from emo_jax.training import losses
from emo_jax.training.encoders import check_encoders
from emo_jax.training.stages import clip_of, get_stage
from emo_jax.weights.store import save_weights
from tests.small import HEARING, small_config
from tests.steps import random_params


def hearing_config(stage="video", **data):
    config = small_config(stage)
    config.model.audio.update(HEARING)
    config.data.update(crop_scale=(0.8, 0.8), flip_prob=0.5, same_window_prob=0.0, min_reference_gap=0.2, **data)
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(networks, params, folder of the weights) of a small EMO that hears with wav2vec 2.0."""
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


def test_entries_are_what_the_encoders_say(model, encoded, talking_records):
    emo, params, _ = model
    source, made = records.open_records(talking_records, "train"), latents.LatentSource(encoded, "train")
    assert len(made) == len(source) == 5 and sorted(p.name for p in encoded.iterdir()) == [
        "latents-train.array_record-00000-of-00002",
        "latents-train.array_record-00001-of-00002",
        "latents.json",
        "plan.json",
    ]
    for name, value in made.index().items():
        np.testing.assert_array_equal(value, source.index()[name])
    record, fields = source[4], made[4]
    for name in ("boxes", "speed", "audio"):
        np.testing.assert_array_equal(fields[name], record[name])
    assert len({tuple(window) for window in fields["windows"]}) == 2
    frames = mp4.decode_video(record["video"], 7, 3)
    for number, window in enumerate(fields["windows"]):
        seen = transforms.crop(frames, tuple(window), (64, 64))
        for mirrored in (False, True):
            want = emo.encode(params, seen[:, :, ::-1] if mirrored else seen)
            np.testing.assert_allclose(made.frames(4, number, mirrored, 7, 3), want, rtol=2e-3, atol=2e-3)


def test_features_are_those_of_the_whole_recording(model, encoded):
    from emo_jax.models.audio_encoder import Recording

    emo, params, _ = model
    made, m = latents.LatentSource(encoded, "train"), emo.config.clip.audio_window
    record = made[2]
    total = len(record["boxes"])
    sound = record["audio"][None].astype(np.float32) / 32768
    hear = Recording(lambda *a: emo.hidden_states(params, *a), sound, 25.0, m, emo.audio_encoder.config)
    want = hear(-m, total + 2 * m)[0]
    assert want.std() > 0.1
    np.testing.assert_allclose(made.features(2, -m, total + 2 * m), want, rtol=2e-3, atol=5e-3)
    np.testing.assert_allclose(made.features(2, 3, 5), want[3 + m : 8 + m], rtol=2e-3, atol=5e-3)


def drawn(config, stage, count=2, batch=4):
    iterator = pipeline.make_iterator(config.data, clip_of(config, get_stage(stage)), batch_size=batch, seed=3)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("stage", ["image", "video"])
def test_batches_hold_the_frames_that_they_name(model, encoded, stage):
    config = hearing_config(stage, directory=str(encoded))
    made = latents.LatentSource(encoded, "train")
    clip = clip_of(config, get_stage(stage))
    spec, mirrors = pipeline.element_spec(clip, 4, made.layout), 0
    for batch in drawn(config, stage):
        assert {name: (value.shape, value.dtype) for name, value in batch.items()} == spec
        for i in range(4):
            sample = {name: value[i] for name, value in batch.items()}
            found = [place for place in places(made, sample["frames"])]
            assert len(found) == 1
            position, window, mirrored, start = found[0]
            mirrors += mirrored
            record = made[position]
            n, m = clip.motion_frames, clip.audio_window
            if sample["has_motion"]:
                want = made.frames(position, window, mirrored, start - n, n)
                np.testing.assert_array_equal(sample["motion"], want)
            else:
                assert not sample["motion"].any()
            np.testing.assert_array_equal(sample["audio"], made.features(position, start - m, clip.frames + 2 * m))
            speed = transforms.speed_window(record["speed"], start, clip.frames, m)
            np.testing.assert_array_equal(sample["speed"], speed)
            boxes, seen = record["boxes"][start : start + clip.frames], tuple(record["windows"][window])
            mask = transforms.union_mask(boxes, seen, (64, 64))
            np.testing.assert_array_equal(sample["mask"], mask[:, ::-1] if mirrored else mask)
            (reference,) = places(made, sample["reference"][None])
            assert reference[0] == position and reference[2] == mirrored
            assert not start <= reference[3] < start + clip.frames
    assert 0 < mirrors < 8


@pytest.mark.parametrize("windows, probability, least, most", [(3, 0.0, 0, 0), (2, 0.5, 100, 140), (1, 0.0, 240, 240)])
def test_reference_and_clip_share_a_window_as_often_as_asked(encoded, monkeypatch, windows, probability, least, most):
    made, seen = latents.LatentSource(encoded, "train"), []
    made.layout = dataclasses.replace(made.layout, windows=windows)
    frames = np.zeros((6, *made.layout.latent_shape), np.float16)
    monkeypatch.setattr(made, "frames", lambda _, window, *rest: seen.append(int(window)) or frames[: rest[-1]])
    monkeypatch.setattr(made, "features", lambda *_: None)
    fields = made[0] | {"windows": np.zeros((3, 4)) + (0, 0, 64, 64)}
    monkeypatch.setattr(latents.LatentSource, "__getitem__", lambda *_: fields)
    config = hearing_config()
    config.data.same_window_prob = probability
    sampler = pipeline.clip_sampler(made, config.data, config.clip)
    for seed in range(240):
        sampler(0, np.random.default_rng(seed))
    clips, references = seen[::2], seen[1::2]
    assert least <= sum(a == b for a, b in zip(clips, references, strict=True)) <= most
    assert set(clips) == set(references) == set(range(windows))


def test_damaged_latents_are_named(encoded, tmp_path):
    shutil.copytree(encoded, tmp_path / "copy")
    path = tmp_path / "copy" / "latents-train.array_record-00000-of-00002"
    data = bytearray(path.read_bytes())
    data[1000] ^= 255  # in the fields of its first record
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"copy, split train, record 0: .*hash mismatch.*; take it out"):
        drawn(hearing_config(directory=str(tmp_path / "copy")), "video", 20)


def places(made, frames):
    """(position, window, mirrored, start) of latents (F, h, w, c), wherever they are."""
    for position in range(len(made)):
        total = made.index()["frames"][position]
        for window in range(2):
            for mirrored in (False, True):
                every = made.frames(position, window, mirrored, 0, total)
                for start in range(total - len(frames) + 1):
                    if np.array_equal(every[start : start + len(frames)], frames):
                        yield position, window, mirrored, start


def test_the_loss_is_that_of_the_pictures(model, encoded, talking_records):
    """The same clip from records and from latents gives the same inputs of the denoising loss, but for float16."""
    emo, params, _ = model
    batch = drawn(hearing_config(directory=str(encoded)), "video", 1)[0]
    made, source = latents.LatentSource(encoded, "train"), records.open_records(talking_records, "train")
    pictures = dict(batch)
    for name in ("reference", "frames", "motion"):
        rows = []
        for value, real in zip(batch[name], batch["has_motion"], strict=True):
            if name == "motion" and not real:
                rows.append(np.zeros((len(value), 64, 64, 3), np.uint8))
                continue
            value = value[None] if name == "reference" else value
            position, window, mirrored, start = next(places(made, value))
            frames = mp4.decode_video(source[position]["video"], start, len(value))
            seen = transforms.crop(frames, tuple(made[position]["windows"][window]), (64, 64))
            seen = seen[:, :, ::-1] if mirrored else seen
            rows.append(seen[0] if name == "reference" else seen)
        pictures[name] = np.stack(rows)
    stage, key = get_stage("video"), dict.fromkeys(losses._DRAWS, jax.random.key(1))
    (x0, conditions), (want, known) = (
        losses._inputs(emo, stage, emo.config.train, params, b, key) for b in (batch, pictures)
    )
    np.testing.assert_allclose(x0, want, rtol=2e-3, atol=2e-3)
    for name, features in conditions.reference.items():
        np.testing.assert_allclose(features, known.reference[name], rtol=0.05, atol=0.05)


def test_killed_and_begun_again(model, encoded, talking_records, tmp_path, monkeypatch):
    output, real, calls = tmp_path / "out", Encoder.features, []

    def killed(self, *given):
        calls.append(given)
        if len(calls) == 4:  # in the second shard
            raise KeyboardInterrupt
        return real(self, *given)

    options = dict(windows=2, shards=2, batch=16)
    monkeypatch.setattr(Encoder, "features", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_records(talking_records, output, model[2], **options)
    assert not output.exists()
    with pytest.raises(ValueError, match="begun of other records, by another checkpoint or config"):
        encode_records(talking_records, output, model[2], **options | {"windows": 3})
    (tmp_path / ".out.partial/.latents.host-1.tmp").write_text("half a shard")  # of a process that died at once
    encode_records(talking_records, output, model[2], **options)
    assert len(calls) == 4 + 3  # of the five records the first shard's two were not encoded again
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in encoded.iterdir())
    for path in encoded.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes(), path.name
    encode_records(talking_records, output, model[2], **options)  # there already
    assert len(calls) == 7 and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_latents_that_do_not_fit_are_one_line(model, encoded, talking_records):
    def fails(message, directory=str(encoded), size=(64, 64), window=2, **data):
        config = hearing_config(directory=directory)
        config.data.update(data)
        config.clip.update(image_size=size, audio_window=window)
        with pytest.raises(ValueError, match=message):
            pipeline.make_dataset(config.data, config.clip, batch_size=1, seed=0)

    fails(r"clip.image_size is \(32, 32\), but .* holds latents of \(64, 64\)", size=(32, 32))
    fails(r"data.crop_scale is \(0.5, 0.8\), but", crop_scale=(0.5, 0.8))
    fails("data.color_jitter is 0.1, but", color_jitter=0.1)
    fails("clip.audio_window is 3, but", window=3)
    fails("no split 'test'; it has: train", split="test")
    both = ((str(encoded), "train", 1), (str(talking_records), "train", 1))
    fails("differ in form", directory="", sources=both)


def test_latents_of_other_encoders_are_refused(model, encoded):
    emo, params, _ = model
    sources, mesh = [latents.LatentSource(encoded, "train")], make_mesh(devices=jax.devices()[:1])
    flat = flatten_dict(params, sep="/")
    check_encoders(sources, emo, mesh, flat)
    kernel = "vae/encoder/conv_in/kernel"
    check_encoders(sources, emo, mesh, flat | {kernel: flat[kernel].astype("bfloat16")})
    check_encoders(sources, emo, mesh, {p: a * 2 if "vae/decoder" in p else a for p, a in flat.items()})
    with pytest.raises(ValueError, match=r"encoded by other weights than this run has \(vae/encoder/conv_in/kernel\)"):
        check_encoders(sources, emo, mesh, flat | {kernel: flat[kernel] * 1.02})
    with pytest.raises(ValueError, match="the stage vae trains on pictures"):
        check_encoders(sources, build(hearing_config("vae")), mesh, flat)
    other = hearing_config()
    other.model.audio.layers = (1,)
    with pytest.raises(ValueError, match=r"layers \(0, 2\), but model.audio has encoder 'wav2vec2' and layers \(1,\)"):
        check_encoders(sources, build(other), mesh, flat)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_from_records_to_training_by_command(model, talking_records, tmp_path, capsys):
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
    assert len(list((tmp_path / "run" / "samples").glob("0000002_*.mp4"))) == 2  # latents show people too


def test_workers_read_without_jax(encoded):
    program = f"""
import pickle, sys
from emo_jax.data import latents
source = pickle.loads({pickle.dumps(latents.LatentSource(encoded, "train"))!r})
print(source.frames(1, 0, False, 2, 3).shape, "jax" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told == "(3, 4, 4, 4) False\n"


def test_a_missing_file_is_one_line(encoded, tmp_path):
    (tmp_path / "latents.json").write_text((encoded / "latents.json").read_text())
    with pytest.raises(ValueError, match="00000-of-00002 is missing"):
        latents.LatentSource(tmp_path, "train")
    found = json.loads((encoded / "latents.json").read_text())
    found["files"] = [str(encoded / name) for name in found["files"][:1]]
    (tmp_path / "latents.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="entries, expected"):
        latents.LatentSource(tmp_path, "train")

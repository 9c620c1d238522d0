"""Checkpoints: saving and restoring, damage, killed processes, buckets."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from emo_jax.training.step import new_state
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.integrity import Damaged
from emo_jax.weights.runs import check_checkpoint, check_workdir, load_run
from emo_jax.weights.store import read_flat
from tests.small import small_config


class Place:
    """Stands in for a data iterator: its place is a number."""

    def __init__(self, at, deadly=False):
        self.at, self.deadly = at, deadly

    def get_state(self):
        if self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(self.at).encode()

    def set_state(self, state):
        self.at = int(state.decode())

    def start_prefetch(self):
        pass


def toy(value, width=3):
    """A config and the state of a tiny VAE stage full of `value`."""
    params = {"vae": {"a": {"kernel": np.full((2, width), value, np.float32), "bias": np.float32([value])}}}
    params["backbone"] = {"b": {"kernel": np.full((4, 4), -value, np.float32)}}
    config = small_config("vae")
    return config, new_state(config, params)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def shapes(state):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=place), state)


def test_state_place_and_config_come_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest is None
    for step in (1, 2, 3):
        config, state = toy(float(step))
        checkpoints.save(step, state, Place(10 * step), config)
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest == 3
    for step in (2, 3):
        place, (_, state) = Place(0), toy(float(step))
        assert_same(checkpoints.restore(step, shapes(state), place), state)
        assert place.at == 10 * step
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}

    config, flat = load_run(tmp_path)
    assert config.to_json_best_effort() == toy(3.0)[0].to_json_best_effort()
    assert set(flat) == {"vae/a/kernel", "vae/a/bias", "backbone/b/kernel"}
    np.testing.assert_array_equal(flat["vae/a/kernel"], np.full((2, 3), 3.0))
    np.testing.assert_array_equal(load_run(tmp_path, 2)[1]["backbone/b/kernel"], np.full((4, 4), -2.0))


def test_runs_hand_over_the_averaged_weights(tmp_path):
    config, state = toy(1.0)
    state = state.replace(ema={path: a + 5 for path, a in state.ema.items()})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Place(0), config)
    checkpoints.close()
    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [6.0])


def test_a_checkpoint_of_another_config_is_one_line(tmp_path):
    config, state = toy(1.0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Place(0), config)
    with pytest.raises(ValueError, match=r"/1 does not fit this config: vae/a/kernel has shape \(2, 3\)") as caught:
        checkpoints.restore(1, shapes(toy(1.0, width=5)[1]), Place(0))
    assert "\n" not in str(caught.value)
    checkpoints.close()


def test_the_newest_are_kept_and_every_so_many(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=3)
    for step in range(1, 9):
        config, state = toy(float(step))
        checkpoints.save(step, state, Place(step), config)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "6", "7", "8"}


def cut(path):
    """What a full disk or a broken copy leaves: a file's first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Inverts one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGES = {
    "no metadata": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "half the metadata": lambda folder: cut(folder / "state" / "_METADATA"),
    "half the values": lambda folder: [cut(path) for path in (folder / "state").rglob("d/*")],
    "no values": lambda folder: [shutil.rmtree(path) for path in [*(folder / "state").rglob("d")]],
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no place in the data": lambda folder: shutil.rmtree(folder / "data"),
    "a flipped bit in the values": lambda folder: flip(largest(folder / "state")),
    "a flipped bit in array_metadatas": lambda folder: flip(largest(folder / "state" / "array_metadatas")),
    "a flipped bit in _sharding": lambda folder: flip(folder / "state" / "_sharding"),
    "a flipped bit in the checksums": lambda folder: flip(folder / "checksums.json"),
    "no array_metadatas": lambda folder: shutil.rmtree(folder / "state" / "array_metadatas"),
    "no _sharding": lambda folder: (folder / "state" / "_sharding").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        config, state = toy(float(step))
        checkpoints.save(step, state, Place(step), config)
    checkpoints.close()
    DAMAGES[damage](tmp_path / "checkpoints" / "2")

    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [1.0])
    (warning,) = capsys.readouterr().err.splitlines()
    assert re.match(r"warning: .*checkpoints/2.* is damaged .*; step 1 is read", warning), warning
    with pytest.raises(ValueError, match="checkpoints/2.* is damaged"):
        load_run(tmp_path, 2)  # asked for
    check_checkpoint(tmp_path / "checkpoints" / "1")
    with pytest.raises(Damaged):
        check_checkpoint(tmp_path / "checkpoints" / "2")

    checkpoints, place = Checkpoints(tmp_path), Place(0)
    assert_same(checkpoints.restore_newest(shapes(state), place), toy(1.0)[1])
    assert place.at == 1
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(line.startswith("warning: ") for line in warnings), warnings
    assert "checkpoints/2" in warnings[0] and " is damaged" in warnings[0] and "damaged-2" in warnings[1]
    checkpoints.save(2, state, Place(2), config)  # its number is free again
    assert_same(checkpoints.restore_newest(shapes(state), place), state)
    checkpoints.close()
    assert place.at == 2 and (tmp_path / "damaged-2").is_dir()


def test_nothing_but_damaged_checkpoints_is_one_line(tmp_path, capsys):
    checkpoints, (config, state) = Checkpoints(tmp_path), toy(1.0)
    checkpoints.save(1, state, Place(0), config)
    checkpoints.close()
    cut(tmp_path / "checkpoints" / "1" / "state" / "_METADATA")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint in .* can be read") as caught:
        checkpoints.restore_newest(shapes(state), Place(0))
    assert "\n" not in str(caught.value)
    checkpoints.close()
    with pytest.raises(ValueError, match="no checkpoint can be read: .*checkpoints/1.* is damaged .*; copy one back"):
        load_run(tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()  # nothing is moved: the next run must not begin anew


def save_on_a_full_disk(workdir):
    """Saves step 2 where no file can grow beyond 200 bytes, and prints what is raised."""
    checkpoints, (config, state) = Checkpoints(workdir), toy(2.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    try:
        checkpoints.save(2, state, Place(2), config)
        for _ in range(600):  # the steps that follow
            checkpoints.check()
            time.sleep(0.1)
    except OSError as error:
        print(error, flush=True)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    checkpoints, (config, state) = Checkpoints(tmp_path), toy(1.0)
    checkpoints.save(1, state, Place(1), config)
    checkpoints.close()
    code = f"from tests.weights.test_checkpoint import save_on_a_full_disk as save; save({str(tmp_path)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (told,) = [line for line in run.stdout.splitlines() if line.startswith("a checkpoint")]
    assert run.returncode == 0 and re.match("a checkpoint could not be written to .* of step 1; make room", told), told
    checkpoints, place = Checkpoints(tmp_path), Place(0)
    assert_same(checkpoints.restore_newest(shapes(state), place), state)
    checkpoints.save(2, toy(2.0)[1], Place(2), config)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_a_step_that_failed_is_not_told_as_a_full_disk(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    def late(*_):
        try:
            lost()
        except jax.errors.JaxRuntimeError as error:
            raise TimeoutError("timed out while waiting for the others") from error

    checkpoints, (config, state) = Checkpoints(tmp_path), toy(1.0)
    monkeypatch.setattr(ocp.CheckpointManager, "save", lost)  # which waits for the state's arrays
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo AllGather"):
        checkpoints.save(1, state, Place(1), config)
    for method in ("close", "wait_until_finished"):
        with monkeypatch.context() as patch, pytest.raises(jax.errors.JaxRuntimeError, match="Gloo AllGather"):
            patch.setattr(ocp.CheckpointManager, method, late)
            checkpoints.close()
    checkpoints.close()


def test_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoints"):
        load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has no finished checkpoint"):
        load_run(tmp_path)


def save_and_die(workdir):
    """Saves step 1, and dies in the middle of saving step 2."""
    checkpoints = Checkpoints(workdir)
    for step, deadly in ((1, False), (2, True)):
        config, state = toy(float(step))
        checkpoints.save(step, state, Place(step, deadly), config)


def test_killed_during_a_save_the_older_checkpoint_is_whole(tmp_path):
    code = f"from tests.weights.test_checkpoint import save_and_die; save_and_die({str(tmp_path)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "1" in left and "2" not in left and any(name.startswith("2") for name in left)  # a part of 2, unfinished

    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [1.0])
    checkpoints, place, (config, state) = Checkpoints(tmp_path), Place(0), toy(1.0)
    assert checkpoints.latest == 1
    assert_same(checkpoints.restore(1, shapes(state), place), state)
    assert place.at == 1
    checkpoints.save(2, toy(2.0)[1], Place(2), config)
    checkpoints.close()
    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [2.0])


def test_a_workdir_that_can_be_written_is_made(tmp_path):
    for _ in range(2):
        check_workdir(tmp_path / "runs" / "new")
    assert list((tmp_path / "runs" / "new").iterdir()) == []


@pytest.mark.parametrize("path, message", [
    ("file", "--workdir .*file is a file; give a folder"),
    ("file/run", r"--workdir .*file/run cannot be written \(Not a directory\); choose another folder"),
    ("/proc/run", r"--workdir /proc/run cannot be written \(No such file or directory\)"),
    ("s3://bucket/run", "s3://bucket/run cannot be opened; expected a folder, or gs://BUCKET/PATH"),
])  # fmt: skip
def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=message) as caught:
        check_workdir(path)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("use", [check_workdir, Checkpoints, load_run, read_flat])
def test_a_bucket_without_its_library_is_one_line_and_no_folder_of_that_name(tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # an import fails
    with pytest.raises(ValueError, match="gs://bucket/run is in a bucket, .*: pip install gcsfs") as caught:
        use("gs://bucket/run")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


class Bucket(MemoryFileSystem):
    """Stands in for gcsfs' file system: in memory, and without the scheme in the names that it gives, as that."""

    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


def test_files_in_a_bucket_are_written_listed_and_checked(tmp_path, monkeypatch):
    """With orbax the whole was run against an emulator of Google's storage; this is what is ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", types.ModuleType("gcsfs"))
    bucket = Bucket(skip_instance_cache=True)
    monkeypatch.setattr(epath.backend.fsspec_backend, "fs", lambda path: bucket)
    check_workdir("gs://bucket/run")
    assert bucket.find("gs://bucket/run") == []
    folder = epath.Path("gs://bucket/run/checkpoints/1")
    for name, text in (("state/_METADATA", "{}"), ("state/d/a", "1234"), ("sizes.json", '{"state/d/a": 4}')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    check_checkpoint(folder)
    (folder / "state/d/a").write_text("12")
    with pytest.raises(Damaged, match=r"gs://bucket/run/checkpoints/1 is damaged \(state/d/a has 2 bytes of 4\)"):
        check_checkpoint(folder)
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_is_detected(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    config, state = toy(1.0)
    checkpoints.save(1, state, Place(1), config)
    checkpoints.close()
    folder = tmp_path / "checkpoints" / "1"
    check_checkpoint(folder)
    files = [path for item in ("state", "data", "config") for path in (folder / item).rglob("*") if path.is_file()]
    rng = np.random.default_rng(0)
    for path in files:
        content = path.read_bytes()
        for position in rng.integers(0, len(content), 5) if content else ():
            changed = bytearray(content)
            changed[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            with pytest.raises(Damaged, match=path.name):
                check_checkpoint(folder)
        path.write_bytes(content)
    check_checkpoint(folder)


@pytest.mark.parametrize("manifest", ["sizes.json", None])
def test_checkpoint_of_an_earlier_version_is_read(tmp_path, manifest):
    checkpoints = Checkpoints(tmp_path)
    config, state = toy(1.0)
    checkpoints.save(1, state, Place(1), config)
    checkpoints.close()
    folder = tmp_path / "checkpoints" / "1"
    entries = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").unlink()
    if manifest:
        (folder / manifest).write_text(json.dumps({path: size for path, (size, _) in entries.items()}))
    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [1.0])
    if manifest:
        cut(largest(folder / "state"))
        with pytest.raises(Damaged, match="bytes of"):
            check_checkpoint(folder)

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


class StubIterator:
    """A data iterator whose state is its position; with `kill`, saving the state kills the process."""

    def __init__(self, position, kill=False):
        self.position, self.kill = position, kill

    def get_state(self):
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(self.position).encode()

    def set_state(self, state):
        self.position = int(state.decode())

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


def test_state_data_position_and_config_are_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest is None
    for step in (1, 2, 3):
        config, state = toy(float(step))
        checkpoints.save(step, state, StubIterator(10 * step), config)
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest == 3
    for step in (2, 3):
        iterator, (_, state) = StubIterator(0), toy(float(step))
        assert_same(checkpoints.restore(step, shapes(state), iterator), state)
        assert iterator.position == 10 * step
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}

    config, flat = load_run(tmp_path)
    assert config.to_json_best_effort() == toy(3.0)[0].to_json_best_effort()
    assert set(flat) == {"vae/a/kernel", "vae/a/bias", "backbone/b/kernel"}
    np.testing.assert_array_equal(flat["vae/a/kernel"], np.full((2, 3), 3.0))
    np.testing.assert_array_equal(load_run(tmp_path, 2)[1]["backbone/b/kernel"], np.full((4, 4), -2.0))


def test_load_run_returns_the_averaged_weights(tmp_path):
    config, state = toy(1.0)
    state = state.replace(ema={path: a + 5 for path, a in state.ema.items()})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, StubIterator(0), config)
    checkpoints.close()
    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [6.0])


def test_restoring_with_another_config_raises(tmp_path):
    config, state = toy(1.0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, StubIterator(0), config)
    with pytest.raises(ValueError, match=r"vae/a/kernel .*\(2, 3\)") as caught:
        checkpoints.restore(1, shapes(toy(1.0, width=5)[1]), StubIterator(0))
    assert "\n" not in str(caught.value)
    checkpoints.close()


def test_the_newest_checkpoints_and_every_third_step_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=3)
    for step in range(1, 9):
        config, state = toy(float(step))
        checkpoints.save(step, state, StubIterator(step), config)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "6", "7", "8"}


def cut(path):
    """Truncates a file to its first half, as a full disk or an interrupted copy does."""
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
    "no state of the data": lambda folder: shutil.rmtree(folder / "data"),
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
        checkpoints.save(step, state, StubIterator(step), config)
    checkpoints.close()
    DAMAGES[damage](tmp_path / "checkpoints" / "2")

    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [1.0])
    (warning,) = capsys.readouterr().err.splitlines()
    assert re.match(r"warning: .*checkpoints/2.* is damaged .*; step 1 is read", warning), warning
    with pytest.raises(ValueError, match="checkpoints/2.* is damaged"):
        load_run(tmp_path, 2)  # named by the user
    check_checkpoint(tmp_path / "checkpoints" / "1")
    with pytest.raises(Damaged):
        check_checkpoint(tmp_path / "checkpoints" / "2")

    checkpoints, iterator = Checkpoints(tmp_path), StubIterator(0)
    assert_same(checkpoints.restore_newest(shapes(state), iterator), toy(1.0)[1])
    assert iterator.position == 1
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(line.startswith("warning: ") for line in warnings), warnings
    assert "checkpoints/2" in warnings[0] and " is damaged" in warnings[0] and "damaged-2" in warnings[1]
    checkpoints.save(2, state, StubIterator(2), config)  # the number can be used again
    assert_same(checkpoints.restore_newest(shapes(state), iterator), state)
    checkpoints.close()
    assert iterator.position == 2 and (tmp_path / "damaged-2").is_dir()


def test_only_damaged_checkpoints_raise_and_are_not_moved(tmp_path, capsys):
    checkpoints, (config, state) = Checkpoints(tmp_path), toy(1.0)
    checkpoints.save(1, state, StubIterator(0), config)
    checkpoints.close()
    cut(tmp_path / "checkpoints" / "1" / "state" / "_METADATA")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
        checkpoints.restore_newest(shapes(state), StubIterator(0))
    assert "\n" not in str(caught.value)
    checkpoints.close()
    with pytest.raises(ValueError, match="checkpoints/1 .*_METADATA"):
        load_run(tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()  # nothing is moved: the next run must not start from step 0


def save_on_a_full_disk(workdir):
    """Saves step 2 where no file can grow beyond 200 bytes, and prints what is raised."""
    checkpoints, (config, state) = Checkpoints(workdir), toy(2.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    try:
        checkpoints.save(2, state, StubIterator(2), config)
        for _ in range(600):  # the steps that follow
            checkpoints.check()
            time.sleep(0.1)
    except OSError as error:
        print(error, flush=True)


def test_full_disk_raises_and_keeps_the_earlier_checkpoint(tmp_path):
    checkpoints, (config, state) = Checkpoints(tmp_path), toy(1.0)
    checkpoints.save(1, state, StubIterator(1), config)
    checkpoints.close()
    code = f"from tests.weights.test_checkpoint import save_on_a_full_disk as save; save({str(tmp_path)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("a checkpoint")]
    assert run.returncode == 0 and str(tmp_path) in line and "step 1" in line, line
    checkpoints, iterator = Checkpoints(tmp_path), StubIterator(0)
    assert_same(checkpoints.restore_newest(shapes(state), iterator), state)
    checkpoints.save(2, toy(2.0)[1], StubIterator(2), config)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_failed_step_is_not_reported_as_a_full_disk(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    def late(*_):
        try:
            lost()
        except jax.errors.JaxRuntimeError as error:
            raise TimeoutError("timed out while waiting for the others") from error

    checkpoints, (config, state) = Checkpoints(tmp_path), toy(1.0)
    monkeypatch.setattr(ocp.CheckpointManager, "save", lost)  # this is where the state's arrays are waited for
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo AllGather"):
        checkpoints.save(1, state, StubIterator(1), config)
    for method in ("close", "wait_until_finished"):
        with monkeypatch.context() as patch, pytest.raises(jax.errors.JaxRuntimeError, match="Gloo AllGather"):
            patch.setattr(ocp.CheckpointManager, method, late)
            checkpoints.close()
    checkpoints.close()


def test_folder_without_a_checkpoint_raises(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="checkpoints"):
        load_run(tmp_path)


def save_and_die(workdir):
    """Saves step 1, and dies in the middle of saving step 2."""
    checkpoints = Checkpoints(workdir)
    for step, kill in ((1, False), (2, True)):
        config, state = toy(float(step))
        checkpoints.save(step, state, StubIterator(step, kill), config)


def test_kill_during_a_save_keeps_the_earlier_checkpoint(tmp_path):
    code = f"from tests.weights.test_checkpoint import save_and_die; save_and_die({str(tmp_path)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert "1" in left and "2" not in left and any(name.startswith("2") for name in left)  # an unfinished part of 2

    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [1.0])
    checkpoints, iterator, (config, state) = Checkpoints(tmp_path), StubIterator(0), toy(1.0)
    assert checkpoints.latest == 1
    assert_same(checkpoints.restore(1, shapes(state), iterator), state)
    assert iterator.position == 1
    checkpoints.save(2, toy(2.0)[1], StubIterator(2), config)
    checkpoints.close()
    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [2.0])


def test_missing_workdir_is_created(tmp_path):
    for _ in range(2):
        check_workdir(tmp_path / "runs" / "new")
    assert list((tmp_path / "runs" / "new").iterdir()) == []


@pytest.mark.parametrize("path, field", [
    ("file", "--workdir .*file"),
    ("file/run", "--workdir .*file/run"),
    ("/proc/run", "--workdir /proc/run"),
    ("s3://bucket/run", "s3://bucket/run.*gs://"),
])  # fmt: skip
def test_unwritable_workdir_raises(tmp_path, monkeypatch, path, field):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=field) as caught:
        check_workdir(path)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("use", [check_workdir, Checkpoints, load_run, read_flat])
def test_bucket_without_its_library_raises_and_creates_no_folder(tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # an import fails
    with pytest.raises(ValueError, match="gs://bucket/run.*gcsfs") as caught:
        use("gs://bucket/run")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


class Bucket(MemoryFileSystem):
    """Replaces gcsfs' file system: in memory, and as that one without the scheme in the names that it returns."""

    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


def test_files_in_a_bucket_are_written_listed_and_checked(tmp_path, monkeypatch):
    """Tests this package's access to buckets; orbax's was tried by hand with an emulator of Google's storage."""
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
    with pytest.raises(Damaged, match="state/d/a"):
        check_checkpoint(folder)
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_is_detected(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    config, state = toy(1.0)
    checkpoints.save(1, state, StubIterator(1), config)
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
    checkpoints.save(1, state, StubIterator(1), config)
    checkpoints.close()
    folder = tmp_path / "checkpoints" / "1"
    entries = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").unlink()
    if manifest:
        (folder / manifest).write_text(json.dumps({path: size for path, (size, _) in entries.items()}))
    np.testing.assert_array_equal(load_run(tmp_path)[1]["vae/a/bias"], [1.0])
    if manifest:
        cut(largest(folder / "state"))
        with pytest.raises(Damaged, match="state/"):
            check_checkpoint(folder)

"""A training run's averaged weights in a folder."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from emo_jax.cli import main as cli
from emo_jax.models.emo import build
from emo_jax.training.step import new_state
from emo_jax.weights import runs
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.export import export
from emo_jax.weights.store import load_weights, save_weights
from tests.small import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose averaged weights differ from the others by 1: (folder, averaged weights)."""
    config = small_config("speed")
    state = new_state(config, build(config).init(jax.random.key(0)))
    state = state.replace(ema=jax.tree.map(lambda a: a + jnp.ones_like(a), state.trained))
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, iter(grain.MapDataset.range(4).to_iter_dataset()), config)
    checkpoints.close()
    return folder, flatten_dict(state.params(ema=True), sep="/")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 1e-3), pytest.param("float32", 0, marks=pytest.mark.slow)]
)
def test_export_writes_the_averaged_weights(run, tmp_path, capsys, dtype, tolerance):
    folder, weights = run
    output = tmp_path / "weights"
    for _ in range(2):  # an earlier export is replaced
        assert cli.main(["export", "--workdir", str(folder), "--output", str(output), "--dtype", dtype]) == 0
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    assert capsys.readouterr().out == f"{output}: {size:.1f} MB, {dtype}\n" * 2
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1  # as the user's other files
    config, flat = load_weights(output)
    assert json.loads(config.to_json()) == json.loads(small_config("speed").to_json())
    assert flat.keys() == weights.keys()
    for path, array in flat.items():
        assert array.shape == np.shape(weights[path])
        np.testing.assert_allclose(array, weights[path], rtol=tolerance, atol=tolerance / 100, err_msg=path)


def test_invalid_outputs_are_rejected(run, tmp_path, capsys):
    folder = str(run[0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    cases = {
        "full": "mine",
        "file": "file",
        "file/x": "file/x",
        "/proc/x": "/proc/x",
    }
    for output, field in cases.items():
        assert cli.main(["export", "--workdir", folder, "--output", str(tmp_path / output)]) == 2
        assert field in capsys.readouterr().err
    assert cli.main(["export", "--workdir", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_values_outside_the_range_of_float16_raise(run, tmp_path, monkeypatch):

    for value in (1e6, np.nan):
        monkeypatch.setattr(runs, "load_run", lambda folder, v=value: (small_config(), {"a": np.float32([v])}))
        with pytest.raises(ValueError, match="^a .*float16"):
            export(run[0], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_in_the_tensors_is_detected(tmp_path):
    config, rng = small_config(), np.random.default_rng(0)
    flat = {"a/kernel": rng.normal(size=(40, 30)).astype(np.float32), "b": np.float32(2.0)}
    save_weights(tmp_path, config, flat, np.float32)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    np.testing.assert_array_equal(load_weights(tmp_path)[1]["a/kernel"], flat["a/kernel"])
    for position in rng.integers(0, len(content), 60):
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="model.safetensors"):
            load_weights(tmp_path)


def test_file_without_a_checksum_is_read(tmp_path):
    save_weights(tmp_path, small_config(), {"a": np.ones(3)})
    save_file({"a": np.ones(3, np.float16)}, tmp_path / "model.safetensors")  # as earlier versions wrote it
    assert load_weights(tmp_path)[1]["a"].shape == (3,)

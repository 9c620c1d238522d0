"""A training run's averaged weights in a folder."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emo_jax.cli import main as cli
from emo_jax.models.emo import build
from emo_jax.training.step import new_state
from emo_jax.weights import runs
from emo_jax.weights.checkpoint import Checkpoints
from emo_jax.weights.export import export
from emo_jax.weights.store import load_weights
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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 0)])
def test_export(run, tmp_path, capsys, dtype, tolerance):
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


def test_bad_exports(run, tmp_path, capsys):
    folder = str(run[0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    cases = {
        "full": "holds other files (mine)",
        "file": "is a file",
        "file/x": "cannot be written",
        "/proc/x": "cannot be written",
    }
    for output, told in cases.items():
        assert cli.main(["export", "--workdir", folder, "--output", str(tmp_path / output)]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["export", "--workdir", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert "neither a preset" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_what_half_precision_cannot_hold_is_refused(run, tmp_path, monkeypatch):

    for value in (1e6, np.nan):
        monkeypatch.setattr(runs, "load_run", lambda folder, v=value: (small_config(), {"a": np.float32([v])}))
        with pytest.raises(ValueError, match="a holds .* float16"):
            export(run[0], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []

"""Pretraining of the audio projector on the lips of records."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emo_jax.data import records
from emo_jax.synthetic.world import make_record
from emo_jax.training import lip_pretraining as lips
from emo_jax.weights.store import load_model, read_flat


@pytest.fixture(scope="module")
def voices_dir(tmp_path_factory):
    """Records of four drawn people, whose mouths follow their voices."""
    directory = tmp_path_factory.mktemp("voices") / "records"
    made = [make_record(seed, seconds=2.0, size=16) for seed in range(4)]
    records.write_records(directory, {"train": lambda: made, "validation": lambda: made[:2]}, progress=False)
    return directory


@pytest.mark.slow
def test_the_projector_learns_the_lips_and_nothing_else_changes(weights_dir, voices_dir, tmp_path, capsys):
    given = ["--checkpoint", str(weights_dir), "--data", str(voices_dir), "-o", str(tmp_path / "lips")]
    lips.main([*given, "--steps", "60", "--batch", "4"])
    assert "correlation with the lips of held-out records: opening" in capsys.readouterr().out
    (_, before), (_, after) = read_flat(weights_dir), read_flat(tmp_path / "lips")
    changed = {path for path in before if not np.allclose(before[path], after[path], atol=1e-3)}
    assert set(before) == set(after) and changed
    assert all(path.startswith("audio_projector/") for path in changed)

    voices = lips.read_voices([str(voices_dir)], "train")
    reader = lips.LipReader(*load_model(weights_dir))
    untrained = lips.correlations(reader, reader.init() | {"kernel": np.ones_like(reader.init()["kernel"])}, voices)
    trained = lips.correlations(reader, lips.pretrain(reader, voices, 60, 4), voices)
    assert trained["opening"] > 0.6 > untrained["opening"] + 0.3
    assert flatten_dict(reader.params)  # unchanged: the networks of later calls


def test_records_without_measures_of_the_mouth_are_refused(record_dir):
    with pytest.raises(ValueError, match="no record in the split train"):
        lips.read_voices([str(record_dir)], "train")

"""The bundled weights keep lips, identity and seams of two held-out people."""

import json

import pytest

from emo_jax.cli import main as cli


@pytest.mark.slow
def test_bundled_weights_keep_lips_identity_and_seams(tmp_path):
    arguments = ["--identities", "2", "--seconds", "3", "--only", "lips", "identity", "seams"]
    assert cli.main(["evaluate", *arguments, "--output", str(tmp_path / "out")]) == 0
    rows = {row["property"]: row for row in json.loads((tmp_path / "out/report.json").read_text())["rows"]}
    assert rows["lips"]["value"] >= 0.8 and rows["lips"]["control_value"] < 0.5
    assert rows["identity"]["value"] >= 0.95
    assert rows["seams"]["value"] <= 1.35 < rows["seams"]["control_value"]

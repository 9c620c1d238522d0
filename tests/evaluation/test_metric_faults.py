"""Each fault is seen by the measure that should see it, and by no other beyond its spread (docs/benchmarks.md)."""

import numpy as np
import pytest

from benchmarks import metric_faults


@pytest.mark.slow
def test_each_fault_is_seen_by_its_measure_alone(face_models, tmp_path):
    metric_faults.write_videos(tmp_path, [1, 2, 3])
    spread, changes = metric_faults.differences(tmp_path)
    assert metric_faults.failures(spread, changes) == []


def test_failures_name_fault_and_measure():
    spread = {"sync_offset": 1.0, "repeated": 0.1}
    seen = {"sync_offset": np.array([8.0, 9]), "repeated": np.array([0.0, 0.05])}
    assert metric_faults.failures(spread, {"sound late": seen}) == []
    seen = {"sync_offset": np.array([8.0, 1]), "repeated": np.array([0.0, 0.2])}
    assert metric_faults.failures(spread, {"sound late": seen}) == [
        "sound late is not seen by sync_offset", "sound late is seen by repeated"
    ]  # fmt: skip

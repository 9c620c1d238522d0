"""The benchmarks of `emo bench`, on the smallest sizes."""

import functools
import json

import jax
import numpy as np
import pytest
from emo_jax.configs import base

from emo_jax.benchmarks import attention, generate, pipeline, program
from emo_jax.cli import main as cli
from emo_jax.data import records
from emo_jax.planning.plan import Program
from tests.small import small_config


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_pipeline_reports_clips_per_cpu_second(record_dir, tmp_path, capsys):
    output = tmp_path / "pipeline.json"
    options = ["--config", "configs/tiny.py:video", "--config.clip.image_size=(64,64)", "--batches", "2"]
    assert cli.main(["bench", "pipeline", "--data", str(record_dir), *options, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["benchmark"] == "pipeline" and found["device"]
    assert [row["quantity"] for row in found["rows"]] == ["clips per CPU second"]
    assert found["rows"][0]["value"] > 0
    assert "clips per CPU second" in capsys.readouterr().out


def test_pod_needs_the_clips_of_its_useful_flops():
    clip = base.get_config("video").clip
    needs = [pipeline.Pod(passes=passes).clips_per_second(clip) for passes in (3, 4)]
    # (17 frames encoded + passes * (12 frames + 5 references)) TFLOP a clip; 128 chips at 40 % of 459 TFLOP/s
    assert needs[0] == pytest.approx(128 * 183.6 / (17 * 1.117 + 3 * (12 * 1.287 + 5 * 0.754)))
    assert [round(need) for need in needs] == [307, 245]


def test_grainy_records_have_the_size_of_filmed_ones(tmp_path):
    pipeline.write_grainy_records(str(tmp_path / "records"), 64, 25.0, count=1, seconds=1.0)
    record = records.open_records(tmp_path / "records", "train")[0]
    assert len(record["boxes"]) == 25 and len(record["video"]) / 25 > 200


def test_attention_is_compared_with_float32():
    (row,) = attention.measure(rounds=1, shapes={"small": ((1, 2), 16, 8, 4)})
    assert row["shape"] == "small" and row["kernel"] == "XLA" and row["scores"] is False
    assert all(0 < row[name] < 0.02 for name in ("value", "dq", "dk", "dv"))  # bfloat16 has 8 bits
    assert row["ms"] > 0 and row["ratio"] == pytest.approx(row["ms"] / row["float32 ms"])


def test_step_that_donates_its_state_is_timed_against_its_plan(monkeypatch):
    step = jax.jit(lambda state, batch: (state + batch.sum(), 0.0), donate_argnums=0)
    shapes = jax.ShapeDtypeStruct((2, 3), np.float32), jax.ShapeDtypeStruct((4,), np.uint8)
    plan = dict(flops=1e9, peak=2e9, roofline=dict(overlapped=dict(seconds=1e-9, mfu=0.5)))
    monkeypatch.setattr(program, "count_program", lambda *args: ({}, Program(functools.partial(step.lower, *shapes))))
    monkeypatch.setattr(program, "compile_program", lambda *args: plan)
    (row,) = program.measure(small_config("video"), "step", rounds=2)
    assert row["program"] == "step of video" and row["planned GB"] == 2.0
    assert row["TFLOP/s"] == pytest.approx(1e-3 / row["seconds"])
    assert row["time / roofline"] == pytest.approx(row["seconds"] / 1e-9)
    assert row["MFU"] == pytest.approx(0.5 / row["time / roofline"])


@pytest.mark.slow
def test_denoising_step_is_timed_against_its_plan():
    (row,) = program.measure(small_config("speed"), "denoise", rounds=1)
    assert row["program"] == "denoise" and row["seconds"] > 0 and row["planned GB"] > 0
    assert np.isfinite(row["TFLOP/s"])


@pytest.mark.parametrize("option", [["pipeline", "--batches", "0"], ["attention", "--rounds", "0"]])
def test_counts_below_one_are_rejected(option, capsys):
    assert cli.main(["bench", *option]) == 2
    assert option[1] in capsys.readouterr().err


@pytest.mark.slow
def test_parts_of_a_generation_are_measured_in_turn(weights_dir, tmp_path, capsys):
    output = tmp_path / "table.json"
    given = ["bench", "generate", "--checkpoint", str(weights_dir), "--seconds", "0.4", "--rounds", "2"]
    assert cli.main([*given, "--against.steps=1", "-o", str(output)]) == 0
    rows = {row["part"]: row for row in json.loads(output.read_text())["rows"]}
    assert set(rows) == {*generate.PARTS, "frames a second", "speed", "peak memory"}
    for name in ("A", "B"):
        assert 0 < rows["denoising step"][name] <= rows["clip"][name] < rows["video"][name]
        assert rows["first frames"][name] <= rows["video"][name]
        assert rows["frames a second"][name] == pytest.approx(0.4 * 25 / rows["video"][name])
    assert rows["clip"]["B / A"] > 0 and rows["peak memory"]["A"] > 0.1
    capsys.readouterr()
    assert cli.main([*given, "--check", str(output)]) == 0
    assert "A / earlier" in capsys.readouterr().out


def test_a_table_of_another_benchmark_is_refused(tmp_path, capsys):
    table = tmp_path / "table.json"
    table.write_text(json.dumps(dict(benchmark="attention", rows=[])))
    for path, named in ((table, "emo bench generate"), (tmp_path / "none.json", "cannot be read")):
        assert cli.main(["bench", "generate", "--check", str(path)]) == 2
        assert named in capsys.readouterr().err

"""Metrics on stdout and in TensorBoard's file, and the limit on skipped steps."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from emo_jax.training import metrics as metrics_lib
from emo_jax.training.metrics import MetricsWriter, SkipLimit


def events(directory):
    """Returns {(tag, step): value} of the scalars in a folder's TensorBoard file, and its images."""
    (path,) = directory.glob("events.out.tfevents.*")
    data, scalars, images = path.read_bytes(), {}, []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            if value.HasField("image"):
                images.append((value.tag, event.step, value.image.width, value.image.height))
            else:
                scalars[value.tag, event.step] = value.simple_value
    return scalars, images


def test_means_since_the_last_line(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, first=10, total=20)
    for step, loss in ((11, 1.0), (12, 3.0), (13, 8.0)):
        writer.add({"loss": jnp.float32(loss), "rate": jnp.float32(0.5)}, waited=0.25)
        if step != 11:
            writer.write(step)
    writer.image("strip", np.zeros((4, 6, 3), np.uint8), 13)
    writer.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" step_seconds")[0] for line in lines] == [
        "step 12/20 loss 2 rate 0.5", "step 13/20 loss 8 rate 0.5"
    ]  # fmt: skip
    scalars, images = events(tmp_path)
    assert (scalars["loss", 12], scalars["loss", 13], scalars["rate", 13]) == (2.0, 8.0, 0.5)
    assert scalars["data_wait_seconds", 12] == pytest.approx(0.25)
    assert {tag for tag, _ in scalars} == {"loss", "rate", "step_seconds", "data_wait_seconds", "skipped"}
    assert images == [("strip", 13, 6, 4)]


def test_mean_over_the_samples_that_have_a_value(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, first=0, total=3)
    for step, pair in enumerate(((0.5, 0.25), (0.0, 0.0), (0.0, 0.0)), 1):
        writer.add({"loss_t0": jnp.float32(pair)}, waited=0)
        if step > 1:
            writer.write(step)
    writer.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 2/3 loss_t0 2 step_seconds ") and "loss_t0" not in second
    assert events(tmp_path)[0]["loss_t0", 2] == 2


def test_pauses_and_compilation_do_not_count_as_step_time(tmp_path, monkeypatch):
    clock = iter((0.0, 300.0, 305.0, 309.0, 312.0, 315.0, 317.0, 317.0))
    monkeypatch.setattr(metrics_lib.time, "perf_counter", lambda: next(clock))
    writer = MetricsWriter(tmp_path, first=0, total=4)
    writer.add({"loss": 1.0}, waited=0)  # compiled in 300 s
    with writer.paused():
        pass
    for _ in range(2):
        writer.add({"loss": 1.0}, waited=0)
    writer.write(3)
    writer.add({"loss": 1.0}, waited=0)
    writer.write(4)
    writer.close()
    scalars, _ = events(tmp_path)
    assert scalars["step_seconds", 3] == 4 and scalars["step_seconds", 4] == 2


class FakeDevice:
    """A device that reports its memory."""

    device_kind = "NVIDIA H100 80GB HBM3"

    def __init__(self, gib):
        self._stats = gib and {"bytes_in_use": gib * 2**30, "peak_bytes_in_use": 2 * gib * 2**30}

    def memory_stats(self):
        return self._stats


def test_scalars_that_only_tensorboard_shows(tmp_path, capsys, monkeypatch):
    clock = iter((0.0, 9.0, 13.0, 13.0))
    monkeypatch.setattr(metrics_lib.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(jax, "devices", lambda: [FakeDevice(3), FakeDevice(5), FakeDevice(None), FakeDevice(4)])
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:3])
    writer = MetricsWriter(tmp_path, first=0, total=2, flops=989e12)
    for _ in range(2):
        writer.add({"grad_norm": jnp.float32(5), "grad_norm/backbone": jnp.float32(3)}, waited=0)
    writer.write(2)
    writer.close()
    assert capsys.readouterr().out.startswith("step 2/2 grad_norm 5 step_seconds 4 ")
    scalars, _ = events(tmp_path)
    assert scalars["grad_norm/backbone", 2] == 3
    assert scalars["speed/tflops", 2] == pytest.approx(989 / 4)
    assert scalars["speed/mfu", 2] == pytest.approx(1 / 4 / 4)  # the work of one device for 1 s took four devices 4 s
    assert (scalars["memory/gib", 2], scalars["memory/peak_gib", 2]) == (5, 10)


def test_no_utilisation_on_a_device_of_unknown_peak(tmp_path):
    writer = MetricsWriter(tmp_path, first=0, total=1, flops=1e12)
    writer.add({"loss": jnp.float32(1)}, waited=0)
    writer.write(1)
    writer.close()
    tags = {tag for tag, _ in events(tmp_path)[0]}
    assert "speed/tflops" in tags and "speed/mfu" not in tags and "memory/gib" not in tags


def step_metrics(loss, skipped=0.0):
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(loss), "skipped": jnp.float32(skipped)}


def test_skipped_steps_are_left_out_of_the_means(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, first=0, total=5)
    for step, (loss, skipped) in enumerate(((1, 0), (np.nan, 1), (3, 0), (np.inf, 1), (np.nan, 1)), 1):
        writer.add(step_metrics(loss, skipped), waited=0)
        if step in (4, 5):
            writer.write(step)
    writer.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" step_seconds")[0] for line in lines] == [
        "step 4/5 grad_norm 2 loss 2", "step 5/5 grad_norm nan loss nan"
    ]  # fmt: skip
    assert [" skipped 2 left" in lines[0], " skipped 1 left" in lines[1]] == [True, True]
    scalars, _ = events(tmp_path)
    assert (scalars["skipped", 4], scalars["skipped", 5]) == (2, 1)


def test_consecutive_skips_end_the_run():
    limit = SkipLimit(3)
    for step, skipped in enumerate((1, 1, 0, 1, 1), 1):
        limit.add(step, step_metrics(np.nan if skipped else 1, skipped))
    limit.add(6, step_metrics(np.nan, 1))
    with pytest.raises(FloatingPointError, match=r"step 6: .* 3 .*loss nan") as error:
        limit.add(7, step_metrics(1))
    assert "\n" not in str(error.value) and "step 3" in str(error.value)  # whose weights are kept
    limit = SkipLimit(1)
    limit.add(1, step_metrics(1, 1))
    with pytest.raises(FloatingPointError, match="step 1"):  # the last step of a run
        limit.check()

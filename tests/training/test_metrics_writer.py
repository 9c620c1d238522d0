import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from emo_jax.training.metrics import MetricsWriter


def events(directory):
    """{(tag, step): value} of the scalars in a folder's TensorBoard file, and the tags of its images."""
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


def test_means_since_the_last_line_are_told_and_written(tmp_path, capsys):
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
    assert {tag for tag, _ in scalars} == {"loss", "rate", "step_seconds", "data_wait_seconds"}
    assert images == [("strip", 13, 6, 4)]

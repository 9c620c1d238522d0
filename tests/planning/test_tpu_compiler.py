"""Small programs compiled for TPUs without a TPU (extra: tpu)."""

import importlib.util
import math
import os
import subprocess
import sys

import pytest

on_tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")


def run(program):
    """Runs a Python program and returns what it prints."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


DEVICES = """
from emo_jax.planning.topologies import find_devices
for topology, slices in (("v4:2x2x1", 1), ("v5e:2x4", 2), ("v5p:2x2x1", 1), ("v6e:1x1", 1)):
    devices = find_devices(topology, slices)
    print(len(devices), devices[0].device_kind, len({getattr(device, "slice_index", None) for device in devices}))
"""


@pytest.mark.slow
@on_tpu
def test_topology_has_a_device_per_chip():
    assert run(DEVICES).splitlines() == ["4 TPU v4 1", "16 TPU v5 lite 2", "4 TPU v5 1", "1 TPU v6 lite 1"]


LONG = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from emo_jax.ops.attention import attention, traced_for
from emo_jax.planning.topologies import find_devices
here = SingleDeviceSharding(find_devices("v5e:1x1")[0])
given = [jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=here)] * 3
with traced_for("tpu"):
    loss = lambda *a: (attention(*a).astype(jnp.float32) ** 2).sum()
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=here).trace(*given).lower()
print(lowered.compile().as_text())
"""


@pytest.mark.slow
@on_tpu
@pytest.mark.parametrize("shape, scores", [((1, 2, 4096, 8, 40), "4096,4096"), ((1, 4096, 16, 8, 40), "16,16]")])
def test_attention_scores_are_not_materialised(shape, scores):
    """Neither pass stores the scores of spatial attention, or of temporal attention at every position."""
    compiled = run(LONG.replace("SHAPE", repr(shape)))
    assert compiled.count("tpu_custom_call") >= 2 and "bf16[" in compiled and scores not in compiled


GRADIENTS = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from emo_jax.distributed.mesh import make_mesh, traced_for_mesh
from emo_jax.models.placement import gathered, parameter_spec
from emo_jax.ops.attention import traced_for
from emo_jax.planning.topologies import find_devices
from emo_jax.planning.roofline import collectives
path, shape, data, fsdp, topology, slices = ARGUMENTS
devices = list(find_devices(topology, slices))
mesh = make_mesh(data=data, fsdp=fsdp, dcn_data=slices, devices=devices)
kernel, x = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((16384, shape[0]), jnp.bfloat16)
split = NamedSharding(mesh, parameter_spec(path, shape, fsdp, 1))
def loss(kernel, x):
    kernel = gathered({path: kernel}, jnp.bfloat16)[path]
    return (jax.nn.gelu(x @ kernel).astype(jnp.float32) ** 2).mean()
given = split, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
step = jax.jit(traced_for_mesh(mesh, jax.grad(loss)), in_shardings=given, out_shardings=split)
with traced_for("tpu"):
    lowered = step.lower(kernel, x)
for one in collectives(lowered.compile().as_text()):
    print(one.kind, one.dtype, one.size, one.group, *["network"] * one.network)
"""


@pytest.mark.slow
@on_tpu
@pytest.mark.parametrize("path, shape, data, fsdp, topology, slices", [
    ("dense/kernel", (1024, 4096), 2, 4, "v5e:2x4", 1),
    ("ff/net_0/proj/kernel", (1280, 10240), 16, 16, "v5e:16x16", 1),
    ("dense/kernel", (1024, 4096), 2, 8, "v5e:2x4", 2),
])  # fmt: skip
def test_gradients_are_scattered_over_fsdp_before_they_are_summed_over_data(path, shape, data, fsdp, topology, slices):
    """Only that sum crosses the network between slices."""
    size, network = math.prod(shape) * 2, " network" * (slices > 1)
    lines = run(GRADIENTS.replace("ARGUMENTS", repr((path, shape, data, fsdp, topology, slices))))
    assert sorted(lines.splitlines()) == [
        f"all-gather bf16 {size} {fsdp}", f"all-reduce bf16 {size // fsdp} {data}{network}",
        f"reduce-scatter bf16 {size // fsdp} {fsdp}",
    ]  # fmt: skip


RESNET = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from emo_jax.distributed.mesh import make_mesh, traced_for_mesh
from emo_jax.models.placement import gathered, parameter_spec
from emo_jax.models.layers import ResnetBlock
from emo_jax.models.unet import UNetConfig, part_of_level
from emo_jax.ops.attention import traced_for
from emo_jax.planning.topologies import find_devices
from emo_jax.planning.roofline import collectives
mesh = make_mesh(data=16, fsdp=16, devices=list(find_devices("v5e:16x16")))
config = UNetConfig((1280,), (True,), 1, 8, 32, 4, remat="blocks", dtype=jnp.bfloat16)
x, temb = (jax.ShapeDtypeStruct((256, *shape, 1280), jnp.bfloat16) for shape in ((5, 16, 16), (1,)))
params = jax.eval_shape(ResnetBlock(1280).init, jax.random.key(0), x, temb)
def place(keys, a):
    return NamedSharding(mesh, parameter_spec("/".join(key.key for key in keys[1:]), a.shape, 16))
split, samples = jax.tree_util.tree_map_with_path(place, params), NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
def both(params, x, temb, cotangent):
    block = part_of_level(ResnetBlock, config)(1280, dtype=jnp.bfloat16)
    return jax.vjp(block.apply, params, x, temb)[1](cotangent)
given = split, samples, samples, samples
step = jax.jit(traced_for_mesh(mesh, both), in_shardings=given, out_shardings=(split, samples, samples))
with traced_for("tpu"):
    lowered = step.lower(params, x, temb, x)
for one in collectives(lowered.compile().as_text()):
    print(one.kind, one.size)
"""


@pytest.mark.slow
@on_tpu
def test_gradients_are_scattered_even_if_a_share_is_not_a_multiple_of_a_tile():
    rows = [line.split() for line in run(RESNET).splitlines()]
    shares = 2 * 9 * 1280 * 1280 * 2 / 16  # two convolutions in bfloat16
    kinds = "reduce-scatter", "all-reduce"
    scattered, summed = (sum(int(size) for kind, size in rows if kind == name) for name in kinds)
    assert scattered >= shares and summed < 1.2 * shares, rows  # the shares are summed over data


SUMS = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from emo_jax.distributed.mesh import make_mesh, traced_for_mesh
from emo_jax.models.placement import gathered, parameter_spec
from emo_jax.planning.compile_stats import SLICES_EFFORT, _compile
from emo_jax.ops.attention import traced_for
from emo_jax.planning.topologies import find_devices
mesh = make_mesh(data=2, fsdp=8, dcn_data=2, devices=list(find_devices("v5e:2x4", 2)))
kernels = {f"{i}/kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32) for i in range(520)}
split = {path: NamedSharding(mesh, parameter_spec(path, a.shape, 8, 1)) for path, a in kernels.items()}
def loss(kernels, x):
    for path, kernel in kernels.items():
        x = jax.nn.gelu(x @ gathered({path: kernel}, jnp.bfloat16)[path])
    return (x.astype(jnp.float32) ** 2).mean()
given = split, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
step = jax.jit(traced_for_mesh(mesh, jax.grad(loss)), in_shardings=given, out_shardings=split)
with traced_for("tpu"):
    lowered = step.lower(kernels, jax.ShapeDtypeStruct((16384, 256), jnp.bfloat16))
stats = _compile(lowered, "tpu", SLICES_EFFORT)
print(*(row["count"] for row in stats["collectives"] if row["network"]))
"""


@pytest.mark.slow
@on_tpu
def test_more_sums_between_slices_than_a_chip_has_flags():
    """With EFFORT instead of SLICES_EFFORT the compiler rejects 520."""
    assert run(SUMS).split() == ["520"]

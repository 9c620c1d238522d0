"""Placement on meshes: eight CPU devices compute what one does, with parameters and activations split."""

import dataclasses
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emo_jax.configs import base
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, PartitionSpec

from emo_jax.diffusion.guidance import PASSES
from emo_jax.distributed import mesh as mesh_lib
from emo_jax.distributed.activations import constrain
from emo_jax.distributed.mesh import AXES, _device_grid, check_mesh, local_rows, make_mesh, place_batch
from emo_jax.generation import guided
from emo_jax.generation.guided import mesh_for
from emo_jax.models import lora
from emo_jax.models.emo import build
from emo_jax.models.parts import LAYERS, layer_of
from emo_jax.models.placement import parameter_spec, state_sharding
from tests.distributed.layouts import LAYOUTS, report
from tests.small import WAV2VEC2, WHISPER, as_echomimic, as_hallo, small_config
from tests.steps import training_config

STEP_LAYOUTS = ["data 8", "fsdp 8", "data 2 fsdp 4", "data 2 fsdp 2 frame 2", "data 4 tensor 2"]


def check_steps(stage, names):
    results = report(f"steps({stage!r}, {names!r})")
    assert set(results) == set(names)
    for name, result in results.items():
        assert result["losses"] < 1e-4 and result["gradients"] < 1e-3, (name, result)
        assert result["parameters"] < 0.02 and result["average"] < 0.02 and result["frozen"] == 0, (name, result)
        fsdp, tensor = (LAYOUTS[name].get(axis, 1) for axis in ("fsdp", "tensor"))
        for share in (result["share"], result["optimizer_share"]):
            assert 1 / fsdp / tensor <= share < 1 / fsdp + (0.35 if fsdp > 1 else 1e-9), (name, result)
            assert tensor == 1 or share < 0.9
        check_collectives(name, result, clips=stage in ("video", "speed"))
        gathers = result["all-gather"]
        assert max(gathers, default=0) <= max(result["largest"], result["bytes"] / 10), (name, max(gathers))


def check_collectives(name, result, clips=True):
    """Checks that split parameters are gathered one by one, gradients are summed and clips are transposed."""
    gathers, sums = result["all-gather"], result["all-reduce"] + result["reduce-scatter"]
    assert sums, name
    if LAYOUTS[name].get("fsdp", 1) > 1:
        assert len(gathers) > 5, name
    if name == "data 8":
        assert not gathers
    if clips and LAYOUTS[name].get("frame", 1) > 1:
        assert result["all-to-all"], name


@pytest.mark.slow
def test_a_unet_level_on_all_axes_equals_one_device():
    names = ["data 2 fsdp 2 frame 2", "fsdp 2 frame 2 tensor 2"]
    results = report(f"level({names!r})")
    for name in names:
        assert results[name]["losses"] < 1e-4 and results[name]["gradients"] < 1e-4, (name, results[name])
        check_collectives(name, results[name])


@pytest.mark.slow
def test_each_device_convolves_only_its_frames():
    results = report("resnet(4, ['data 2 frame 4', 'data 2 fsdp 2 frame 2'])")
    assert len(results) == 2
    for name, result in results.items():
        assert result["share"] < 0.15 and result["error"] < 1e-5, (name, result)  # an eighth, plus small operations


@pytest.mark.slow
def test_gradients_of_layers_on_vectors_are_not_summed_over_fsdp():
    (result,) = report("vectors(['fsdp 8'])").values()
    assert result["gradients"] < 1e-5
    kernels = {path: size for path, size in result["bytes"].items() if path.endswith("kernel")}
    convolution_size = sum(size for path, size in kernels.items() if "/conv" in path)
    assert sum(result["all-reduce"]) < convolution_size + 0.25 * (sum(kernels.values()) - convolution_size), result


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "image", "video", "speed"])
def test_eight_devices_equal_one_device(stage):
    check_steps(stage, STEP_LAYOUTS)


@pytest.mark.slow
@pytest.mark.parametrize("relative", ["", "hallo", "echomimic"])
def test_a_video_from_eight_devices_equals_that_of_one(relative):
    result = report(f"sampling({relative!r})")
    assert result["mesh"] == dict(data=2, fsdp=1, frame=4, tensor=1) and result["programs"] == 1
    assert result["steps"] <= 1 and result["spread"] > 20  # uint8 values


# ---- parameters


def flat_shapes(config):
    return flatten_dict(build(config).abstract_params(), sep="/")


@pytest.mark.parametrize("config", [
    small_config(), as_hallo(small_config()), as_echomimic(small_config(audio=WHISPER))
])  # fmt: skip
def test_every_parameter_has_a_partition_spec(config):
    paths, split = flat_shapes(config), 0
    for path, leaf in paths.items():
        spec = parameter_spec(path, leaf.shape, 8)
        if spec != PartitionSpec():
            split += leaf.size
            axis = spec.index("fsdp")
            assert leaf.shape[axis] % 8 == 0
            by_inputs = path.endswith("ff/net_0/proj/kernel") and axis == leaf.ndim - 2
            assert by_inputs or leaf.shape[axis] == max(s for s in leaf.shape if s % 8 == 0)
        assert parameter_spec(path, leaf.shape, 1) == PartitionSpec()
    assert split > 0.88 * sum(leaf.size for leaf in paths.values())
    with pytest.raises(ValueError, match="backbone/unknown/weight"):
        parameter_spec("backbone/unknown/weight", (8, 8), 8)


BLOCK = "backbone/down_blocks_0/attentions_0/transformer_blocks_0"
AUDIO_BLOCK = "backbone/down_blocks_0/audio_modules_0/transformer_blocks_0"


@pytest.mark.parametrize("path, shape, spec", [
    (f"{BLOCK}/attn1/to_q/kernel", (64, 64), ("fsdp", "tensor")),
    (f"{BLOCK}/audio_attn/to_v/kernel", (768, 64), ("fsdp", "tensor")),
    (f"{AUDIO_BLOCK}/attn2_1/to_v/kernel", (768, 64), ("fsdp", "tensor")),
    (f"{AUDIO_BLOCK}/attn2_1/to_out_0/kernel", (64, 64), ("tensor", "fsdp")),
    (f"{BLOCK}/attn2/to_out_0/kernel", (64, 64), ("tensor", "fsdp")),
    (f"{BLOCK}/attn2/to_out_0/bias", (64,), ()),
    (f"{BLOCK}/ff/net_0/proj/kernel", (64, 512), ("fsdp", "tensor")),
    (f"{BLOCK}/ff/net_2/kernel", (256, 64), ("tensor", "fsdp")),
    ("reference_net/mid_block/resnets_0/conv1/kernel", (3, 3, 64, 64), (None, None, "fsdp", "tensor")),
    ("reference_net/mid_block/resnets_0/conv2/kernel", (3, 3, 64, 64), (None, None, "tensor", "fsdp")),
    ("vae/encoder/mid_block/attentions_0/attn/to_q/kernel", (64, 64), (None, "fsdp")),
])  # fmt: skip
def test_tensor_axis_splits_heads_and_inner_features(path, shape, spec):
    assert parameter_spec(path, shape, 4, 2) == PartitionSpec(*spec)


def test_a_module_splits_its_parameters_by_their_paths_inside_it():
    """A module that gathers its parameters knows only their paths inside itself."""
    paths = flat_shapes(small_config("speed"))
    within = {path: re.match(r".*?/(resnets|attentions|motion_modules)_\d+/", path) for path in paths}
    within = {path: path[found.end() :] for path, found in within.items() if found and not path.startswith("vae/")}
    assert any("conv1" in path for path in within.values()) and any("audio_attn" in path for path in within.values())
    for path, relative in within.items():
        shape = paths[path].shape
        assert parameter_spec(relative, shape, 4, 2) == parameter_spec(path, shape, 4, 2), path


@pytest.mark.slow
def test_every_row_of_layers_is_used():
    config = small_config("speed", audio=WAV2VEC2)
    paths = flat_shapes(config)
    adapters = lora.new_adapters({path: kernel for path, kernel in paths.items() if lora.has_adapter(path)}, 4, seed=0)
    assert {layer_of(path) for path in [*paths, *adapters]} == set(LAYERS)


class _Mesh:
    local_devices = range(8)

    def __init__(self, processes=1, **shape):
        self.shape = dict(data=1, fsdp=1, frame=1, tensor=1) | shape
        sizes = tuple(self.shape.values())
        count = math.prod(sizes)
        self.devices = np.array([_Device(i, i * processes // count, None) for i in range(count)]).reshape(sizes)


def abstract_mesh(**sizes):
    sizes = dict(data=1, fsdp=1, frame=1, tensor=1) | sizes
    return jax.sharding.AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 4)


def test_axes_that_do_not_divide_parameters_raise():
    state = flat_shapes(small_config())
    with pytest.raises(ValueError, match=r"mesh\.tensor is 3.* 16, .*to_q"):
        parameter_spec(f"{BLOCK}/attn1/to_q/kernel", (16, 16), 1, 3)
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 7") as caught:
        state_sharding(abstract_mesh(fsdp=7), state)
    assert "\n" not in str(caught.value)


# ---- meshes and batches


def test_meshes_that_do_not_fit_the_devices_raise():
    (device,) = jax.devices()[:1]
    assert dict(make_mesh(devices=[device]).shape) == dict(data=1, fsdp=1, frame=1, tensor=1)
    for axes in (dict(data=3), dict(data=2, fsdp=4), dict(data=1, tensor=2), dict(fsdp=-1), dict(frame=0)):
        with pytest.raises(ValueError, match="train.mesh") as caught:
            make_mesh(**axes, devices=[device])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="dcn_data is 2 and data 1"):
        make_mesh(dcn_data=2, devices=[device])


@pytest.mark.parametrize("changes, message", [
    (dict(tensor=3), r"mesh\.tensor is 3.*model\.unet\.heads, 2"),
    (dict(frame=3), r"mesh\.frame is 3.*clip\.frames, 4"),
    (dict(data=2, fsdp=2), r"train\.batch_size is 2; .* 4, .*= 2 x 2 x 1"),
    (dict(train=dict(accumulate=0)), "train.accumulate is 0"),
    (dict(train=dict(batch_size=0)), "train.batch_size is 0"),
    (dict(frame=4, tensor=2, processes=2), "frame x tensor = 8 .*several processes"),
])  # fmt: skip
def test_a_mesh_that_does_not_divide_the_config_raises(changes, message):
    config = training_config("video")
    config.train.update(changes.get("train", {}))
    changes = {name: value for name, value in changes.items() if name != "train"}
    with pytest.raises(ValueError, match=message) as caught:
        check_mesh(_Mesh(**changes), config)
    assert "\n" not in str(caught.value)
    if "processes" in changes:
        check_mesh(_Mesh(**changes | dict(processes=1)), training_config("video"))


def test_a_batch_that_does_not_divide_over_the_devices_raises():
    batch = {"speed": np.zeros((6, 2))}
    with pytest.raises(ValueError, match="6 .* 8"):
        place_batch(_Mesh(), batch)
    with pytest.raises(ValueError, match="6 .* 4"):
        place_batch(_Mesh(tensor=2), batch)
    with pytest.raises(ValueError, match="frame x tensor = 16 .* 8"):
        place_batch(_Mesh(tensor=2, frame=8), batch)


@dataclasses.dataclass(frozen=True)
class _Device:
    id: int
    process_index: int
    slice_index: int | None
    platform: str = "other"
    device_kind: str = "other"


@pytest.mark.parametrize("sizes", [(4, 2, 1, 1), (2, 2, 2, 1)])
def test_each_process_reads_the_rows_of_its_devices(monkeypatch, sizes):
    owners = [0, 0, 1, 1, 1, 1, 0, 0]  # as create_device_mesh arranges the processes of some TPU slices
    grid = np.array([_Device(i, process, None) for i, process in enumerate(owners)]).reshape(sizes)
    mesh = types.SimpleNamespace(devices=grid, shape=dict(zip(AXES, sizes, strict=True)))
    shares = []
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(local_rows(mesh, 16))
    assert shares == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("slices", [True, False])
def test_slices_or_processes_are_joined_along_data_only(slices):
    devices = [_Device(i, i // 4, i // 4 if slices else None) for i in (3, 7, 1, 5, 2, 6, 0, 4)]
    grid = _device_grid((4, 2, 1, 1), 2, devices)
    assert grid.shape == (4, 2, 1, 1)
    assert [{d.process_index for d in row.ravel()} for row in grid] == [{0}, {0}, {1}, {1}]


def test_slices_without_dcn_data_raise():
    devices = [_Device(i, i // 4, i // 4) for i in range(8)]
    with pytest.raises(ValueError, match="dcn_data is 1 and data 1; expected dcn_data 2"):
        _device_grid((1, 8, 1, 1), 1, devices)


def test_devices_that_share_samples_belong_to_one_process(monkeypatch):
    devices = [_Device(i, i // 4, None) for i in range(8)]
    along = np.array(devices).reshape(4, 1, 2, 1)[:, :, ::-1]  # kept: each process holds the devices that share samples
    across = np.array(devices).reshape(2, 4).T.reshape(4, 1, 2, 1)
    for grid in (along, across):
        monkeypatch.setattr(mesh_lib.mesh_utils, "create_device_mesh", lambda *_, grid=grid, **options: grid)
        found = _device_grid((4, 1, 2, 1), 1, devices)
        assert [len({d.process_index for d in row.ravel()}) for row in found] == [1] * 4
        assert (found is along) == (grid is along)


@pytest.mark.slow
def test_fsdp_axis_that_divides_too_little_raises():
    state = {"trained": flat_shapes(base.get_config("video"))}
    for fsdp in (8, 64):
        placed = state_sharding(abstract_mesh(fsdp=fsdp), state)
        held = sum(
            math.prod(placed["trained"][path].shard_shape(leaf.shape)) for path, leaf in state["trained"].items()
        )
        assert held < 1.1 / fsdp * sum(leaf.size for leaf in state["trained"].values())
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 256"):
        state_sharding(abstract_mesh(fsdp=256), state)


# ---- activations


def test_constrain_without_a_mesh_returns_its_input():
    x = jnp.ones((2, 4, 4, 4, 8))
    assert constrain(x, "spatial") is x
    assert "sharding" not in str(jax.make_jaxpr(lambda a: constrain(a, "temporal"))(x))


@pytest.mark.parametrize("place, frames, spec", [
    ("spatial", 4, (("data", "fsdp"), "frame", None, None, None)),
    ("spatial", 3, (("data", "fsdp"), None, "frame", None, None)),
    ("temporal", 4, (("data", "fsdp"), None, "frame", None, None)),
    ("shared", 4, (("data", "fsdp"), None, None, None, None)),
])  # fmt: skip
def test_constrain_splits_the_first_axis_that_divides(place, frames, spec):
    with jax.sharding.use_abstract_mesh(abstract_mesh(data=2, fsdp=2, frame=2)):
        program = jax.make_jaxpr(lambda a: constrain(a, place))(np.ones((4, frames, 2, 3, 5)))
    (equation,) = program.eqns
    assert equation.params["sharding"].spec == PartitionSpec(*spec)


@pytest.mark.parametrize("mode, frames, count, shape", [
    ("joint", 12, 8, (2, 4)), ("separate", 12, 8, (3, 2)), ("none", 12, 8, (1, 6)), ("joint", 8, 2, (2, 1)),
])  # fmt: skip
def test_mesh_for_uses_the_devices_that_divide_passes_and_frames(monkeypatch, mode, frames, count, shape):
    calls = []
    monkeypatch.setattr(guided, "make_mesh", lambda **options: calls.append(options))
    mesh_for(mode, frames, list(range(count)))
    (options,) = calls
    assert (options["data"], options["frame"]) == shape and len(options["devices"]) == shape[0] * shape[1]
    assert len(PASSES[mode]) % shape[0] == 0 and mesh_for(mode, frames, [0]) is None

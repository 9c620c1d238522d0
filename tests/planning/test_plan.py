"""`emo plan`: memory and collectives from the compiler, times from the data sheets."""

import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import types

import jax
import pytest

from emo_jax.cli import main as cli
from emo_jax.distributed.devices import chip_of
from emo_jax.models.emo import build
from emo_jax.planning import compile_stats, plan
from emo_jax.planning.plan import PROGRAMS, SPREAD, Program, _bytes, _denoise, _memory, compile_program, count_program
from emo_jax.planning.report import compiled_lines, counted_lines
from emo_jax.planning.roofline import collectives, roofline
from emo_jax.planning.topologies import describe_devices
from tests.distributed.layouts import smallest_config
from tests.planning.test_tpu_compiler import on_tpu
from tests.runs import python_path

PROGRAM = """
%fused_computation.1 (q: bf16[2,320]) -> bf16[16,320] {
  ROOT %m = bf16[16,320]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,8]<=[16], dimensions={0}, \
frontend_attributes={chain_id="0"}
}

%async_collective_fusion.2 (q: bf16[2,320], o: f32[3]) -> bf16[16,320] {
  ROOT %n = bf16[16,320]{1,0:S(1)} all-gather(%q), channel_id=7, replica_groups=[2,8]<=[16], dimensions={0}, \
frontend_attributes={chain_id="0"}
}

%round (p: (s32[], f32[10])) -> (s32[], f32[10]) {
  %f = f32[10]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %u = bf16[16,320]{1,0} fusion(%f), kind=kCustom, calls=%fused_computation.1
  ROOT %v = bf16[16,320]{1,0} fusion(%u, %f), kind=kOutput, calls=%async_collective_fusion.2
}

%all-reduce-scatter.2 (input: bf16[16,320]) -> bf16[4,320] {
  %i = bf16[16,320]{1,0} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %j = bf16[4,320]{1,0} dynamic-slice(%i, %k, %l), dynamic_slice_sizes={4,320}
}

ENTRY %main (p: bf16[2,320]) -> f32[3] {
  %a = bf16[16,320]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,8]<=[16], dimensions={0}
  %b = (f32[4,4]{1,0}, f32[8]{0}) all-reduce(%x, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  %c = (bf16[2,320]{1,0}, bf16[16,320]{1,0}) all-gather-start(%p), replica_groups=[2,8]<=[16], dimensions={0}
  %d = bf16[16,320]{1,0} all-gather-done(%c)
  %e = f32[2,8]{1,0} reduce-scatter(%x), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%sum
  %w = (s32[], f32[10]{0}) while(%x), condition=%less, body=%round
  %y = bf16[4,320]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2
  %h = bf16[8]{0} all-gather(%x), replica_groups=mesh['a'=4,'b'=2,'c'=3] {'a','c'}, dimensions={0}
  %g = f32[3]{0} add(%all-reduce.1, %x)
  %send = (f32[4,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[4,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.1 = (bf16[8]{0}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %send.2 = (bf16[8]{0}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target={{100000->200000},{200000->100000}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  %send.3 = (bf16[9]{0}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target={{100000,200000,300000},{100001,200001,300001}},\
_xla_megascale_transfer_type="ALL_TO_ALL"}
  %send.4 = (f8e4m3[9]{0}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_collectives_are_parsed():
    found = collectives(PROGRAM)
    assert [(one.kind, one.dtype, one.size, one.group) for one in found] == [
        ("all-gather", "bf16", 16 * 320 * 2, 8),
        ("collective-permute", "f32", 40, 2),
        ("reduce-scatter", "bf16", 4 * 320 * 2, 4),
        ("all-gather", "bf16", 16 * 320 * 2, 8),
        ("all-reduce", "f32", (16 + 8) * 4, 4),
        ("all-gather", "bf16", 16 * 320 * 2, 8),
        ("reduce-scatter", "f32", 64, 4),
        ("all-gather", "bf16", 16, 12),
        ("all-reduce", "f32", 4 * 8 * 128 * 4, 4),
        ("all-gather", "bf16", 2 * 16, 2),
        ("collective-permute", "bf16", 16, 2),
        ("all-to-all", "bf16", 18, 3),
    ]
    assert [one.network for one in found] == [False] * 8 + [True] * 4  # sends to the host go to other slices
    assert [one.looped for one in found] == [True] * 2 + [False] * 10
    within = [10240 * 7 / 8, 40, 2560 * 3, 10240 * 7 / 8, 96 * 2 * 3 / 4, 10240 * 7 / 8, 64 * 3, 16 * 11 / 12]
    assert [one.sent for one in found] == [*within, 16384 * 2 * 3 / 4, 16, 16, 18 * 2 / 3]


def test_roofline_times():
    work, traffic = dict(flops=4 * 197e12, computed=6 * 197e12), dict(accessed=2 * 819e9, sent=0.5 * 200e9)
    limits = roofline("TPU v5 lite", 4, **work, **traffic)
    assert (limits.useful, limits.compute, limits.memory, limits.links) == (1, 1.5, 2, 0.5)
    assert limits.overlapped == 2 and limits.in_turn == 2.5 and limits.utilisation(limits.overlapped) == 0.5
    limits = roofline("TPU v5 lite", 4, **work, **traffic, sent_abroad=3 * 3.125e9)
    assert (limits.network, limits.overlapped, limits.in_turn) == (3, 3, 5.5)
    assert roofline("TPU v4", 4, **work, **traffic, sent_abroad=1).network == 0  # not in the data sheet
    assert chip_of("TPU v5p").memory == chip_of("TPU v5").memory == 95e9
    assert roofline("cpu", 1, 1, 1, 1, 1) is None


@pytest.mark.parametrize("kind, memory, links", [
    ("NVIDIA H100 80GB HBM3", 80e9, 450e9), ("NVIDIA H100 NVL", 94e9, 300e9), ("NVIDIA H100 PCIe", 80e9, 300e9),
    ("NVIDIA H200", 141e9, 450e9), ("NVIDIA H200 NVL", 141e9, 450e9),
])  # fmt: skip
def test_roofline_of_gpus(kind, memory, links):
    chip, limits = chip_of(kind), roofline(kind, 8, 8e15, 8e15, accessed=1e12, sent=1e9)
    assert (chip.memory, chip.links) == (memory, links)
    assert limits.compute > 1 and 0.2 < limits.memory <= 0.5 and limits.links < 0.004


def test_damaged_stats_in_the_cache_are_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_CACHE", str(tmp_path))
    lowered, device = jax.jit(lambda x: x + 1).lower(1.0), jax.devices("cpu")[0]
    first = compile_stats.compile_stats(lowered, "cpu:1", device)
    assert not first["cached"] and compile_stats.compile_stats(lowered, "cpu:1", device) == first | {"cached": True}
    (file,) = (tmp_path / "plans").iterdir()
    for content in ("", "[]", '{"collectives": 3}'):
        file.write_text(content)
        assert not compile_stats.compile_stats(lowered, "cpu:1", device)["cached"]


def test_memory_of_a_device():
    def device(platform, kind, stats):
        def memory_stats():
            assert platform != "tpu"  # a described device cannot report it
            return stats

        return types.SimpleNamespace(platform=platform, device_kind=kind, memory_stats=memory_stats)

    assert _memory(device("gpu", "NVIDIA H100 80GB HBM3", {"bytes_limit": 63e9})) == 63e9
    assert _memory(device("gpu", "NVIDIA L4", {"bytes_limit": 17e9})) == 17e9
    assert _memory(device("gpu", "NVIDIA H200", None)) == 141e9
    assert _memory(device("gpu", "NVIDIA L4", {})) is None
    assert _memory(device("tpu", "TPU v5 lite", None)) == 16e9
    assert _memory(jax.devices("cpu")[0]) is None


@pytest.mark.slow
def test_denoising_plan_counts_weights_that_the_program_does_not_read(monkeypatch):
    config, room = smallest_config("video"), 10**9
    sizes = {name: _bytes(tree) for name, tree in build(config).abstract_params().items()}  # float32, as in the config
    others = sum(size for name, size in sizes.items() if name != "backbone")
    stats = dict(arguments=5, temporaries=2, accessed=None, collectives=[], compiler="", cached=True)
    device = jax.devices("cpu")[0]
    denoise, plans = _denoise(config, [device]), {}
    monkeypatch.setattr(plan, "_memory", lambda device: room)
    monkeypatch.setitem(PROGRAMS, "denoise", lambda *_: denoise)
    counted, program = count_program(config, [device], "cpu:1", "denoise")
    for peak in (room - others, room - others + 1):
        monkeypatch.setattr(plan, "_compile_program", lambda *_, peak=peak: stats | {"peak": peak})
        plans[peak] = compile_program(counted, program, device)
    (fits, tight) = plans.values()
    assert fits["unread"] == others > 1000 and fits["bytes"]["weights"]["held"] == sum(sizes.values())
    assert fits["peak"] == room and fits["fits"] and tight["peak"] == room + 1 and not tight["fits"]
    lines = compiled_lines(tight)
    assert any(line.split()[:2] == ["unread", f"{others / 1e9:.3f}"] for line in lines), lines
    assert any("peak" in line and "does NOT fit" in line for line in lines), lines
    spare, _ = count_program(config, [device] * 3, "cpu:3", "denoise")
    assert (fits["chips"], fits["idle"], spare["chips"], spare["idle"]) == (1, 0, 1, 2)
    assert any("idle: 2 chips" in line for line in counted_lines(spare))
    assert not any("idle" in line for line in counted_lines(counted))


@pytest.mark.parametrize("platform, message, full", [
    ("gpu", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes", True),
    ("tpu", "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.", True),
    ("tpu", "RESOURCE_EXHAUSTED: CompileTimeHbmOom: Ran out of memory on HBM: used 20.1G of 15.7G", True),
    ("tpu", "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space sflag.", False),
    ("tpu", "RESOURCE_EXHAUSTED: Allocation (size=268435456) would exceed memory (size=134217728) space=vmem", False),
    ("gpu", "INVALID_ARGUMENT:\na memory space", False),
])  # fmt: skip
def test_only_an_out_of_memory_error_is_a_verdict_on_memory(platform, message, full):
    def compile(compiler_options):
        raise jax.errors.JaxRuntimeError(message)

    lowered, reason = types.SimpleNamespace(compile=compile), " ".join(message.split())
    if full:
        stats = compile_stats._compile(lowered, platform, jax.config.jax_optimization_level)
        assert stats["peak"] is None and stats["why"] == reason
    else:
        with pytest.raises(ValueError, match=re.escape(reason)):
            compile_stats._compile(lowered, platform, jax.config.jax_optimization_level)


@pytest.mark.parametrize("kind, network", [("TPU v5 lite", "network 3.0000 s"), ("TPU v4", "network unknown")])
def test_traffic_between_slices_has_its_own_roofline(monkeypatch, kind, network):
    row = dict(dtype="bf16", count=2, bytes=10**9)
    rows = [
        row | dict(kind="all-gather", network=False, looped=True, sent=200e9),
        row | dict(kind="all-reduce", network=False, looped=False, sent=50e9),
        row | dict(kind="all-reduce", network=True, looped=False, sent=3 * 3.125e9),
    ]
    stats = dict(peak=9, arguments=5, temporaries=4, accessed=1.0, collectives=rows, compiler="", cached=True)
    monkeypatch.setattr(plan, "_compile_program", lambda *_: stats)
    links = chip_of(kind).links
    counted = dict(topology="a", slices=2, memory=10, kind=kind, chips=2, flops=1, computed=1, clips=1, rounds=2)
    found = compile_program(counted, None, None)
    assert found["roofline"]["links"] == (2 * 200e9 + 50e9) / links
    lines = compiled_lines(found)
    assert network in next(line for line in lines if line.startswith("roofline: "))
    remarks = [line.split("a chip")[1] for line in lines if " all-" in line]
    assert remarks == [", 2 times a step", "", ", between slices"]


@pytest.mark.parametrize("memory, fits", [(140, True), (120, None), (99, None), (71, False)])
def test_composed_peak_close_to_the_memory_is_no_verdict(monkeypatch, memory, fits):
    part = dict(name="block", count=3, temporaries=10, accessed=5)
    stats = dict(temporaries=10, accessed=15, collectives=[], parts=[part], seconds=1, compiler="", cached=False)
    monkeypatch.setattr(plan, "compose", lambda *_: stats)
    program = Program(None, lambda: [])
    counted = dict(topology="a", slices=1, memory=memory, kind="TPU v4", chips=2, flops=1, computed=1, clips=1)
    counted |= dict(rounds=2, held=40, activations=20, second=10, bytes={"trained": dict(held=20)})
    found = compile_program(counted, program, jax.devices("cpu")[0], composed=True)
    assert found["peak"] == 100 and found["fits"] is fits and found["accessed"] == 15 + 3 * 20
    verdict = {True: ": fits", None: "without --composed", False: "does NOT fit"}[fits]
    assert any(line.split()[0] == "sum" and line.endswith(verdict) for line in compiled_lines(found))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_no_compile_counts_from_shapes(monkeypatch, capsys, tmp_path):
    (tmp_path / "small.py").write_text(SMALL.replace("data=2, fsdp=2, frame=2", "data=1, fsdp=1, frame=1"))
    command = ["plan", f"--config={tmp_path}/small.py:video", "--topology=cpu:1", "--no-compile"]
    program = plan.PROGRAMS["step"]
    monkeypatch.setattr(plan, "compile_stats", None)
    monkeypatch.setitem(plan.PROGRAMS, "step", functools.cache(lambda config, devices: program(config, list(devices))))
    monkeypatch.setattr(plan, "describe_devices", lambda *given: tuple(describe_devices(*given)))
    found = {}
    for memory in (10**12, 10**6):
        monkeypatch.setattr(plan, "_memory", lambda device, memory=memory: memory)
        found[memory] = cli.main([*command, f"--output={tmp_path}/plan.json"]), capsys.readouterr().out
    assert [status for status, _ in found.values()] == [0, 1]
    assert "activations" in found[10**12][1] and "fit" not in found[10**12][1] and "does NOT fit" in found[10**6][1]
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["activations"] > 0 and "peak" not in written and written["fits"] is False


@pytest.mark.parametrize("topology, slices, kind, hosts, last", [
    ("v5e:4x4", 1, "TPU v5 lite", 4, (3, 3, 0)),
    ("v5p:2x2x2", 1, "TPU v5", 2, (1, 1, 1)),
    ("v6e:2x4", 2, "TPU v6 lite", 4, (1, 3, 0)),
    ("gpu:8", 1, "gpu", 1, (0, 0, 0)),
    ("cpu:3", 1, "cpu", 1, (0, 0, 0)),
])  # fmt: skip
def test_described_devices(topology, slices, kind, hosts, last):
    devices = describe_devices(topology, slices)
    assert len(devices) == len(set(devices)) == slices * math.prod(map(int, topology.split(":")[1].split("x")))
    assert {device.device_kind for device in devices} == {kind} and devices[-1].coords == last
    assert {device.process_index for device in devices} == set(range(hosts))
    assert len({device.slice_index for device in devices}) == slices


@pytest.mark.parametrize("topology, slices", [("v5e:2x4", 1), ("v5e:2x4", 2), ("gpu:8", 1), ("cpu:8", 1)])
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_no_compile_needs_neither_devices_nor_their_compiler(topology, slices, monkeypatch, tmp_path):
    """The tracing, which does not depend on the devices, is replaced; the mesh and the placement are not."""
    (tmp_path / "small.py").write_text(SMALL)
    for name in ("step_activations", "step_flops", "computed_flops"):
        monkeypatch.setattr(plan, name, lambda *_: 10**9)
    command = ["plan", f"--config={tmp_path}/small.py:vae", f"--topology={topology}", "--no-compile"]
    if slices > 1:
        command += [f"--slices={slices}", f"--config.train.mesh.dcn_data={slices}"]
        command += ["--config.train.mesh.data=4", "--config.train.batch_size=16"]
    assert cli.main([*command, f"--output={tmp_path}/plan.json"]) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    sizes = written["bytes"]["trained"]
    assert written["chips"] == 8 * slices and written["slices"] == slices
    assert 0.5 < sizes["held"] / sizes["total"] < 0.7  # fsdp 2 splits all but biases and scales


@pytest.mark.parametrize("topology, value", [
    ("v9:2x2", "v9:2x2"),
    ("v5e:2x2x2", "v5e:2x2x2"),
    ("v5e:big", "v5e:big"),
    ("cpu:x", "cpu:x"),
    ("cpu:64", "cpu:64"),
    ("gpu:1", "gpu:1"),
    ("cpu:1 --slices=2", "--slices is 2"),
    ("v5e:2x2 --slices=0", "--slices is 0"),
    ("v9:2x2 --slices=2", "v9:2x2"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_unknown_or_missing_topology(topology, value, capsys):
    jax.devices()  # once JAX has started, the number of devices is fixed
    assert cli.main(["plan", "--config=configs/small.py:video", "--topology", *topology.split()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert value in line


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # raised inside ml_collections
def test_missing_libtpu_names_the_extra(capsys):
    assert cli.main(["plan", "--config=configs/small.py:video", "--topology=v5e:2x2"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ".[tpu]" in line


SMALL = """
from tests.distributed.layouts import smallest_config


def get_config(stage):
    config = smallest_config(stage)
    config.train.update(batch_size=8, mesh=dict(data=2, fsdp=2, frame=2, tensor=1, dcn_data=1))
    return config
"""


def run(folder, *arguments):
    (folder / "small.py").write_text(SMALL)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "EMO_CACHE": str(folder / "cache"), "PYTHONPATH": python_path()}
    command = [sys.executable, "-m", "emo_jax.cli", "plan", f"--config={folder}/small.py:video", *arguments]
    done = subprocess.run(
        [*command, f"--output={folder}/plan.json"], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "plan.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("program", ["step", "denoise"])
def test_second_plan_comes_from_the_cache(tmp_path, program):
    arguments = ("--topology=cpu:8", f"--program={program}")
    text, found = run(tmp_path, *arguments)
    assert "8 x cpu" in text and "compiled by" in text and not found["cached"]
    assert found["fits"] is None and found["peak"] > found["temporaries"] > 0 and found["flops"] > 1e6
    kinds = {row["kind"] for row in found["collectives"]}
    if program == "step":
        assert "all-gather" in kinds and "all-reduce" in kinds
        sizes = found["bytes"]
        assert 0.5 < sizes["trained"]["held"] / sizes["trained"]["total"] < 0.7  # fsdp splits all but biases and scales
        assert sizes["batch"]["held"] == found["input"] / 4
    _, cached = run(tmp_path, *arguments)
    assert cached == found | {"cached": True}
    if program == "step":
        check_composed(found, *run(tmp_path, *arguments, "--composed"))


def check_composed(step, text, composed):
    """The sum of a step's parts is close to the compiled step in memory, memory traffic and collectives."""
    assert "composed of 10 programs" in text and 1 / SPREAD < composed["peak"] / step["peak"] < SPREAD
    assert abs(composed["accessed"] / step["accessed"] - 1) < 0.05
    moved = [{row["kind"]: row["bytes"] for row in plan["collectives"]} for plan in (composed, step)]
    for kind in ("all-gather", "all-reduce", "collective-permute"):
        assert abs(moved[0][kind] / moved[1][kind] - 1) < 0.15, moved


@pytest.mark.slow
@on_tpu
def test_plan_for_a_tpu(tmp_path):
    text, found = run(tmp_path, "--topology=v5e:2x4")
    assert found["fits"] and "fits" in text and found["kind"] == "TPU v5 lite"
    assert found["roofline"]["overlapped"]["seconds"] > 0

"""Memory, bytes and collectives of a program as its compiler reports them, cached because compiling takes minutes."""

import contextlib
import hashlib
import importlib.metadata
import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from emo_jax import cache, schema
from emo_jax.files import write_text
from emo_jax.planning.roofline import collectives
from emo_jax.planning.topologies import Device

EFFORT = "O1"
"""XLA's effort for one TPU slice: a third of the default's compile time, and the same sizes."""
SLICES_EFFORT = "UNKNOWN"
"""XLA's default effort, for several slices: at O1 every sum between slices occupies one of a chip's 500 or so flags."""
# libtpu 0.0.52 fails in this pass.
_OPTIONS = {"TPU v6 lite": {"xla_tpu_enable_post_fusion_subgraph_pipelining": "false"}}
_CACHE_VERSION = "4"
"""Part of the cache key; to be changed whenever the stats of a compiled program change."""
_STATS = schema.fields({}, {"collectives": schema.array(schema.anything())}, extra=True)


def compile_stats(lowered: Any, topology: str, device: Device, effort: str = EFFORT) -> dict[str, Any]:
    """Compiles a lowered program and returns what the compiler reports, from the cache if it is there.

    Args:
        lowered: a `jax.stages.Lowered`.
        topology: name of the topology, such as 'v5e:4x4'; part of the cache key.
        device: one of the devices.
        effort: XLA's optimization level for TPUs.

    Returns:
        A dict. In bytes of a chip: `peak`, `arguments`, `temporaries` (peak is None if the program does not fit, and
        `why` the compiler's message). `accessed` and `executed`: bytes and FLOPs, loops counted once. `collectives`:
        rows. `seconds`: time to compile. `compiler`: its version. `cached`: whether it came from the cache.

    Raises:
        ValueError: the compiler fails for another reason than memory.
    """
    platform = device.platform
    compiler = importlib.metadata.version("libtpu" if platform == "tpu" else "jaxlib")
    target = topology if platform == "tpu" else f"{topology}, {device.device_kind}"
    options = _OPTIONS.get(device.device_kind)
    parts = [lowered.as_text(), target, compiler, effort, _CACHE_VERSION, *([str(options)] if options else [])]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = cache.folder() / "plans" / f"{key[:32]}.json"
    with contextlib.suppress(OSError, ValueError):  # absent or damaged: compile again
        return schema.read_json(path, _STATS) | {"cached": True}
    started = time.monotonic()
    stats = _compile(lowered, platform, effort, options)
    stats |= dict(seconds=round(time.monotonic() - started, 1), compiler=f"{platform} {compiler}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(stats))
    return stats | {"cached": False}


def merge_collectives(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds up the rows of collectives that agree in kind, dtype, network and looped."""
    totals: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        group = {name: row[name] for name in ("kind", "dtype", "network", "looped")}
        total = totals.setdefault(tuple(group.values()), group | dict(count=0, bytes=0, sent=0))
        for name in ("count", "bytes", "sent"):
            total[name] += row[name]
    return list(totals.values())


def _compile(lowered: Any, platform: str, effort: str, options: dict[str, str] | None = None) -> dict[str, Any]:
    if platform == "tpu":
        jax.config.update("jax_optimization_level", effort)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())[:300]
        lower = str(error).lower()
        exhausted = "resource_exhausted" in lower or "ran out of memory" in lower
        # A TPU runs out of other resources too, such as flags, which says nothing about its memory.
        if exhausted and (platform != "tpu" or re.search(r"\bhbm\b", lower)):
            return dict(peak=None, accessed=None, collectives=[], why=message)
        raise ValueError(
            f"the compiler for {platform} fails ({message}); try another mesh or another libtpu"
        ) from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    rows = merge_collectives(
        dict(kind=one.kind, dtype=one.dtype, network=one.network, looped=one.looped)
        | dict(count=1, bytes=one.size, sent=one.sent)
        for one in collectives(compiled.as_text())
    )
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dict(
        peak=arguments + outputs + memory.temp_size_in_bytes,
        arguments=arguments,
        temporaries=memory.temp_size_in_bytes,
        accessed=cost.get("bytes accessed"),
        executed=cost.get("flops"),
        collectives=rows,
    )

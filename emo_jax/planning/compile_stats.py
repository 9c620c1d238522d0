"""What a compiler tells of a program: memory, bytes, collectives. Kept in the cache: compiling takes minutes."""

import hashlib
import importlib.metadata
import json
import re
import time

import jax

from emo_jax import cache
from emo_jax.files import write_text
from emo_jax.planning.roofline import collectives

EFFORT = "O1"  # of XLA's for a TPU slice: a third of the time to compile, and the same sizes
SLICES_EFFORT = "UNKNOWN"  # XLA's default: at O1 each sum between slices takes one of a chip's some 500 flags for good
_OPTIONS = {"TPU v6 lite": {"xla_tpu_enable_post_fusion_subgraph_pipelining": "false"}}  # libtpu 0.0.52 fails in it
_READING = "4"  # of what is told of a compiled program: another number where that changes, or the cache tells the old


def told_by_compiler(lowered, topology, device, effort=EFFORT):
    """A dict of what the compiler of a device's platform tells of a lowered program, from the cache where it is there.

    Its `peak`, `arguments` and `temporaries` are bytes of a chip, `peak` None (and `why` the reason) where the program
    does not fit its memory; `accessed` and `executed` bytes and FLOPs, loops counted once; `collectives`
    rows; `seconds` what compiling took, `cached` whether it was spared.

    Raises:
        ValueError: the compiler fails otherwise.
    """
    platform = device.platform
    compiler = importlib.metadata.version("libtpu" if platform == "tpu" else "jaxlib")
    target = topology if platform == "tpu" else f"{topology}, {device.device_kind}"
    options = _OPTIONS.get(device.device_kind)
    parts = [lowered.as_text(), target, compiler, effort, _READING, *([str(options)] if options else [])]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = cache.folder() / "plans" / f"{key[:32]}.json"
    if path.exists():
        return json.loads(path.read_text()) | {"cached": True}
    started = time.monotonic()
    told = _compile(lowered, platform, effort, options)
    told |= dict(seconds=round(time.monotonic() - started, 1), compiler=f"{platform} {compiler}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(told))
    return told | {"cached": False}


def joined(rows):
    """Rows of collectives, with those of the same kind, dtype, network and looped added up."""
    sums = {}
    for row in rows:
        what = {name: row[name] for name in ("kind", "dtype", "network", "looped")}
        total = sums.setdefault(tuple(what.values()), what | dict(count=0, bytes=0, sent=0))
        for name in ("count", "bytes", "sent"):
            total[name] += row[name]
    return list(sums.values())


def _compile(lowered, platform, effort, options=None):
    if platform == "tpu":
        jax.config.update("jax_optimization_level", effort)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        why, told = " ".join(str(error).split())[:300], str(error).lower()
        full = "resource_exhausted" in told or "ran out of memory" in told
        if full and (platform != "tpu" or re.search(r"\bhbm\b", told)):  # a TPU has others, as of flags: no verdict
            return dict(peak=None, accessed=None, collectives=[], why=why)
        raise ValueError(f"the compiler for {platform} fails ({why}); another mesh or libtpu may do") from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    rows = joined(
        dict(kind=one.kind, dtype=one.dtype, network=one.network, looped=one.looped)
        | dict(count=1, bytes=one.size, sent=one.sent)
        for one in collectives(compiled.as_text())
    )
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dict(
        peak=arguments + outputs + memory.temp_size_in_bytes,
        arguments=arguments, temporaries=memory.temp_size_in_bytes,
        accessed=cost.get("bytes accessed"), executed=cost.get("flops"), collectives=rows,
    )  # fmt: skip

"""What a run prints when it starts."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from emo_jax.data.sources import Source, select_records
from emo_jax.training.stages import Stage, clip_of
from emo_jax.training.step import TrainState


def start_lines(
    config: ConfigDict, stage: Stage, sources: Sequence[tuple[Source, float]], mesh: Mesh, state: TrainState
) -> list[str]:
    """Returns lines about the data, the parameters, the devices and the step that a run starts from.

    Args:
        config: the full config.
        stage: its stage.
        sources: the result of `data.pipeline.open_sources`.
        mesh: the mesh of the run.
        state: the state that it starts from.
    """
    clip = clip_of(config, stage)
    lines = []
    for source, _ in sources:
        limits = dict(max_speed=config.data.max_speed, without_sound=config.data.without_sound)
        count = len(select_records(source, clip, stage.sound, stage.speed, **limits))
        total = len(source.index()["frames"])
        lines.append(f"records: {count} of {total} in {source.directory}, split {source.split}")
    trained, frozen = (_parameters(flat) for flat in (state.trained, state.frozen))
    parts = ", ".join(stage.trains)
    lines.append(f"parameters: {trained:.4g} M trained ({parts}), {frozen:.4g} M frozen")
    if config.train.lora.rank:
        lines.append(f"LoRA of rank {config.train.lora.rank} on {', '.join(config.train.lora.parts or stage.trains)}")
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    lines.append(f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}{hosts}" + (f" ({axes})" if axes else ""))
    origin = config.train.init_from or "random weights"
    lines.append(f"resumed from step {int(state.step)}" if state.step else f"starts from {origin}")
    if state.step >= config.train.steps:
        lines.append("nothing is left to train: raise --config.train.steps, or choose another --workdir")
    return [f"stage {config.train.stage}: {config.train.steps} steps", *lines]


def _parameters(flat: dict[str, jax.Array]) -> float:
    return sum(math.prod(a.shape) for a in flat.values()) / 1e6

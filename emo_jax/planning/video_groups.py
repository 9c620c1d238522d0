"""Compares the ways to spread independent videos over devices: one device for each video, or several for each."""

import dataclasses
import json
import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from emo_jax.files import write_text
from emo_jax.generation.guided import mesh_for, mode_of
from emo_jax.planning.plan import compile_program, count_program
from emo_jax.planning.topologies import Device, describe_devices, find_devices
from emo_jax.tables import format_table


@dataclasses.dataclass(frozen=True)
class Spread:
    """Videos in groups of devices that work side by side.

    Attributes:
        devices: devices that share a video.
        groups: videos that are made at the same time.
        rounds: videos that a group makes one after the other, at most.
        idle: devices without work in the last round, and those that do not fit into a group.
        flops: useful FLOPs of a device for all its videos; decoding is not counted.
        sent: bytes that a device sends for them; None if nothing was compiled, 0 on a device alone.
        seconds: lower bound for all videos; None if the rates of the devices are not known.
    """

    devices: int
    groups: int
    rounds: int
    idle: int
    flops: float
    sent: float | None
    seconds: float | None

    @property
    def cost(self) -> tuple[float, int]:
        """The time, or the FLOPs if the time is not known; ties prefer fewer devices for each video."""
        return (self.flops if self.seconds is None else self.seconds), self.devices


def plan_videos(
    config: ConfigDict, devices: Sequence[Device], topology: str, videos: int, seconds: float, compile: bool = True
) -> list[Spread]:
    """Returns the ways to spread videos over devices, the best first.

    Args:
        config: the full config; `sampling` has the steps and the guidance.
        devices: the devices of the topology.
        topology: its name.
        videos: number of videos.
        seconds: length of each.
        compile: whether to compile a denoising step of each way, for the bytes that are sent.

    Raises:
        ValueError: a number is out of range.
    """
    if videos < 1 or not seconds > 0:
        raise ValueError(f"--videos is {videos}, --seconds is {seconds}; expected at least 1, and more than 0")
    mode = mode_of(config.model, (config.sampling.reference_scale, config.sampling.audio_scale))
    steps = config.sampling.steps * math.ceil(seconds * config.clip.fps / config.clip.frames)
    kind, found = topology.partition(":")[0], []
    alone, _ = count_program(config, devices[:1], f"{kind}:1", "denoise")
    for size in range(1, len(devices) + 1):
        mesh = mesh_for(mode, config.clip.frames, list(devices[:size]))
        if (1 if mesh is None else mesh.size) != size:
            continue  # passes and frames do not divide over so many devices
        sent, bound = 0.0 if size == 1 else None, alone.get("roofline", {}).get("compute")
        bound = None if bound is None else bound / size
        if compile and size > 1:
            plan = compile_program(*count_program(config, devices[:size], f"{kind}:{size}", "denoise"), devices[0])
            sent = sum(row["sent"] for row in plan["collectives"])
            bound = plan.get("roofline", {}).get("in_turn", {}).get("seconds", bound)
        groups = min(len(devices) // size, videos)
        rounds = math.ceil(videos / groups)
        work = rounds * steps
        found.append(
            Spread(
                devices=size,
                groups=groups,
                rounds=rounds,
                idle=len(devices) - size * (videos - (rounds - 1) * groups),
                flops=work * alone["flops"] / size,
                sent=None if sent is None else work * sent,
                seconds=None if bound is None else work * bound,
            )
        )
    return sorted(found, key=lambda spread: spread.cost)


def run_video_plan(
    config: ConfigDict,
    topology: str,
    *,
    videos: int,
    seconds: float,
    compile: bool = True,
    output: str | None = None,
) -> int:
    """Prints the ways to spread videos over the devices of a topology, and which is best and why.

    Args:
        config: the config.
        topology: such as "v5e:2x4" or "cpu:8".
        videos: number of videos.
        seconds: length of each.
        compile: see `plan_videos`.
        output: a JSON file to write as well.

    Returns:
        0.

    Raises:
        ValueError: an unknown topology, or a number out of range.
    """
    devices = find_devices(topology, 1) if compile else describe_devices(topology, 1)
    found = plan_videos(config, devices, topology, videos, seconds, compile)
    print("\n".join(video_lines(found, topology, len(devices), videos, seconds)))
    if output:
        rows = [dataclasses.asdict(spread) for spread in found]
        table = dict(program="generate", topology=topology, videos=videos, seconds=seconds, spreads=rows)
        write_text(output, json.dumps(table, indent=1) + "\n")
    return 0


def video_lines(found: Sequence[Spread], topology: str, devices: int, videos: int, seconds: float) -> list[str]:
    """Formats the ways to spread videos, and says which is best and why."""
    best, names = found[0], ["devices a video", "at once", "rounds", "idle at the end", "TFLOP a device"]
    names += ["GB sent by a device", "seconds or more"]
    cells = [
        [
            *map(str, (spread.devices, spread.groups, spread.rounds, spread.idle)),
            f"{spread.flops / 1e12:.4g}",
            "not compiled" if spread.sent is None else f"{spread.sent / 1e9:.4g}",
            "unknown" if spread.seconds is None else f"{spread.seconds:.4g}",
        ]
        for spread in found
    ]
    lines = [f"{videos} videos of {seconds:g} s on {topology} ({devices} devices), the best first:"]
    lines += format_table(cells, names, align=">" * len(names), indent="  ").splitlines()
    lines.append(f"best: {_count(best.devices, 'device')} for each video, because {_reason(best, found, devices)}")
    lines.append(f"emo generate --manifest LIST -o FOLDER --devices-per-video {best.devices}")
    return lines


def _reason(best: Spread, found: Sequence[Spread], devices: int) -> str:
    if best.devices == 1:
        if len(found) == 1:
            return "guidance passes and frames of a clip do not divide over more devices"
        return "videos on their own devices send nothing and wait for nothing" + (
            f"; {_count(best.idle, 'device')} of the last round stay idle" * (best.idle > 0)
        )
    alone = next(spread for spread in found if spread.devices == 1)
    reason = f"with one device each, {alone.idle} of {devices} would be idle at the end"
    return reason + f", and a device would compute {alone.flops / best.flops:.2g} times as much"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

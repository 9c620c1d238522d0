"""The collectives of a compiled program, and the roofline of a step from the chips' data sheets."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp

from emo_jax.distributed.devices import chip_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
        kind: one of KINDS.
        dtype: HLO's name of the element type, such as 'bf16'.
        size: bytes of the result on one chip.
        group: number of chips that take part; between slices, one chip of each.
        network: whether it crosses the network between TPU slices.
        looped: whether it stands in a loop.
    """

    kind: str
    dtype: str
    size: int
    group: int
    network: bool = False
    looped: bool = False

    @property
    def sent(self) -> float:
        """Bytes that a chip sends with a ring algorithm (Thakur et al. 2005)."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1, "collective-permute": 1}
        return self.size * factor.get(self.kind, share)


def collectives(program: str) -> list[Collective]:
    """Parses the collectives of a compiled program; one inside a loop is listed once.

    XLA for TPU writes some collectives in other ways, which are mapped back: a fusion named all-reduce-scatter is a
    reduce-scatter; a collective fused with concurrent work appears several times, as links of a chain, and is listed
    once; traffic between slices appears as sends to the host.

    Args:
        program: HLO text, as `compiled.as_text()` returns it.
    """
    found: list[tuple[str, Collective | None]] = []
    calls: dict[str, list[str]] = {}
    bodies, chains, computation = set(), set(), ""
    for line in _LINES.finditer(program):
        if line["computation"]:
            computation = line["computation"]
        elif line["called"]:
            called = re.findall(r"[\w.-]+", line["called"])
            calls.setdefault(computation, []).extend(called)
            bodies.update(called if line["how"] == "body" else ())
        elif line["operand"]:
            found.append((computation, _between_slices(line)))
        else:
            if chain := re.search(r'(channel_id=\d+).*(chain_id="\d+")', line["rest"]):
                if chain.groups() in chains:
                    continue
                chains.add(chain.groups())
            found.append((computation, _within_slice(line, computation.startswith("all-reduce-scatter"))))
    looped = _reachable(bodies, calls)
    return [dataclasses.replace(one, looped=where in looped) for where, one in found if one]


_LINES = re.compile(
    r"^(?:ENTRY )?%(?P<computation>[\w.-]+) .*\{$"
    rf"| = (?P<results>\(?.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)"
    r"| = \((?P<operand>.*), u32\[\], token\[\]\) send\(.*_xla_megascale_target=(?P<target>.*?)"
    r',_xla_megascale_transfer_type="(?P<transfer>\w+)"'
    r"| (?P<how>body|calls|to_apply|called_computations|branch_computations)=\{?(?P<called>%[\w.-]+(?:, %[\w.-]+)*)",
    re.MULTILINE,
)


def _within_slice(line: re.Match[str], fused: bool) -> Collective | None:
    results = arrays(line["results"])
    if not results:
        return None
    kind, group = line["kind"], _group_size(line["rest"])
    name, size = results[0][0], sum(size for _, size in results)
    if line["start"]:  # an asynchronous collective lists its operand beside its result
        pick = min if kind == "reduce-scatter" else max
        name, size = pick(results, key=lambda a: a[1])
    if fused and kind == "all-reduce":
        kind, size = "reduce-scatter", size // group
    return Collective(kind, name, size, group)


def _between_slices(line: re.Match[str]) -> Collective | None:
    operands = arrays(line["operand"])
    if not operands:
        return None
    name, size = operands[0]  # a send has one
    slices = re.search(r"\{([\d,]+)\}", line["target"])  # otherwise a pair of chips: {{100000->200000},...}
    group = slices[1].count(",") + 1 if slices else 2
    kind = "collective-permute" if line["transfer"] == "ONE_TO_ONE" else line["transfer"].lower().replace("_", "-")
    result = {"all-gather": size * group, "reduce-scatter": size // group}.get(kind, size)
    return Collective(kind, name, result, group, network=True)


def _reachable(starts: Iterable[str], calls: Mapping[str, list[str]]) -> set[str]:
    """Returns the computations that are called from `starts`, directly or not, and `starts` themselves."""
    reached: set[str] = set()
    pending = list(starts)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += calls.get(name, ())
    return reached


def arrays(types: str) -> list[tuple[str, int]]:
    """Parses HLO types such as 'bf16[16,320]{1,0}' into (dtype, bytes) of each array; empty arrays are left out."""
    parsed = []
    for name, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", types):
        size = math.prod(int(n) for n in dims.split(",") if n)
        if name in _TYPES and size:
            parsed.append((name, size * jnp.dtype(_TYPES[name]).itemsize))
    return parsed


_TYPES = dict(
    f32="float32", bf16="bfloat16", f16="float16", f64="float64", pred="bool", s8="int8", u8="uint8", s16="int16",
    u16="uint16", s32="int32", u32="uint32", s64="int64", u64="uint64",
)  # fmt: skip


def _group_size(rest: str) -> int:
    """Parses the number of chips of a replica group; 2 for the pairs of a collective-permute.

    Groups are written {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}.
    """
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(match[1].split(",")) if match else 2


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step's time in seconds, one per resource (Williams et al. 2009).

    Attributes:
        useful: model FLOPs at the chips' bfloat16 peak.
        compute: the same with recomputation.
        memory: bytes that a chip reads from and writes to its memory.
        links: bytes that a chip sends within its slice.
        network: bytes that a chip sends to other slices.
    """

    useful: float
    compute: float
    memory: float
    links: float
    network: float = 0.0

    @property
    def overlapped(self) -> float:
        """Seconds of a step whose collectives are hidden behind compute."""
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def in_turn(self) -> float:
        """Seconds of a step whose collectives run one after the other, and not during compute."""
        return max(self.compute, self.memory) + self.links + self.network

    def utilisation(self, seconds: float) -> float:
        """Returns the model FLOP utilisation (MFU) of a step that takes `seconds`."""
        return self.useful / seconds


def roofline(
    kind: str, chips: int, flops: float, computed: float, accessed: float, sent: float, sent_abroad: float = 0
) -> Roofline | None:
    """Computes the roofline of a step, or None if the data sheet of the chips is not known.

    Args:
        kind: device kind, such as 'TPU v5 lite'.
        chips: number of chips.
        flops: model FLOPs of all chips.
        computed: FLOPs of all chips with recomputation.
        accessed: bytes of memory traffic of each chip.
        sent: bytes that each chip sends within its slice.
        sent_abroad: bytes that each chip sends to other slices; they take no time if the network's speed is unknown.
    """
    chip = chip_of(kind)
    if chip is None or chip.bandwidth is None or chip.links is None:
        return None
    rate, network = chips * chip.flops, sent_abroad / chip.network if chip.network else 0.0
    return Roofline(flops / rate, computed / rate, accessed / chip.bandwidth, sent / chip.links, network)

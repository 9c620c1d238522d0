"""What a compiled program moves between chips, and how fast a step can be at best on chips of known speeds."""

import dataclasses
import math
import re

import jax.numpy as jnp

from emo_jax.distributed.devices import chip_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a compiled program: kind, dtype, bytes of its result on one chip, chips that take part.

    network: it crosses the network between TPU slices; the chips that take part are then one of each slice.
    looped: it stands in a loop.
    """

    kind: str
    dtype: str
    size: int
    group: int
    network: bool = False
    looped: bool = False

    @property
    def sent(self):
        """Bytes that a chip sends, by ring algorithms (Thakur et al. 2005)."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1, "collective-permute": 1}
        return self.size * factor.get(self.kind, share)


def collectives(program):
    """The collectives of a compiled program's text (HLO), each as often as it stands there; loops count once.

    An all-reduce and a slice that XLA for TPU has fused, which it calls all-reduce-scatter, are a reduce-scatter. One
    that it has fused with what runs meanwhile stands there several times, as links of a chain, and counts once. What
    goes to other slices stands there as sends to the host.
    """
    found, calls, bodies, chains, inside = [], {}, set(), set(), ""
    for line in _LINES.finditer(program):
        if line["computation"]:
            inside = line["computation"]
        elif line["called"]:
            called = re.findall(r"[\w.-]+", line["called"])
            calls.setdefault(inside, []).extend(called)
            bodies.update(called if line["how"] == "body" else ())
        elif line["operand"]:
            found.append((inside, _between_slices(line)))
        else:
            if chain := re.search(r'(channel_id=\d+).*(chain_id="\d+")', line["rest"]):
                if chain.groups() in chains:
                    continue
                chains.add(chain.groups())
            found.append((inside, _within_a_slice(line, inside.startswith("all-reduce-scatter"))))
    looped = _reached(bodies, calls)
    return [dataclasses.replace(one, looped=where in looped) for where, one in found if one]


_LINES = re.compile(
    r"^(?:ENTRY )?%(?P<computation>[\w.-]+) .*\{$"
    rf"| = (?P<results>\(?.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)"
    r"| = \((?P<operand>.*), u32\[\], token\[\]\) send\(.*_xla_megascale_target=(?P<target>.*?)"
    r',_xla_megascale_transfer_type="(?P<transfer>\w+)"'
    r"| (?P<how>body|calls|to_apply|called_computations|branch_computations)=\{?(?P<called>%[\w.-]+(?:, %[\w.-]+)*)",
    re.MULTILINE,
)


def _within_a_slice(line, fused):
    results = arrays(line["results"])
    if not results:
        return None
    kind, group = line["kind"], _group(line["rest"])
    name, size = results[0][0], sum(size for _, size in results)
    if line["start"]:  # what starts and is waited for later has operand and result side by side
        pick = min if kind == "reduce-scatter" else max
        name, size = pick(results, key=lambda a: a[1])
    if fused and kind == "all-reduce":
        kind, size = "reduce-scatter", size // group
    return Collective(kind, name, size, group)


def _between_slices(line):
    operands = arrays(line["operand"])
    if not operands:
        return None
    name, size = operands[0]  # a send has one
    slices = re.search(r"\{([\d,]+)\}", line["target"])  # or a pair of chips: {{100000->200000},...}
    group = slices[1].count(",") + 1 if slices else 2
    kind = "collective-permute" if line["transfer"] == "ONE_TO_ONE" else line["transfer"].lower().replace("_", "-")
    result = {"all-gather": size * group, "reduce-scatter": size // group}.get(kind, size)
    return Collective(kind, name, result, group, network=True)


def _reached(starts, calls):
    """The computations that are called from some, by way of others too, and these."""
    reached, ahead = set(), list(starts)
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += calls.get(name, ())
    return reached


def arrays(types):
    """(dtype, bytes) of each array that a piece of HLO names, such as 'bf16[16,320]{1,0}'; empty ones left out."""
    found = []
    for name, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", types):
        size = math.prod(int(n) for n in dims.split(",") if n)
        if name in _TYPES and size:
            found.append((name, size * jnp.dtype(_TYPES[name]).itemsize))
    return found


_TYPES = dict(
    f32="float32", bf16="bfloat16", f16="float16", f64="float64", pred="bool", s8="int8", u8="uint8", s16="int16",
    u16="uint16", s32="int32", u32="uint32", s64="int64", u64="uint64",
)  # fmt: skip


def _group(rest):
    """Chips in each group of replica_groups={{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}; 2 for pairs."""
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    found = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(found[1].split(",")) if found else 2


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of a step by each of what can hold it up (Williams et al. 2009), and what follows.

    useful: useful FLOPs at the chips' bfloat16 peak. compute: those and what is computed anew. memory: bytes that a
    chip reads and writes. links, network: bytes that it sends within its slice, and to others. What moves while the
    chip computes costs nothing more: `overlapped`; what does not: `in_turn`.
    """

    useful: float
    compute: float
    memory: float
    links: float
    network: float = 0.0

    @property
    def overlapped(self):
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def in_turn(self):
        return max(self.compute, self.memory) + self.links + self.network

    def utilisation(self, seconds):
        """Share of the peak that useful FLOPs make of a step of so many seconds (MFU)."""
        return self.useful / seconds


def roofline(kind, chips, flops, computed, accessed, sent, abroad=0):
    """The Roofline of a step of `flops`, `computed` with what memory has it do anew, on so many chips of a kind.

    `accessed`, `sent` and `abroad`, which goes to other slices, are bytes of each chip.

    None where the kind is not among CHIPS. A network whose speed no data sheet tells takes no time.
    """
    chip = chip_of(kind)
    if chip is None or chip.bandwidth is None or chip.links is None:
        return None
    rate, network = chips * chip.flops, abroad / chip.network if chip.network else 0.0
    return Roofline(flops / rate, computed / rate, accessed / chip.bandwidth, sent / chip.links, network)

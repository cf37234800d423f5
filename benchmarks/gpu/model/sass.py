"""Analyses a kernel's SASS: its loops, instructions per pipe, and stall cycles of a warp."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu.model.machines import CYCLES, WAIT_CYCLES

INSTRUCTION = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?(?P<name>\S+)(?P<operands>.*?);"
    r"\s+/\* 0x[0-9a-f]{16} \*/\n\s+/\* 0x(?P<control>[0-9a-f]{16}) \*/",
    re.MULTILINE,
)

PIPES = {
    "fma": "FFMA FADD FMUL HFMA2 HADD2 HMUL2",
    "fma heavy": "IMAD",
    "mufu": "MUFU F2F F2I I2F FRND POPC FLO",
    "tensor": "HGMMA HMMA QGMMA IGMMA DMMA",
    "lsu": "LDG STG LDS STS LDGSTS LDSM STSM SHFL ATOMS ATOMG RED LD ST LDL STL REDUX MATCH",
    "control": "BAR MEMBAR FENCE WARPGROUP DEPBAR LDGDEPBAR WARPSYNC BSSY BSYNC BRA NOP EXIT YIELD "
    "CALL RET ARRIVES SYNCS ERRBAR CCTL BREAK BMOV",
}
_PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}


@dataclass(frozen=True)
class Instruction:
    name: str
    """The opcode, without modifiers."""
    pipe: str
    cycles: float
    """Cycles for which it occupies its pipe."""
    stall: int
    """Cycles until the warp can issue its next instruction, at the earliest."""
    waits: bool
    """Whether it waits for a result of variable latency."""


@dataclass
class Counts:
    """Totals for one warp that executes a stretch of code."""

    instructions: float = 0
    busy: Counter[str] = field(default_factory=Counter)
    """Cycles for which each pipe of a scheduler is occupied."""
    stalls: float = 0
    """Cycles of fixed latency in which the warp cannot issue; `waits` come on top."""
    waits: float = 0
    """How often the warp waits for a result of variable latency."""
    names: Counter[str] = field(default_factory=Counter)

    @property
    def latency(self) -> float:
        """Cycles from the first to the last instruction if no other warp competes for resources."""
        return self.stalls + WAIT_CYCLES * self.waits

    def add(self, one: Instruction, times: float) -> None:
        self.instructions += times
        self.busy[one.pipe] += times * one.cycles
        self.stalls += times * one.stall
        self.waits += times * one.waits
        self.names[one.name] += times


@dataclass
class Loop:
    """A stretch of code, as instruction indices, that ends with a branch back to its beginning."""

    begin: int
    end: int
    inner: list[Loop] = field(default_factory=list)

    def flat(self) -> list[Loop]:
        """All nested loops, in the order in which they begin, outer loops before inner ones.

        The stretch itself is not included.
        """
        return [found for loop in self.inner for found in (loop, *loop.flat())]

    def innermost(self, begin: int, end: int) -> Loop:
        """The smallest loop that contains a stretch."""
        for inner in self.inner:
            if inner.begin <= begin and end <= inner.end:
                return inner.innermost(begin, end)
        return self


@dataclass(frozen=True)
class Program:
    """The code of one kernel. `whole` is not a loop itself, but the root of all loops."""

    code: list[Instruction]
    whole: Loop

    @classmethod
    def of(cls, disassembly: str) -> Program:
        """Parse what `cuobjdump -sass` prints for one function, including the encodings."""
        found = list(INSTRUCTION.finditer(disassembly))
        at = {int(one["address"], 16): index for index, one in enumerate(found)}
        loops: dict[int, Loop] = {}
        for index, one in enumerate(found):
            target = re.search(r"0x([0-9a-f]+)", one["operands"]) if one["name"] == "BRA" else None
            begin = at.get(int(target[1], 16), index) if target is not None else index
            if begin < index:  # if several branches go back to one place, the last ends the loop
                loops[begin] = Loop(begin, index + 1)
        whole = Loop(0, len(found))
        for loop in sorted(loops.values(), key=lambda loop: (loop.begin, -loop.end)):
            whole.innermost(loop.begin, loop.end).inner.append(loop)
        return cls([_instruction(one["name"], int(one["control"], 16)) for one in found], whole)

    def counts(self, begin: int, end: int) -> Counts:
        """Totals for running once through a stretch, skipping the loops nested in it."""
        counts, loop = Counts(), self.whole.innermost(begin, end)
        for index in range(begin, end):
            counts.add(self.code[index], self.whole.innermost(index, index + 1) is loop)
        return counts

    def run_through(self, trips: Sequence[float], straight: float = 1.0) -> Counts:
        """Totals for a warp that executes the whole program.

        If a loop never runs, neither does the code around it, from the end of the previous loop
        that runs to the beginning of the next.

        Args:
            trips: the trip count of each loop, in the order of `Loop.flat`.
            straight: the share of the code outside loops that is executed.

        Raises:
            ValueError: the compiled code has a different number of loops.
        """
        loops = self.whole.flat()
        while len(trips) > len(loops) and trips[-1] == 1:  # a single trip needs no loop
            trips = trips[:-1]
        if len(loops) != len(trips):
            raise ValueError(
                f"{len(trips)} loops were expected, but the compiler made {len(loops)}: "
                f"{[(loop.begin, loop.end) for loop in loops]}"
            )
        times = [straight] * len(self.code)
        running = [loop for loop, runs in zip(loops, trips, strict=True) if runs > 0]
        for loop, runs in zip(loops, trips, strict=True):
            if runs == 0:
                begin = max((x.end for x in running if x.end <= loop.begin), default=0)
                end = min((x.begin for x in running if x.begin >= loop.end), default=loop.end)
                times[begin:end] = [0.0] * (end - begin)
        for loop, runs in zip(loops, trips, strict=True):
            times[loop.begin : loop.end] = [runs] * (loop.end - loop.begin)
        counts = Counts()
        for one, runs in zip(self.code, times, strict=True):
            counts.add(one, runs)
        return counts


def _instruction(name: str, control: int) -> Instruction:
    first, pipe = name.split(".")[0], _pipe_of(name)
    stall, waits_for = (control >> 41) & 0xF, (control >> 52) & 0x3F
    return Instruction(first, pipe, _cycles_of(name, pipe), stall, waits_for > 0)


def _pipe_of(name: str) -> str:
    first = name.split(".")[0]
    if first in _PIPE_OF:
        return _PIPE_OF[first]
    return "uniform" if first.startswith("U") or first in ("R2UR", "S2R", "S2UR", "CS2R") else "alu"


def _cycles_of(name: str, pipe: str) -> float:
    """Cycles for which the instruction occupies its pipe."""
    if pipe != "tensor":
        return CYCLES.get(pipe, 0.0)
    shape = re.search(r"\.(\d+)x(\d+)x(\d+)", name)
    if shape is not None:  # a warpgroup instruction: 64 rows, a quarter of them for each warp
        return int(shape[2]) / 2
    # HMMA.16816 and HMMA.1688 reach half the throughput of warpgroup instructions.
    return 8.0 if "16816" in name else 4.0

"""Counts the SASS instructions of compiled kernels."""

from __future__ import annotations

import re
from collections import Counter

from helpers.gpu.compiler import cuobjdump

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*?);", re.MULTILINE)


def instructions(binary: bytes) -> Counter[str]:
    """How often each opcode, without modifiers, occurs in a kernel."""
    return Counter(
        name.split(".")[0] for _, name, _ in INSTRUCTION.findall(cuobjdump(binary, "-sass"))
    )


def longest_loop(binary: bytes) -> Counter[str]:
    """How often each opcode, without modifiers, occurs in the longest innermost loop."""
    found = [
        (int(address, 16), name.split(".")[0], operands)
        for address, name, operands in INSTRUCTION.findall(cuobjdump(binary, "-sass"))
    ]
    at = {address: index for index, (address, _, _) in enumerate(found)}
    loops: list[tuple[int, int]] = []
    for index, (_, name, operands) in enumerate(found):
        target = re.search(r"0x([0-9a-f]+)", operands) if name == "BRA" else None
        begin = at.get(int(target[1], 16), index) if target is not None else index
        if begin < index and not any(begin <= first for first, _ in loops):
            loops.append((begin, index + 1))
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
    return Counter(name for _, name, _ in found[begin:end])

"""The model of what kernels take: how it reads machine code, and what an H200 counted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.repository import ROOT

pytest.importorskip("triton")
sys.path.append(str(ROOT / "benchmarks"))
from gpu.model.assignment import program_of_the_library, step_of_the_search
from gpu.model.cases import CASES, launches_of
from gpu.model.machines import MACHINES
from gpu.model.prediction import predict, work_of
from gpu.model.sass import Program
from helpers.gpu.compiler import is_pinned


def disassembly(*lines: str) -> str:
    """As `cuobjdump` prints it; every instruction stalls for 2 cycles, of MUFU others wait."""
    text = []
    for index, line in enumerate(lines):
        control = 2 << 41 | ((1 << 52) if "FADD" in line else 0)
        text.append(f"        /*{16 * index:04x}*/    {line} ;    /* 0x{0:016x} */")
        text.append(f"    /* 0x{control:016x} */")
    return "\n".join(text) + "\n"


def test_loops_of_machine_code() -> None:
    program = Program.of(
        disassembly(
            "IMAD.MOV.U32 R1, RZ, RZ, R2",
            "FFMA R0, R0, R1, R2",
            "MUFU.EX2 R1, R0",
            "FADD R0, R0, R1",
            "@P0 BRA 0x20",
            "@!P1 BRA 0x10",
            "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24",
            "EXIT",
        )
    )
    assert [(loop.begin, loop.end) for loop in program.whole.flat()] == [(1, 6), (2, 5)]
    counts = program.run_through([3, 12])
    assert counts.instructions == 3 + 3 * 2 + 12 * 3
    assert (counts.stalls, counts.waits) == (2 * 45, 12)
    assert counts.busy["mufu"] == 12 * 8
    assert counts.busy["tensor"] == 8
    with pytest.raises(ValueError, match=r"1 loops .* made 2"):
        program.run_through([1])


def test_code_around_a_loop_that_never_runs() -> None:
    code = ["FADD R0, R0, R1"] * 3 + ["@P0 BRA 0x20"] + ["FMUL R0, R0, R1"] * 4 + ["@P0 BRA 0x70"]
    program = Program.of(disassembly(*code))
    assert len(program.whole.flat()) == 2
    assert program.run_through([0, 5]).instructions == 5 * 2
    assert program.run_through([5, 1]).instructions == 2 + 5 * 2 + 3 + 2


@pytest.mark.skipif(not is_pinned(), reason="counts are those of the pinned Triton")
def test_counted_instructions_are_those_that_a_gpu_counted() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "h200.json").read_text())
    counted = {
        one["kernel"]: one["instructions"]
        for one in found["utilisation"]
        if one["of"] == "criterion A bfloat16"
    }
    predicted = 0.0
    for launch in launches_of(CASES[0], torch.bfloat16):
        work = work_of(launch, CASES[0])
        if launch.name == "loss_sums_kernel":  # is younger than these counts
            continue
        assert work.instructions == pytest.approx(counted[work.kernel], rel=0.3), work.kernel
        if counted[work.kernel] > 1e7:
            assert work.instructions == pytest.approx(counted[work.kernel], rel=0.15), work.kernel
        assert work.spilled == 0
        predicted += predict(work, MACHINES["H200"]).us
    assert predicted <= 1050


@pytest.mark.skipif(not is_pinned(), reason="counts are those of the pinned compilers")
def test_stalls_of_a_step_of_the_assignment() -> None:
    """On an H100, of the group that serves up to 128 queries; waits for results come on top."""
    try:
        program = program_of_the_library(ROOT / "mfkernels" / "_torch_cuda.so")
    except (ValueError, subprocess.CalledProcessError):
        pytest.skip("no CUDA kernels for compute capability 9.0 were built")
    step = step_of_the_search(program)
    assert step.stalls <= 350
    assert step.waits <= 10


def test_more_memory_is_a_higher_bound() -> None:
    (launch,) = (x for x in launches_of(CASES[0], torch.bfloat16) if x.name == "combine_kernel")
    work = work_of(launch, CASES[0])
    first, slower = (predict(work, MACHINES[name]) for name in ("H200", "H100"))
    assert (first.bound_by, slower.bound_by) == ("memory", "memory")
    assert slower.us > first.us
    fewer = predict(replace(work, resident=1), MACHINES["H200"])
    assert fewer.bounds["latency"] > 8 * first.bounds["latency"]

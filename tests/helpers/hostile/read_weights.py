"""Reads the corpus of hostile weight files: `python -m helpers.hostile.read_weights FOLDER`.

It writes all files to the folder and reads them in one process under limits on time and memory, and
after each of them a good file, to see that reading still works. It prints the outcomes as one line
of JSON: the kind of each file, what happened, and what is acceptable.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import torch
from helpers.hostile.weights import GOOD, corpus, good_files

from maskformer.weights.files import read_tensors
from maskformer.weights.safe_pickle.machine import GROWTH, SLACK

SECONDS, MEGABYTES = 2, 100
"""The CPU time for a file, and the memory that reading it may take beyond the file's size."""


class TooSlowError(BaseException):
    pass


def attempt(file: Path) -> str:
    """Read a file: "refused", "read", or a description of what should not have happened."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        found = read_tensors(file)
    except TooSlowError:
        return f"took more than {SECONDS} s"
    except ValueError as error:
        one_line = "\n" not in str(error) and len(str(error)) < 700
        out_of_memory = isinstance(error.__cause__, MemoryError)
        return "refused" if one_line and not out_of_memory else f"refused: {str(error)[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    needed = sum(tensor.nbytes for tensor in found.values())
    size = file.stat().st_size
    return "read" if needed <= GROWTH * size + SLACK else f"read {needed:,} bytes of {size:,}"


def peak() -> int:
    """The peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def is_good(file: Path) -> bool:
    found = read_tensors(file)
    return found.keys() == GOOD.keys() and all(torch.equal(found[n], GOOD[n]) for n in GOOD)


def main(folder: Path) -> None:
    def stop(*_: object) -> None:
        raise TooSlowError

    signal.signal(signal.SIGPROF, stop)
    good = []
    for index, (suffix, content) in enumerate(good_files()):
        good.append(folder / f"good_{index}{suffix}")
        good[-1].write_bytes(content)
    files = []
    for index, hostile in enumerate(corpus()):
        files.append((hostile, folder / f"{index}{hostile.suffix}"))
        files[-1][1].write_bytes(hostile.content)
    assert all(map(is_good, good))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes = []
    for index, (hostile, file) in enumerate(files):
        before = peak()
        outcome = attempt(file)
        grown = peak() - before
        if grown > MEGABYTES + (len(hostile.content) >> 20):
            outcome = f"took {grown} MB"
        if not is_good(good[index % len(good)]):
            outcome = "a good file could not be read afterwards"
        outcomes.append((hostile.kind, outcome, hostile.expected))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
